#include <cstring>
#include <tuple>

#include "cli/packed_formats.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

TEST_F(PackedFormats, AreWrittenWithoutData) {
  const json original = report_of("inspect " + (folder_ / "model"));
  for (const std::string format : {"gptq", "awq", "compressed-tensors", "safetensors"}) {
    const bool plain = format == "safetensors";  // a byte each
    for (const std::string grid : {"--sym", "--asym"}) {
      const json report = report_of(weight_only("--group-size 32 --format " + format + " " + grid));
      EXPECT_EQ(report["output"]["format"], format);
      EXPECT_EQ(report["output"]["bytes"], report["size"]["predicted_bytes"]);
      EXPECT_EQ(report["input"]["parameters"], report["output"]["parameters"]);
      EXPECT_NEAR(report["calibration"]["bits_per_weight"].get<double>(), (plain ? 8 : 4) + 20.0 / 32, 0.7)
          << format;
      for (const json& layer : report["layers"]) {
        if (layer["kind"] == "linear") {
          EXPECT_GT(layer["sqnr_db"].get<double>(), 15) << layer;
        }
      }
      const json quantization = config_of("out")["quantization_config"];
      EXPECT_EQ(quantization["quant_method"], plain ? "compressed-tensors" : format);
      EXPECT_EQ(std::filesystem::exists(folder_ / "out/quantize_config.json"), format == "gptq");
      const json inspected = report_of("inspect " + (folder_ / "out"));
      EXPECT_EQ(inspected["input"]["parameters"], original["input"]["parameters"]);
    }
  }
}

// Scales that are weighted by the inputs lose less of what counts.
TEST_F(PackedFormats, WeightScalesByTheInputsOfText) {
  const std::string text = " --seqlen 64 --nsamples 20 --calib-data " + (folder_ / "text.txt");
  const json report = report_of(weight_only("--bits 3 --group-size 32" + text, "weighted"));
  EXPECT_EQ(report["calibration"]["samples"], 20);
  for (const json& layer : report["layers"]) {
    if (layer["kind"] != "linear") continue;
    EXPECT_LT(layer["rounding"]["loss"].get<double>(), layer["rounding"]["rounded_loss"].get<double>());
  }
  report_of(weight_only("--bits 3 --group-size 32 --threads 1" + text, "one"));
  EXPECT_EQ(bytes_of("one"), bytes_of("weighted"));
  expect_all({{weight_only("--resume"), 2, "--resume goes with --mode qat, and with weight-only"},
              {weight_only("--group-size 32 --calib-data " + (folder_ / "missing.txt")), 66, "missing.txt"},
              {weight_only("--nsamples 20"), 2, "--nsamples goes with --calib-data"},
              {weight_only("--no-mse" + text), 2, "--no-mse takes the range of each group"}},
             folder_ / "no");
}

TEST_F(PackedFormats, HaveLayersOfTheirOwnSettings) {
  const std::string own =
      "--layer-config down_proj=bits:8,group:96 --layer-config up_proj=group:16 --ignore o_proj ";
  for (const std::string& command : {weight_only("--group-size 32 " + own), awq(own)}) {
    for (const std::string format : {"gptq", "compressed-tensors", "safetensors", "dequantized"}) {
      const json report = report_of(command + " --format " + format);
      for (const json& layer : report["layers"]) {
        const std::string name = layer["name"];
        const bool wide = name.ends_with("down_proj"), left = name.ends_with("o_proj");
        if (layer["kind"] != "linear") continue;
        EXPECT_EQ(layer["decision"], left ? "keep" : wide ? "int8" : "int4") << layer;
        if (left) {
          EXPECT_TRUE(contains(layer["reason"], "--ignore")) << layer;
        } else if (!layer["rounding"].is_null()) {
          EXPECT_EQ(layer["rounding"]["group_size"], wide ? 96 : name.ends_with("up_proj") ? 16 : 32);
        }
      }
      if (format != "dequantized") {
        EXPECT_EQ(run_mcompress("verify " + (folder_ / "out")).out, "nothing found; 12 packed layers\n");
      }
    }
  }
}

