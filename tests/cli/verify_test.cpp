#include <cmath>
#include <cstring>

#include "cli/group_folder.h"
#include "cli/safetensors_file.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

const std::string kLayer = "model.layers.1.mlp.down_proj";

class Verify : public GroupFolder {
 protected:
  std::string make(const std::string& output, const std::string& options) const {
    report_of("quantize " + (folder_ / "model") + " --mode weight-only --group-size 32 --force -o " +
              (folder_ / output) + " " + options);
    return folder_ / output;
  }

  // Copies a valid folder and plants a fault in it.
  using Change = std::function<void(Tensors& tensors, json& config)>;
  std::string planted(const std::string& valid, const Change& change) const {
    const std::string faulty = folder_ / "faulty";
    std::filesystem::remove_all(faulty);
    std::filesystem::copy(valid, faulty, std::filesystem::copy_options::recursive);
    Tensors tensors(faulty + "/model.safetensors");
    json config = json::parse(read_file(faulty + "/config.json"));
    change(tensors, config);
    tensors.write(faulty + "/model.safetensors");
    write_file(faulty + "/config.json", config.dump());
    if (std::filesystem::exists(faulty + "/quantize_config.json"))
      write_file(faulty + "/quantize_config.json",
                 config.value("quantization_config", json::object()).dump());
    return faulty;
  }

  void expect_found(const std::string& faulty, const std::string& words, const std::string& options = "") {
    const Outcome run = run_mcompress("verify " + faulty + " " + options);
    EXPECT_EQ(run.exit_code, 65) << words << "\n" << run.out << run.err;
    EXPECT_TRUE(contains(run.out, words)) << words << "\n" << run.out << run.err;
    ++faults_;
  }

  int faults_ = 0;
};

void set_half(std::string& bytes, uint16_t value) { std::memcpy(bytes.data(), &value, sizeof(value)); }
void set_word(std::string& bytes, size_t at, uint32_t value) {
  std::memcpy(bytes.data() + at * sizeof(value), &value, sizeof(value));
}

