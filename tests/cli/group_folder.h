#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cli/run_mcompress.h"

namespace mcompress::testing {

// Numbers about 0 that are the same everywhere.
inline std::string random_floats(size_t count, float size, uint64_t seed) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    const float value = size * (static_cast<float>(seed >> 40U) / static_cast<float>(1U << 23U) - 1);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return bytes;
}

// A llama of two blocks, 64 wide with 96 inner features, so that GPTQ's format takes its layers.
class GroupFolder : public ::testing::Test {
 protected:
  GroupFolder() {
    std::filesystem::create_directory(folder_ / "model");
    config_ = {{"model_type", "llama"},
               {"architectures", {"LlamaForCausalLM"}},
               {"vocab_size", 448},
               {"hidden_size", 64},
               {"intermediate_size", 96},
               {"num_hidden_layers", 2},
               {"num_attention_heads", 4},
               {"num_key_value_heads", 2},
               {"max_position_embeddings", 128},
               {"tie_word_embeddings", true},
               {"dtype", "float32"}};
    add("model.embed_tokens", {448, 64}, 1);
    add("model.norm", {64}, 1);
    for (const std::string block : {"model.layers.0.", "model.layers.1."}) {
      add(block + "input_layernorm", {64}, 1);
      add(block + "post_attention_layernorm", {64}, 1);
      for (const char* layer : {"q_proj", "o_proj"}) add(block + "self_attn." + layer, {64, 64}, 0.3F);
      for (const char* layer : {"k_proj", "v_proj"}) add(block + "self_attn." + layer, {32, 64}, 0.3F);
      for (const char* layer : {"gate_proj", "up_proj"}) add(block + "mlp." + layer, {96, 64}, 0.3F);
      add(block + "mlp.down_proj", {64, 96}, 0.3F);
    }
    std::filesystem::copy(shipped("tokenizers/gpt2.json"), folder_ / "model/tokenizer.json");
    write_file(folder_ / "model/LICENSE", "free\n");
    std::string text;
    for (int i = 0; i < 600; ++i)
      text += "The quick brown fox " + std::to_string(i * i % 97) + " is told of " + std::to_string(i) +
              " times.\n";
    write_file(folder_ / "text.txt", text);
    write_model();
  }

  void add(const std::string& layer, const std::vector<size_t>& shape, float size) {
    size_t count = 1;
    for (const size_t n : shape) count *= n;
    tensors_[layer + ".weight"] = {shape, random_floats(count, size, tensors_.size() + 1)};
  }

  void write_model() const {
    nlohmann::json header = nlohmann::json::object();
    std::string data;
    for (const auto& [name, tensor] : tensors_) {
      header[name] = {{"dtype", "F32"},
                      {"shape", tensor.first},
                      {"data_offsets", {data.size(), data.size() + tensor.second.size()}}};
      data += tensor.second;
    }
    const std::string text = header.dump();
    const uint64_t size = text.size();
    write_file(folder_ / "model/model.safetensors",
               std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text + data);
    write_file(folder_ / "model/config.json", config_.dump());
  }

  nlohmann::json config_of(const std::string& output) const {
    return nlohmann::json::parse(read_file(folder_ / (output + "/config.json")));
  }
  std::string bytes_of(const std::string& output) const {
    return read_file(folder_ / (output + "/model.safetensors"));
  }
  double perplexity(const std::string& output) const {
    return report_of("evaluate " + (folder_ / output) + " --eval-data " + (folder_ / "text.txt") +
                     " --seqlen 64 --windows 20")["metrics"]["before"]["perplexity"]["value"];
  }

  TemporaryFolder folder_;
  nlohmann::json config_;
  std::map<std::string, std::pair<std::vector<size_t>, std::string>> tensors_;
};

}  // namespace mcompress::testing
