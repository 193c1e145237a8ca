#include "mcompress/model/gguf_export.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string_view>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include "block.h"
#include "mcompress/base/error.h"
#include "source.h"

namespace mcompress {

namespace {

// An architecture that is written, and what it has that others have not.
struct Written {
  std::string_view model_type, name;
  bool query_bias = false, any_bias = false;
  int64_t window_pattern = 0;  // every so many blocks have no window, all others one; 0: no window is known
  Activation activation = Activation::kSilu;
  int64_t unrotated_step = 0;  // every so many blocks rotate no positions; 0: all rotate them, or none
};
constexpr int64_t kEveryBlock = std::numeric_limits<int64_t>::max();

const Written& architecture_of(const DecoderConfig& config) {
  static constexpr std::array<Written, 10> kWritten = {
      {{.model_type = "gemma", .name = "gemma", .activation = Activation::kTanhGelu},
       {.model_type = "gemma2", .name = "gemma2", .window_pattern = 2, .activation = Activation::kTanhGelu},
       {.model_type = "gemma3_text",
        .name = "gemma3",
        .window_pattern = 6,
        .activation = Activation::kTanhGelu},
       {.model_type = "gpt2",
        .name = "gpt2",
        .query_bias = true,
        .any_bias = true,
        .activation = Activation::kTanhGelu},
       {"llama", "llama"},
       {"mistral", "llama"},
       {.model_type = "phi3", .name = "phi3", .window_pattern = kEveryBlock},
       {.model_type = "qwen2", .name = "qwen2", .query_bias = true},
       {"qwen3", "qwen3"},
       {.model_type = "smollm3", .name = "smollm3", .unrotated_step = 4}}};
  std::vector<std::string_view> names;
  for (const Written& written : kWritten) {
    if (written.model_type == config.model_type) return written;
    names.push_back(written.model_type);
  }
  throw bad_data("a {} model cannot be written as GGUF; {} can", config.model_type, fmt::join(names, ", "));
}

// The one window of blocks; 0 where there is none. Readers give it to all but every so many, whatever the
// file says, and with it a rotation of their own (Gemma 3).
int64_t window_of(const DecoderConfig& config, const Written& architecture) {
  const int64_t window = *std::max_element(config.windows.begin(), config.windows.end()),
                pattern = architecture.window_pattern;
  const bool always = pattern > 0 && pattern != kEveryBlock;
  const bool reached = window > 0 && window < config.positions;
  if (!always && !reached) return 0;
  if (pattern == 0)
    throw bad_data("blocks that look back {} tokens only cannot be written as GGUF yet", window);
  for (size_t i = 0; i < config.windows.size(); ++i) {
    const bool windowed = (static_cast<int64_t>(i) + 1) % pattern != 0;
    if (config.windows[i] != (windowed ? window : 0) || window == 0)
      throw bad_data(
          "block {} looks back {} tokens (0: all), and readers of a {} model in GGUF would give it {}", i,
          config.windows[i], architecture.name, windowed ? "a window" : "none");
  }
  return window;
}

// As for windows, no file says which blocks rotate positions.
void check_rotations(const DecoderConfig& config, const Written& architecture) {
  const int64_t step = architecture.unrotated_step;
  for (size_t i = 0; step > 0 && i < config.rotates.size(); ++i) {
    const bool usual = (static_cast<int64_t>(i) + 1) % step != 0;
    if (config.rotates[i] != usual)
      throw bad_data("block {} {} positions, and readers of a {} model in GGUF would {}", i,
                     usual ? "rotates no" : "rotates", architecture.name,
                     usual ? "rotate them" : "rotate none");
  }
}

using Add = std::function<void(const std::string& key, GgufField value)>;

void add_rope(const DecoderConfig& config, const Written& architecture, const Add& add) {
  const Rope& rope = config.rope;
  add("rope.dimension_count", static_cast<uint32_t>(config.rotated_width));
  add("rope.freq_base", static_cast<float>(rope.theta));
  const auto refuse = [](const char* what) { return bad_data("{} cannot be written as GGUF", what); };
  switch (rope.scaling) {
    case RopeScaling::kNone: return;
    case RopeScaling::kLinear:
      add("rope.scaling.type", std::string("linear"));
      add("rope.scaling.factor", static_cast<float>(rope.factor));
      return;
    case RopeScaling::kLlama3:
      if (architecture.name == "llama") return;  // a tensor says it
      throw refuse("positions that are rotated as Llama 3 does, in a model of another kind,");
    case RopeScaling::kYarn: {
      if (!rope.truncate) throw refuse("a rope_scaling of yarn with truncate false");
      add("rope.scaling.type", std::string("yarn"));
      add("rope.scaling.factor", static_cast<float>(rope.factor));
      add("rope.scaling.original_context_length", static_cast<uint32_t>(rope.original_positions));
      add("rope.scaling.yarn_beta_fast", static_cast<float>(rope.beta_fast));
      add("rope.scaling.yarn_beta_slow", static_cast<float>(rope.beta_slow));
      // What readers have by themselves is left out of it.
      const double usual = rope.factor > 1 ? 0.1 * std::log(rope.factor) + 1 : 1;
      add("rope.scaling.attn_factor", static_cast<float>(rope.attention_factor / usual));
      return;
    }
    case RopeScaling::kLongrope:
      if (architecture.name != "phi3")
        throw refuse("a rope_scaling of longrope, in a model that is no phi3,");
      add("rope.scaling.original_context_length", static_cast<uint32_t>(rope.original_positions));
      add("rope.scaling.attn_factor", static_cast<float>(rope.attention_factor));
      return;
    case RopeScaling::kDynamic: throw refuse("a rope_scaling of dynamic");
  }
}

// What readers take for granted of an architecture, and what Gemma's files say beside it.
void add_gemma(const DecoderConfig& config, const Written& architecture, const Add& add) {
  if (architecture.name != "gemma2" && architecture.name != "gemma3") return;
  const int64_t largest = architecture.name == "gemma2" ? 46 : 62;
  const int64_t width = config.blocks == largest ? config.width / config.heads : config.head_width;
  if (std::abs(config.score_scale * std::sqrt(static_cast<double>(width)) - 1) > 1e-6)
    throw bad_data(
        "scores of attention that are scaled by {}, and not by the width of heads, cannot be written as GGUF",
        config.score_scale);
  if (architecture.name == "gemma2" && (config.score_cap == 0 || config.logit_cap == 0))
    throw bad_data("a gemma2 model without caps of scores and logits cannot be written as GGUF");
  if (config.score_cap > 0) add("attn_logit_softcapping", static_cast<float>(config.score_cap));
  if (config.logit_cap > 0) add("final_logit_softcapping", static_cast<float>(config.logit_cap));
  if (!config.window_rope) return;
  if (config.window_rope->scaling != RopeScaling::kNone)
    throw bad_data("a rope_scaling of blocks with a window cannot be written as GGUF");
  constexpr double kUsual = 10000;
  if (config.window_rope->theta != kUsual)
    add("rope.freq_base_swa", static_cast<float>(config.window_rope->theta));
}

}  // namespace

std::vector<std::pair<std::string, GgufField>> gguf_model_fields(const DecoderConfig& config,
                                                                 const std::string& name) {
  const Written& architecture = architecture_of(config);
  const bool biased = (config.qkv_bias && !architecture.query_bias) ||
                      ((config.output_bias || config.mlp_bias) && !architecture.any_bias);
  if (biased) throw bad_data("a {} model with these biases cannot be written as GGUF", config.model_type);
  if (config.activation != architecture.activation)
    throw bad_data("a {} model with another activation than {} cannot be written as GGUF", config.model_type,
                   architecture.activation == Activation::kSilu ? "silu" : "gelu_pytorch_tanh");
  std::vector<std::pair<std::string, GgufField>> fields = {
      {"general.architecture", std::string(architecture.name)},
      {"general.type", std::string("model")},
      {"general.name", name}};
  const Add add = [&](const std::string& key, GgufField value) {
    fields.emplace_back(std::string(architecture.name) + "." + key, std::move(value));
  };
  const auto count = [](int64_t value) { return static_cast<uint32_t>(value); };
  add("context_length", count(config.positions));
  add("embedding_length", count(config.width));
  add("block_count", count(config.blocks));
  add("feed_forward_length", count(config.inner));
  add("attention.head_count", count(config.heads));
  add("attention.head_count_kv", count(config.kv_heads));
  add("vocab_size", count(config.vocabulary));
  add(config.norm == NormKind::kLayer ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
      static_cast<float>(config.norm_epsilon));
  if (const int64_t window = window_of(config, architecture); window > 0)
    add("attention.sliding_window", count(window));
  if (!config.first_position) {  // those are not rotated
    add("attention.key_length", count(config.head_width));
    add("attention.value_length", count(config.head_width));
    check_rotations(config, architecture);
    add_rope(config, architecture, add);
  }
  add_gemma(config, architecture, add);
  fields.emplace_back("general.quantization_version", uint32_t{2});
  return fields;
}

std::vector<GgufPlace> gguf_places(const DecoderConfig& config) {
  const bool neighbours = rotates_neighbours(architecture_of(config).name),
             biased_norms = config.norm == NormKind::kLayer;
  DecoderConfig file = config;  // the same with other names
  const DecoderNames& from = config.names;
  file.names = gguf_names(!from.query_key_value.empty(), !from.gate_up.empty());
  const DecoderNames& to = file.names;
  std::vector<GgufPlace> places;
  const auto add = [&](const std::string& source, const std::string& name, std::vector<int64_t> shape,
                       bool biased) -> size_t {
    places.push_back({source + ".weight", name + ".weight", shape});
    if (biased) places.push_back({source + ".bias", name + ".bias", {shape[0]}});
    return places.size() - (biased ? 2 : 1);
  };
  add(from.base + from.embedding, to.base + to.embedding, {config.vocabulary, config.width}, false);
  if (config.first_position)
    add(from.base + from.positions, to.base + to.positions,
        {config.positions + *config.first_position, config.width}, false);
  for (int64_t block = 0; block < config.blocks; ++block) {
    const std::string before = config.block_name(block), after = file.block_name(block);
    const auto norm = [&](std::string DecoderNames::*name, int64_t width) {
      add(before + from.*name, after + to.*name, {width}, biased_norms);
    };
    norm(&DecoderNames::attention_norm, config.width);
    norm(&DecoderNames::feed_forward_norm, config.width);
    if (config.closing_norms) {
      norm(&DecoderNames::closing_attention_norm, config.width);
      norm(&DecoderNames::closing_feed_forward_norm, config.width);
    }
    if (config.head_norm) {
      norm(&DecoderNames::query_norm, config.head_width);
      norm(&DecoderNames::key_norm, config.head_width);
    }
    const auto sources = stages_of(config, block), targets = stages_of(file, block);
    for (size_t stage = 0; stage < sources.size(); ++stage) {
      for (size_t i = 0; i < sources[stage].size(); ++i) {
        const DecoderLayer& layer = sources[stage][i];
        GgufPlace& place =
            places[add(layer.name, targets[stage][i].name, {layer.outputs, layer.inputs}, layer.biased)];
        place.transposed = config.transposed;
        if (neighbours && layer.name == before + from.query) place.heads = config.heads;
        if (neighbours && layer.name == before + from.key) place.heads = config.kv_heads;
      }
    }
  }
  if (config.rope.scaling == RopeScaling::kLlama3)
    places.push_back({"", kFrequencies, {config.rotated_width / 2}});
  if (config.rope.scaling == RopeScaling::kLongrope) {
    for (const char* name : {kShortFactors, kLongFactors})
      places.push_back({"", name, {config.rotated_width / 2}});
  }
  add(from.base + from.final_norm, to.base + to.final_norm, {config.width}, biased_norms);
  if (!config.tied_head) add(from.head, to.head, {config.vocabulary, config.width}, false);
  return places;
}

namespace {

// Rows of q and k as llama.cpp rotates them.
at::Tensor ordered(const at::Tensor& matrix, int64_t heads) {
  if (heads == 0) return matrix.contiguous();
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  return matrix.reshape({heads, 2, rows / heads / 2, columns})
      .transpose(1, 2)
      .reshape({rows, columns})
      .contiguous();
}

}  // namespace

at::Tensor gguf_values(const Decoder& model, const GgufPlace& place) {
  const DecoderConfig& config = model.config();
  if (place.source.empty()) {
    const std::vector<double> divisors = place.name == kShortFactors ? config.rope.divisors
                                         : place.name == kLongFactors
                                             ? config.rope.long_divisors
                                             : llama3_divisors(config.rope, config.rotated_width);
    return at::tensor(divisors, at::kDouble).to(at::kFloat);
  }
  at::Tensor values = model.stored(place.source);
  if (place.transposed) values = values.t();
  // Files have what norms multiply by.
  if (config.norm == NormKind::kOffsetRms && values.dim() == 1) values = values + 1;
  return ordered(values, place.heads);
}

at::Tensor gguf_scales(const IntGroup& weight, const GgufPlace& place, GgufType type, bool round) {
  const int64_t width = block_of(type).values, columns = weight.codes.size(1);
  const int most = type == GgufType::kQ4_0 ? 8 : type == GgufType::kQ8_0 ? 128 : 0;  // -most to most - 1
  if (most == 0 || columns % width != 0) return {};
  const at::Tensor blocks = weight.groups.view({-1, width}), groups = blocks.select(1, 0);
  if (!blocks.eq(groups.unsqueeze(1)).all().item<bool>()) return {};
  const at::Tensor steps =
      weight.codes.to(at::kShort) - weight.zero.to(at::kShort).index_select(1, weight.groups);
  if (steps.min().item<int>() < -most || steps.max().item<int>() >= most) return {};
  const at::Tensor exact = weight.scale.to(at::kFloat), scales = exact.to(at::kHalf).to(at::kFloat);
  const bool near =
      scales.isfinite().logical_and((scales - exact).abs() <= exact.abs() * 0x1p-10).all().item<bool>();
  if (round ? !near : !scales.equal(exact)) return {};
  return ordered(scales.index_select(1, groups), place.heads);
}

at::Tensor gguf_blocks(const at::Tensor& rows, GgufType type, const at::Tensor& scales) {
  const int64_t count = rows.size(0), columns = rows.numel() / std::max<int64_t>(1, count);
  const GgufBlock block = block_of(type);
  const auto row_bytes = static_cast<int64_t>(static_cast<uint64_t>(columns / block.values) * block.bytes);
  at::Tensor blocks = at::empty({count, row_bytes}, at::kByte);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      quantize_gguf(type, rows.const_data_ptr<float>() + row * columns, columns,
                    reinterpret_cast<std::byte*>(blocks.data_ptr<uint8_t>() + row * row_bytes),
                    scales.defined() ? scales.const_data_ptr<float>() + row * scales.size(1) : nullptr);
  });
  return blocks;
}

}  // namespace mcompress