TEST_F(Verify, FindsEveryPlantedFault) {
  const std::string gptq = make("gptq", "--format gptq"), awq = make("awq", "--format awq"),
                    packed = make("packed", "--format compressed-tensors --asym"),
                    zeros = make("zeros", "--format gptq --asym");
  for (const std::string& valid : {gptq, awq, packed, zeros}) {
    const Outcome run = run_mcompress("verify " + valid + " --against " + (folder_ / "model"));
    EXPECT_EQ(run.exit_code, 0) << run.out << run.err;
    EXPECT_TRUE(contains(run.out, "model.layers.1.mlp.down_proj: ") &&
                contains(run.out, " dB beside the original\n"));
    EXPECT_TRUE(run.out.ends_with("\nnothing found; 14 packed layers\n")) << run.out;
  }
  const auto with_config = [&](const std::string& valid, const std::string& key, const json& value) {
    return planted(valid, [&](Tensors&, json& config) { config["quantization_config"][key] = value; });
  };
  const auto with = [&](const std::string& valid, const std::string& part,
                        const std::function<void(Tensors::Tensor&)>& change) {
    return planted(valid, [&](Tensors& tensors, json&) { change(tensors.all.at(kLayer + part)); });
  };
  const auto without = [&](const std::string& valid, const std::vector<std::string>& names) {
    return planted(valid, [&](Tensors& tensors, json&) {
      for (const std::string& name : names) tensors.all.erase(name);
    });
  };

  // The configuration against the tensors.
  expect_found(with_config(gptq, "bits", 8), "its tensors are of 4 bits, and quantization_config says 8");
  expect_found(with_config(gptq, "group_size", 64), "a group_size of 64 makes 2 of its 96 channels");
  expect_found(with_config(gptq, "checkpoint_format", "gptq_v2"), "qzeros are those of gptq");
  expect_found(with_config(gptq, "quant_method", "awq"), "the tensors are those of gptq");
  expect_found(with_config(gptq, "quant_method", "squeeze"), "weights of 'squeeze'");
  expect_found(with_config(zeros, "sym", true), "its zero points are not the middle");
  expect_found(with_config(awq, "group_size", 16), "a group_size of 16");
  expect_found(with_config(packed, "ignore", json::array({"lm_head", kLayer})),
               "is packed, and quantization_config ignores it");
  expect_found(planted(gptq, [](Tensors&, json& config) { config.erase("quantization_config"); }),
               "no quantization_config");
  {
    const std::string faulty = planted(gptq, [](Tensors&, json&) {});
    json second = json::parse(read_file(faulty + "/quantize_config.json"));
    second["group_size"] = 128;
    write_file(faulty + "/quantize_config.json", second.dump());
    expect_found(faulty, "quantize_config.json: 'group_size' is 128, and in config.json 32");
  }

  // Layers that are left out, and not as the configuration says.
  const std::string ignores = kLayer + ": is packed, and quantization_config ignores it",
                    takes = kLayer + ": is not packed, and quantization_config does not ignore it";
  expect_found(with_config(gptq, "dynamic", {{"-:.*down_proj", json::object()}}), ignores);
  expect_found(with_config(gptq, "modules_in_block_to_quantize", {{"self_attn.q_proj"}, {"mlp.up_proj"}}),
               ignores);
  expect_found(with_config(awq, "modules_to_not_convert", {"lm_head", "down_proj"}), ignores);
  for (const auto& [form, key] : {std::pair("gptq", "dynamic"), {"awq", "modules_to_not_convert"}}) {
    const std::string some = make("some", std::string("--ignore layers.1.mlp.down_proj --format ") + form);
    EXPECT_EQ(run_mcompress("verify " + some).exit_code, 0);
    expect_found(with_config(some, key, json()), takes);
  }
  const auto expect_nothing = [](const std::string& folder) {
    const Outcome run = run_mcompress("verify " + folder);
    EXPECT_EQ(run.exit_code, 0) << run.out;
  };
  // AutoAWQ looks for this anywhere in a name, and transformers for the whole name of a module.
  expect_nothing(with_config(awq, "modules_to_not_convert", {"lm_head", "mlp.down"}));
  // Of GPTQModel's overrides the first of the file counts.
  {
    const std::string some = make("first", "--ignore layers.0. --format gptq");
    std::filesystem::remove(some + "/quantize_config.json");
    auto config = nlohmann::ordered_json::parse(read_file(some + "/config.json"));
    auto& quantization = config["quantization_config"];
    quantization.erase("modules_in_block_to_quantize");
    quantization["dynamic"] = nlohmann::ordered_json::object();
    quantization["dynamic"]["-:.*layers\\.0\\."] = nlohmann::ordered_json::object();
    quantization["dynamic"]["+:.*down_proj"] = {{"bits", 4}, {"sym", true}};
    quantization["sym"] = false;
    write_file(some + "/config.json", config.dump());
    expect_nothing(some);
  }
  expect_found(with_config(gptq, "lm_head", true), "lm_head: is not packed, and 'lm_head' is true");
  const std::string ranges = make("ranges", "--format awq --asym");
  expect_found(with_config(ranges, "zero_point", false), "'zero_point' says that there are none");
  expect_found(planted(awq,
                       [](Tensors&, json& config) {
                         json& quantization = config["quantization_config"];
                         quantization.erase("group_size");
                         quantization["q_group_size"] = 16;
                       }),
               "a group_size of 16");

  // Keys of another type.
  expect_found(with_config(gptq, "dynamic", "none"), "'dynamic' is \"none\", and readers expect an object");
  expect_found(with_config(gptq, "sym", 1), "'sym' is 1, and readers expect true or false");
  expect_found(with_config(gptq, "desc_act", json()), "lacks 'desc_act', which readers need");
  expect_found(with_config(gptq, "damp_percent", "1%"), "readers expect a number");
  expect_found(with_config(awq, "group_size", "32"),
               "'group_size' is \"32\", and readers expect a whole number");
  expect_found(with_config(awq, "modules_to_not_convert", "lm_head"), "readers expect a list");
  expect_found(with_config(packed, "ignore", "lm_head"), "readers expect a list");
  expect_found(planted(packed,
                       [](Tensors&, json& config) {
                         config["quantization_config"]["config_groups"]["group_0"]["targets"] = "Linear";
                       }),
               "config_groups.group_0: 'targets' is \"Linear\", and readers expect a list");
  expect_found(planted(packed,
                       [](Tensors&, json& config) {
                         config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] =
                             16;
                       }),
               "a group_size of 16");

  // Tensors of one layer.
  expect_found(with(gptq, ".scales", [](auto& t) { set_half(t.bytes, 0x7E00); }), "NaN or infinite");
  expect_found(with(gptq, ".scales", [](auto& t) { set_half(t.bytes, 0); }), "1 of its scales are 0");
  expect_found(with(gptq, ".scales",
                    [](auto& t) {
                      const std::string tiny("\x5F\x70\x89\x30", 4);  // 1e-9
                      t.dtype = "F32";
                      t.bytes.clear();
                      for (int i = 0; i < t.shape[0] * t.shape[1]; ++i) t.bytes += tiny;
                    }),
               "of its scales are infinite or 0 in float16");
  expect_found(with(gptq, ".g_idx", [](auto& t) { set_word(t.bytes, 0, 77); }),
               "a group outside the 3 of scales");
  expect_found(
      with(gptq, ".g_idx",
           [](auto& t) { std::swap_ranges(t.bytes.begin(), t.bytes.begin() + 4, t.bytes.end() - 4); }),
      "g_idx is not in the order of channels");
  expect_found(with(gptq, ".qzeros",
                    [](auto& t) {
                      for (size_t i = 0; i < t.bytes.size() / 4; ++i) set_word(t.bytes, i, 0x88888888U);
                    }),
               "its zero points are 9 in place of 8: qzeros are those of gptq_v2");
  expect_found(with(gptq, ".qweight",
                    [](auto& t) {
                      t.shape[0] /= 2;
                      t.bytes.resize(t.bytes.size() / 2);
                    }),
               "qzeros is [3, 8]");
  expect_found(with(packed, ".weight_shape", [](auto& t) { t.bytes[0] = 1; }), "weight_shape is [1, 96]");
  expect_found(with(packed, ".weight_scale",
                    [](auto& t) {
                      t.shape[1] = 1;
                      t.bytes.resize(t.bytes.size() / 3);
                    }),
               "weight_zero_point is");

  // Tensors that are missing or left over.
  expect_found(without(gptq, {kLayer + ".qzeros"}), "lacks '" + kLayer + ".qzeros'");
  expect_found(without(gptq, {kLayer + ".qweight"}), kLayer + ".scales: is left over");
  expect_found(without(awq, {"model.norm.weight"}), "lacks tensor 'model.norm.weight'");
  expect_found(
      planted(gptq, [](Tensors& tensors,
                       json&) { tensors.all["model.more.weight"] = tensors.all.at("model.norm.weight"); }),
      "'model.more.weight'");
  expect_found(
      planted(gptq, [](Tensors& tensors,
                       json&) { tensors.all[kLayer + ".weight"] = tensors.all.at("model.norm.weight"); }),
      "has both a '.qweight' and a '.weight'");
  expect_found(planted(awq, [](Tensors& tensors,
                               json&) { set_half(tensors.all.at("model.norm.weight").bytes, 0x7C00); }),
               "model.norm.weight: has 1 values that are NaN or infinite");
  {
    const std::string sharded = make("sharded", "--format gptq --max-shard-size 32KiB");
    EXPECT_EQ(run_mcompress("verify " + sharded).exit_code, 0);
    const std::string index = read_file(sharded + "/model.safetensors.index.json");
    json moved = json::parse(index);
    json &first = moved["weight_map"][kLayer + ".scales"],
         &other = moved["weight_map"]["model.embed_tokens.weight"];
    EXPECT_NE(first, other);
    first = other;
    write_file(sharded + "/model.safetensors.index.json", moved.dump());
    expect_found(sharded, kLayer + ".scales");
    write_file(sharded + "/model.safetensors.index.json", index);
    std::filesystem::remove(
        sharded + "/model-00002-of-" +
        read_file(sharded + "/model.safetensors.index.json")
            .substr(read_file(sharded + "/model.safetensors.index.json").find("-of-") + 4, 5) +
        ".safetensors");
    expect_found(sharded, "model-00002-of-");
  }

  // Values that are well formed, and not those of the original.
  const std::string against = "--against " + (folder_ / "model");
  const auto reversed = [](auto& t) {
    for (size_t i = 0; i + 4 <= t.bytes.size(); i += 4)
      std::reverse(t.bytes.begin() + i, t.bytes.begin() + i + 4);
  };
  expect_found(with(gptq, ".qweight", reversed), "look wrong", against);
  expect_found(with(awq, ".qweight", reversed), "look wrong", against);
  // By one row of 96 codes.
  expect_found(with(packed, ".weight_packed",
                    [](auto& t) { std::rotate(t.bytes.begin(), t.bytes.begin() + 48, t.bytes.end()); }),
               "look wrong", against);
  EXPECT_GE(faults_, 20);
}