// Before any text is read.
TEST_F(PackedFormats, RefuseSettingsInThePlan) {
  const std::string missing = " --calib-data " + (folder_ / "missing.txt") + " ",
                    model = (folder_ / "model") + " --seqlen 64 --force -o " + (folder_ / "no") + missing;
  for (const std::string command : {"gptq ", "awq ", "quantize --mode weight-only "}) {
    expect_all({{command + model + "--group-size 32 --format awq --bits 3", 2,
                 "--format awq has no weights of 3 bits"},
                {command + model + "--group-size 32 --format gptq --bits 5", 2, "has no weights of 5 bits"},
                {command + model + "--format gguf", 2, "'mcompress convert --format gguf'"},
                {command + model + "--format awq", 2, "does not divide"},
                {command + model + "--group-size 32", 66, "missing.txt"}},
               folder_ / "no");
  }
}

TEST_F(PackedFormats, KeepTheOrderOfGroupsThatActOrderLeaves) {
  report_of("gptq " + (folder_ / "model") + " -o " + (folder_ / "ordered") +
            " --group-size 32 --no-static-groups --seqlen 64 --nsamples 20 --calib-data " +
            (folder_ / "text.txt"));
  report_of(convert("ordered", "again", "--format gptq"));
  EXPECT_EQ(bytes_of("again"), bytes_of("ordered"));
  EXPECT_EQ(run_mcompress("verify " + (folder_ / "again")).out, "nothing found; 14 packed layers\n");
  for (const char* format : {"awq", "compressed-tensors", "safetensors"})
    expect_all(
        {{convert("ordered", "no", std::string("--format ") + format), 2, "order of act-order (g_idx)"}},
        folder_ / "no");
  report_of(convert("ordered", "rounded", "--format compressed-tensors --allow-requantize"));
}

// The same codes have the same values, whatever they are packed in.
TEST_F(PackedFormats, KeepTheirCodesWhenConverted) {
  for (const std::string grid : {"--sym", "--asym"}) {
    report_of(weight_only("--group-size 32 --format gptq " + grid, "first"));
    const double expected = perplexity("first");
    std::string from = "first";
    for (const std::string to : {"awq", "safetensors", "compressed-tensors", "gptq", "compressed-tensors",
                                 "safetensors", "awq", "gptq"}) {
      const std::string output = from == "a" ? "b" : "a";
      const json report = report_of(convert(from, output, "--format " + to));
      EXPECT_EQ(report["output"]["format"], to);
      EXPECT_EQ(report["output"]["bytes"], report["size"]["predicted_bytes"]);
      EXPECT_EQ(perplexity(output), expected) << to;
      from = output;
    }
    EXPECT_EQ(bytes_of(from), bytes_of("first"));
    report_of(convert(from, "dense", "--format dequantized"));
    EXPECT_FALSE(config_of("dense").contains("quantization_config"));
    EXPECT_NEAR(perplexity("dense"), expected, 1e-4 * expected);
  }
}

// Codes of 3 bits are codes of 4, and those of 5 are of 8.
TEST_F(PackedFormats, KeepTheirValuesInWiderCodes) {
  for (const std::string grid : {" --sym", " --asym"}) {
    for (const auto& [bits, to, wide] : {std::tuple{"3", "awq", 4}, {"2", "awq", 4}, {"5", "gptq", 8}}) {
      report_of(weight_only("--group-size 32 --format compressed-tensors --bits " + std::string(bits) + grid,
                            "narrow"));
      const json report = report_of(convert("narrow", "wide", "--format " + std::string(to)));
      EXPECT_EQ(report["layers"][0]["decision"], "int" + std::to_string(wide));
      EXPECT_EQ(perplexity("wide"), perplexity("narrow")) << bits << grid;
      EXPECT_TRUE(run_mcompress("verify " + (folder_ / "wide") + " --against " + (folder_ / "model"))
                      .out.ends_with("nothing found; 14 packed layers\n"));
    }
  }
}