TEST_F(Verify, LooksIntoCodesThatAreNotPacked) {
  for (const std::string options : {"--sym", "--asym", "--bits 2", "--bits 5", "--bits 8"}) {
    const std::string valid = make("valid", "--format safetensors " + options);
    EXPECT_TRUE(run_mcompress("verify " + valid + " --against " + (folder_ / "model"))
                    .out.ends_with("nothing found; 14 packed layers\n"))
        << options;
  }
  const std::string valid = make("asymmetric", "--format safetensors --asym");
  tensors_[kLayer + ".weight"].second.assign(size_t{64} * 96 * 4, '\0');
  write_model();
  const std::string zeros = make("zeros", "--format safetensors --bits 8");
  EXPECT_EQ(run_mcompress("verify " + zeros).out, "nothing found; 14 packed layers\n");
  report_of("quantize " + (folder_ / "model") +
            " --mode weight-only --group-size -1 --format safetensors --force -o " + (folder_ / "rows"));
  EXPECT_EQ(run_mcompress("verify " + (folder_ / "rows")).out, "nothing found; 14 packed layers\n");
  const auto fault = [&](const std::string& words, const Change& change) {
    expect_found(planted(valid, change), words);
  };
  fault("codes or zero points from -8 to 100, and 4 bits are from -8 to 7",
        [](Tensors& t, json&) { t.all[kLayer + ".weight"].bytes[9] = 100; });
  fault("codes or zero points from -50 to 7",
        [](Tensors& t, json&) { t.all[kLayer + ".weight_zero_point"].bytes[3] = static_cast<char>(-50); });
  fault("lacks '" + kLayer + ".weight_scale'",
        [](Tensors& t, json&) { t.all.erase(kLayer + ".weight_scale"); });
  fault("lacks codes in I8, '" + kLayer + ".weight'",
        [](Tensors& t, json&) { t.all[kLayer + ".weight"].dtype = "U8"; });
  fault("its zero points are not the middle, and quantization_config says symmetric",
        [](Tensors&, json& config) {
          config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = true;
        });
  fault("has no zero points, and quantization_config says that it is not symmetric",
        [](Tensors& t, json&) { t.all.erase(kLayer + ".weight_zero_point"); });
  fault("it has 3 groups, and a group_size of 64 makes 2", [](Tensors&, json& config) {
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 64;
  });
  fault("the tensors are those of safetensors",
        [](Tensors&, json& config) { config["quantization_config"]["format"] = "pack-quantized"; });
  fault("is packed, and quantization_config ignores it",
        [](Tensors&, json& config) { config["quantization_config"]["ignore"] = {kLayer}; });
}

// Whose layers round their inputs too.
TEST_F(Verify, LooksIntoRowsOfEightBits) {
  const std::string rows = folder_ / "rows";
  report_of("quantize " + (folder_ / "model") + " -o " + rows);
  EXPECT_TRUE(run_mcompress("verify " + rows + " --against " + (folder_ / "model"))
                  .out.ends_with("nothing found; 14 packed layers\n"));
  const auto with_scale = [&](const std::string& value) {
    return planted(rows, [&](Tensors& tensors, json&) {
      tensors.all.at(kLayer + ".weight_scale").bytes.replace(0, 4, value);
    });
  };
  expect_found(with_scale(std::string(4, '\0')), "1 of its scales are 0");
  expect_found(with_scale("\x99\x76\x96\x7e"), "give values beyond float32");
}

TEST_F(Verify, TellsOfFilesAndInJson) {
  const std::string gptq = make("gptq", "--format gptq");
  const Outcome run = run_mcompress("verify " + gptq + " --json --against " + (folder_ / "model"));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const json found = json::parse(run.out);
  EXPECT_EQ(found["checked"], 14);
  EXPECT_EQ(found["findings"].size(), 0);
  ASSERT_EQ(found["layers"].size(), 14);
  for (const json& layer : found["layers"]) EXPECT_GT(layer["sqnr_db"].get<double>(), 15);
  const std::string faulty =
      planted(gptq, [](Tensors&, json& config) { config["quantization_config"]["bits"] = 2; });
  const Outcome report = run_mcompress("verify " + faulty + " --report -");
  EXPECT_EQ(report.exit_code, 65);
  const json document = json::parse(report.out);
  EXPECT_EQ(schema_violations(report.out), "");
  EXPECT_EQ(document["findings"].size(), 14);
  EXPECT_EQ(document["exit_code"], 65);
  EXPECT_EQ(run_mcompress("verify " + shipped("fashion_mlp.pt")).out, "nothing found; 0 packed layers\n");
  expect_all({{"verify " + shipped("fashion_mlp.pt") + " --against " + gptq, 2, "--against is for folders"},
              {"verify " + gptq + " --json --report -", 2, "both want stdout"},
              {"verify " + (folder_ / "none"), 66, "No such file"},
              {"verify " + gptq + " --against " + (folder_ / "none"), 66, "No such file"}});
}

}  // namespace
}  // namespace mcompress::testing