// A folder of compressed-tensors whose scales all become this number, in float32.
void set_scales(const std::string& path, float value) {
  const std::string file = read_file(path);
  uint64_t size = 0;
  std::memcpy(&size, file.data(), sizeof(size));
  json header = json::parse(file.substr(sizeof(size), size));
  const std::string data = file.substr(sizeof(size) + size);
  std::string changed;
  for (auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    const uint64_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
    std::string bytes = data.substr(begin, end - begin);
    if (name.ends_with(".weight_scale")) {
      const size_t count = tensor["shape"][0].get<size_t>() * tensor["shape"][1].get<size_t>();
      tensor["dtype"] = "F32";
      bytes.clear();
      for (size_t i = 0; i < count; ++i) bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    tensor["data_offsets"] = {changed.size(), changed.size() + bytes.size()};
    changed += bytes;
  }
  const std::string text = header.dump();
  size = text.size();
  write_file(path, std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text + changed);
}

TEST_F(PackedFormats, KeepScalesThatFloat16HasNot) {
  const std::string scales = folder_ / "wide/model.safetensors";
  report_of(weight_only("--group-size 32 --format compressed-tensors", "wide"));
  set_scales(scales, 0.125F);
  report_of(convert("wide", "same", "--format gptq"));
  EXPECT_EQ(perplexity("same"), perplexity("wide"));
  set_scales(scales, 0.1F);
  const double exact = perplexity("wide");
  report_of(convert("wide", "dense", "--format dequantized"));
  EXPECT_NEAR(perplexity("dense"), exact, 1e-5 * exact);
  expect_all({{convert("wide", "no", "--format gptq"), 2, "which rounds the scales"}}, folder_ / "no");
  const json report = report_of(convert("wide", "near", "--format gptq --allow-requantize"));
  EXPECT_EQ(report["layers"][0]["reason"], "its scales rounded to float16");
  EXPECT_NE(perplexity("near"), exact);
  EXPECT_NEAR(perplexity("near"), exact, 0.05 * exact);
  // Nothing is near this one, so that values are rounded anew.
  set_scales(scales, 4e-8F);
  expect_all({{convert("wide", "no", "--format gptq"), 2, "has no number near for; or pass --allow-requant"}},
             folder_ / "no");
  const json anew = report_of(convert("wide", "anew", "--format gptq --allow-requantize"));
  EXPECT_EQ(anew["layers"][0]["reason"], "rounded again, since the format has no place for its codes");
  set_scales(scales, 1e38F);
  expect_all({{convert("wide", "no", "--format dequantized"), 65, "values beyond float32"},
              {convert("wide", "no", "--format gptq --allow-requantize"), 65, ""}},
             folder_ / "no");
}

// Whose inputs are rounded too.
TEST_F(PackedFormats, BecomePlainFromEightBitsARow) {
  report_of("quantize " + (folder_ / "model") + " -o " + (folder_ / "rows"));
  const json report = report_of(convert("rows", "dense", "--format dequantized"));
  EXPECT_TRUE(contains(report["warnings"].dump(), "layers of the input round their inputs to 8 bits"));
  EXPECT_FALSE(config_of("dense").contains("quantization_config"));
  EXPECT_NEAR(perplexity("dense"), perplexity("rows"), 0.02 * perplexity("rows"));
  expect_all({{convert("rows", "no", "--format gptq"), 2, "which --format gptq has no place for"}},
             folder_ / "no");
}

// GPT-2 stores its layers the other way around, and its embeddings as all do.
TEST_F(PackedFormats, LeaveEmbeddingsOfGpt2AsTheyLie) {
  config_ = {
      {"model_type", "gpt2"}, {"vocab_size", 448}, {"n_embd", 16},       {"n_layer", 1},
      {"n_head", 2},          {"n_positions", 64}, {"n_inner", nullptr}, {"tie_word_embeddings", false}};
  tensors_.clear();
  const std::string block = "transformer.h.0.";
  const std::vector<std::tuple<std::string, size_t, size_t>> layers = {
      {"attn.c_attn", 16, 48}, {"attn.c_proj", 16, 16}, {"mlp.c_fc", 16, 64}, {"mlp.c_proj", 64, 16}};
  for (const auto& [layer, inputs, outputs] : layers) {
    add(block + layer, {inputs, outputs}, 0.3F);
    tensors_[block + layer + ".bias"] = {{outputs}, random_floats(outputs, 0.3F, outputs)};
  }
  for (const std::string& norm : {block + "ln_1", block + "ln_2", std::string("transformer.ln_f")}) {
    add(norm, {16}, 1);
    tensors_[norm + ".bias"] = {{16}, random_floats(16, 0.3F, 5)};
  }
  add("transformer.wte", {448, 16}, 1);
  add("transformer.wpe", {64, 16}, 1);
  add("lm_head", {448, 16}, 1);
  write_model();
  report_of("quantize " + (folder_ / "model") + " --embeddings -o " + (folder_ / "rows"));
  report_of(convert("rows", "dense", "--format dequantized"));
  EXPECT_NE(perplexity("rows"), perplexity("model"));
  EXPECT_NEAR(perplexity("dense"), perplexity("rows"), 1e-5 * perplexity("rows"));
}

TEST_F(PackedFormats, AreRoundedAgainOnlyWhenAsked) {
  report_of(weight_only("--group-size 32 --bits 8 --format gptq", "eight"));
  expect_all({{convert("eight", "no", "--format awq"), 2, "has no weights of 8 bits"},
              {convert("eight", "no", "--format awq"), 2, "--allow-requantize"},
              {convert("model", "no", "--format awq"), 2, "holds no packed layers"},
              {convert("eight", "eight", "--format gptq"), 73, "is the input"},
              {"convert " + (folder_ / "eight") + " --format gptq", 2, "needs -o"},
              {"convert " + shipped("fashion_mlp.pt") + " --format gptq -o " + (folder_ / "no"), 2,
               "convert takes the Hugging Face"}},
             folder_ / "no");
  // Whose last group is smaller, and whose first tensor is missing.
  report_of(weight_only("--group-size 64 --group-size-fallback tail", "tail"));
  EXPECT_EQ(run_mcompress("verify " + (folder_ / "tail")).out, "nothing found; 14 packed layers\n");
  report_of(convert("tail", "same", "--format gptq"));
  EXPECT_EQ(bytes_of("same"), bytes_of("tail"));
  std::filesystem::copy(folder_ / "tail", folder_ / "partly", std::filesystem::copy_options::recursive);
  std::string bytes = bytes_of("partly");
  bytes.replace(bytes.find("q_proj.qweight"), 14, "q_proj.qweighx");
  write_file(folder_ / "partly/model.safetensors", bytes);
  expect_all({{convert("tail", "no", "--format awq"), 2, "groups of one size"},
              {convert("partly", "no", "--format dequantized"), 65,
               "lacks 'model.layers.0.self_attn.q_proj.qweight'"},
              {convert("tail", "tail/in", "--format gptq"), 73, "inside the model's folder"},
              {convert("tail", "no", "--format gptq --type F16"), 2, "--type goes with --format gguf"},
              {weight_only("--group-size 99999999999", "no"), 2, "neither -1 nor from 1 to"}},
             folder_ / "no");
  const json report = report_of(convert("eight", "four", "--format awq --allow-requantize"));
  EXPECT_TRUE(contains(report["layers"][0]["reason"].get<std::string>(), "rounded again"));
  EXPECT_NEAR(perplexity("four"), perplexity("eight"), 0.1 * perplexity("eight"));
  const Outcome plan = run_mcompress("convert " + (folder_ / "eight") + " --format gptq --dry-run");
  EXPECT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_TRUE(contains(plan.out, "model.layers.1.mlp.down_proj")) << plan.out;
}

TEST_F(PackedFormats, RefuseWhatTheyHaveNoPlaceFor) {
  const std::string small = "--group-size 32 ";
  expect_all(
      {{weight_only(small + "--format awq --bits 8"), 2, "has no weights of 8 bits; use 4"},
       {weight_only(small + "--format gptq --bits 5"), 2, "has no weights of 5 bits; use 2, 3, 4 or 8"},
       {weight_only(small + "--format compressed-tensors --bits 9"), 2, "--bits"},
       {weight_only(small + "--layer-config down_proj=bits:9"), 2, "bits:9 is not from 2 to 8"},
       {weight_only("--group-size 64 --group-size-fallback tail --format awq"), 2, "groups of one size"},
       {weight_only("--group-size 64 --format awq"), 2, "does not divide"},
       {weight_only(small + "--format awq --layer-config down_proj=group:96"), 2, "one group size for all"},
       {weight_only(small + "--observer minmax"), 2, "--observer means nothing with --mode weight-only"},
       {weight_only(small + "--format int3"), 2, "int3"},
       {"quantize " + (folder_ / "model") + " -o " + (folder_ / "out") + " --bits 4 --group-size 32", 2,
        "--group-size goes with --mode weight-only"},
       {"quantize " + shipped("state_dicts/plain.pt") + " -o " + (folder_ / "out") + " --mode weight-only", 2,
        "takes a Hugging Face folder or TorchScript"},
       {weight_only(small + "--format torchscript"), 2, "--format torchscript goes with TorchScript"},
       {awq("--format torchscript"), 2, "--format torchscript goes with TorchScript"},
       {awq("--format awq --bits 3"), 2, "has no weights of 3 bits"},
       {awq("--lm-head"), 2, "its embedding"},
       {"awq " + shipped("state_dicts/plain.pt") + " --calib-data x -o " + (folder_ / "out"), 2,
        "which awq cannot run"},
       {"awq " + (folder_ / "model") + " -o " + (folder_ / "out"), 2, "awq needs --calib-data"}},
      folder_ / "out");
}

// In any width, and with less error the more bits they have.
TEST_F(PackedFormats, HaveTwoToEightBits) {
  double before = 0;
  for (int bits = 2; bits <= 8; ++bits) {
    const std::string options = "--group-size 32 --bits " + std::to_string(bits);
    const json report = report_of(weight_only(options + " --format compressed-tensors", "packed"));
    EXPECT_EQ(report["warnings"].size(), bits == 4 || bits == 8 ? 0U : 1U) << report["warnings"];
    report_of(convert("packed", "dense", "--format dequantized"));
    report_of(weight_only(options + " --format dequantized", "plain"));
    EXPECT_NEAR(perplexity("dense"), perplexity("plain"), 1e-3 * perplexity("plain"));  // the rest in float16
    for (const json& layer : report["layers"]) {
      if (layer["name"] != "model.layers.0.mlp.up_proj") continue;
      EXPECT_GT(layer["sqnr_db"].get<double>(), before + 4) << bits;
      before = layer["sqnr_db"];
    }
    EXPECT_EQ(run_mcompress("verify " + (folder_ / "packed")).out, "nothing found; 14 packed layers\n");
  }
}

// An embedding that is no head is packed apart from the linear layers, by every method.
// Without its head a model is saved without the name of its body.
TEST_F(PackedFormats, TakeAModelWithoutItsHead) {
  const std::string model =
      "quantize " + shipped("decoders/gpt2") + " --mode weight-only --force --group-size 16 ";
  const json report = report_of(model + "--format dequantized -o " + (folder_ / "values"));
  EXPECT_EQ(report["layers"][0]["name"], "h.0.attn.c_attn");
  expect_all({{model + "--format safetensors -o " + (folder_ / "no"), 2, "readers know no Conv1D layers"}},
             folder_ / "no");
}

TEST_F(PackedFormats, HoldEmbeddings) {
  const std::string packed = "--group-size 32 --format compressed-tensors ";
  expect_all({{weight_only(packed + "--embeddings 8"), 2, "is its output layer too"},
              {weight_only(packed + "--embeddings 5"), 2, "--embeddings"},
              {awq("--embeddings --format compressed-tensors"), 2, "--format gguf"},
              {weight_only("--group-size 32 --embeddings 4"), 2, "--format gptq has no embeddings"},
              {awq("--embeddings 4 --format awq"), 2, "--format awq has no embeddings"},
              {"quantize " + (folder_ / "model") + " -o " + (folder_ / "out") + " --embeddings 4", 2,
               "--embeddings 4 goes with --mode weight-only"},
              {"gptq " + shipped("fashion_mlp.pt") + " --embeddings --calib-data x -o " + (folder_ / "out"),
               2, "--embeddings is for language models"}},
             folder_ / "out");
  // As plain values a tied one may be rounded.
  const double exact = perplexity("model");
  report_of(weight_only("--group-size 32 --bits 8 --embeddings 4 --format dequantized", "tied"));
  EXPECT_NE(perplexity("tied"), exact);
  config_["tie_word_embeddings"] = false;
  add("lm_head", {448, 64}, 1);
  write_model();
  expect_all({{weight_only(packed + "--embeddings 4"), 2, "has embeddings of 8 bits, and none of 4"},
              {weight_only(packed + "--embeddings 8 --asym"), 2, "beside layers with zero points"}},
             folder_ / "no");
  const auto sqnr = [](const json& report) {
    for (const json& layer : report["layers"]) {
      if (layer["name"] == "model.embed_tokens" && layer["decision"] != "keep")
        return layer["sqnr_db"].get<double>();
    }
    return 0.0;
  };
  const std::string text = "--seqlen 64 --nsamples 20 --calib-data " + (folder_ / "text.txt") + " ";
  for (const std::string& command :
       {weight_only(packed + "--embeddings 8"), weight_only(packed + text + "--embeddings=8"),
        awq("--format compressed-tensors --embeddings 8"),
        "gptq " + (folder_ / "model") + " -o " + (folder_ / "out") + " --force --embeddings 8 " + packed +
            text}) {
    const json report = report_of(command);
    EXPECT_GT(sqnr(report), 35) << command;
    EXPECT_EQ(report["output"]["bytes"], report["size"]["predicted_bytes"]) << command;
    const json groups = config_of("out")["quantization_config"]["config_groups"];
    EXPECT_EQ(groups["group_0"]["targets"], json::array({"Linear"}));
    EXPECT_EQ(groups["group_1"]["targets"], json::array({"model.embed_tokens"}));
    EXPECT_EQ(groups["group_1"]["weights"]["num_bits"], 8);
    EXPECT_EQ(groups["group_1"]["format"], "int-quantized");
    EXPECT_TRUE(run_mcompress("verify " + (folder_ / "out") + " --against " + (folder_ / "model"))
                    .out.ends_with("nothing found; 15 packed layers\n"));
    EXPECT_EQ(report_of("inspect " + (folder_ / "out"))["input"]["parameters"],
              report["input"]["parameters"]);
  }
  const double packed_perplexity = perplexity("out");
  expect_all({{convert("out", "no", "--format gptq"), 2, "--format gptq has no embeddings"},
              {convert("out", "no", "--format awq --allow-requantize"), 2, "--format awq has no embeddings"}},
             folder_ / "no");
  report_of(convert("out", "plain", "--format safetensors"));
  EXPECT_EQ(run_mcompress("verify " + (folder_ / "plain")).out, "nothing found; 15 packed layers\n");
  EXPECT_EQ(perplexity("plain"), packed_perplexity);
  report_of(convert("plain", "again", "--format compressed-tensors"));
  EXPECT_EQ(bytes_of("again"), bytes_of("out"));
  report_of(convert("out", "dense", "--format dequantized"));
  EXPECT_NEAR(perplexity("dense"), packed_perplexity, 1e-4 * packed_perplexity);
  // Where values are written, they are the same ones.
  report_of("gptq " + (folder_ / "model") + " -o " + (folder_ / "values") +
            " --force --embeddings 8 --group-size 32 --format dequantized " + text);
  EXPECT_NEAR(perplexity("values"), packed_perplexity, 0.05 * packed_perplexity);
  // Dynamic int8 rounds inputs of linear layers, and the embedding beside them.
  const std::string dynamic = "quantize " + (folder_ / "model") + " --force -o ";
  report_of(dynamic + (folder_ / "plain8"));
  report_of(dynamic + (folder_ / "int8") + " --embeddings");
  EXPECT_EQ(config_of("int8")["quantization_config"]["config_groups"]["group_1"]["targets"],
            json::array({"model.embed_tokens"}));
  EXPECT_LT(bytes_of("int8").size(), 0.8 * static_cast<double>(bytes_of("plain8").size()));
  EXPECT_NEAR(perplexity("int8"), perplexity("plain8"), 0.05 * perplexity("plain8"));
  EXPECT_EQ(
      run_mcompress("quantize --embeddings " + (folder_ / "model") + " --force -o " + (folder_ / "int8"))
          .exit_code,
      0);
}

// A copy of a head that is tied follows its embedding.
TEST_F(PackedFormats, RoundATiedHeadWithItsEmbedding) {
  tensors_["lm_head.weight"] = tensors_.at("model.embed_tokens.weight");
  write_model();
  const std::string options = "--group-size 32 --embeddings 4 --format dequantized ";
  report_of(weight_only(options, "nearest"));
  EXPECT_GT(perplexity("nearest"), 1);
  report_of("gptq " + (folder_ / "model") + " -o " + (folder_ / "gptq") + " --force " + options +
            "--seqlen 64 --nsamples 20 --calib-data " + (folder_ / "text.txt"));
  EXPECT_GT(perplexity("gptq"), 1);
}

TEST_F(PackedFormats, TakeAnyModelWithMatrices) {
  config_ = {{"model_type", "bert"}};
  write_model();
  const json both = report_of(weight_only("--group-size 32 --embeddings --format compressed-tensors"));
  EXPECT_EQ(both["layers"][0]["name"], "model.embed_tokens");
  EXPECT_EQ(both["layers"][0]["decision"], "int8");
  EXPECT_TRUE(contains(both["warnings"].dump(), "where this model's output layer is its embedding"));
  const json report = report_of(weight_only("--group-size 32 --format compressed-tensors"));
  EXPECT_TRUE(contains(report["warnings"][0].get<std::string>(), "every matrix counts"));
  const json inspected = report_of("inspect " + (folder_ / "out"));
  EXPECT_EQ(inspected["input"]["parameters"], report["input"]["parameters"]);
  config_["quantization_config"] = {{"quant_method", "bitsandbytes"}};
  write_model();
  expect_all({{weight_only("--group-size 32", "no"), 65, "bitsandbytes"}}, folder_ / "no");
}

}  // namespace
}  // namespace mcompress::testing
