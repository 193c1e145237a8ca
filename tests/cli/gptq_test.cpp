#include <cmath>

#include "cli/group_folder.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

class GptqFolder : public GroupFolder {
 protected:
  std::string gptq(const std::string& options, const std::string& output = "out") const {
    std::string run = "gptq " + (folder_ / "model") + " -o " + (folder_ / output) + " " + options + " ";
    for (const std::string& usual :
         std::vector<std::string>{"--group-size 32 ", "--seqlen 64 ", "--nsamples 20 ",
                                  "--calib-data " + (folder_ / "text.txt") + " "}) {
      if (!contains(run, usual.substr(0, usual.find(' ') + 1))) run += usual;
    }
    return run;
  }
};

TEST_F(GptqFolder, HasEveryLayerRoundedAndReported) {
  const json report =
      report_of(gptq("--eval-data " + (folder_ / "text.txt") + " --eval-seqlen 64 --windows 10"));
  int layers = 0;
  for (const json& layer : report["layers"]) {
    if (layer["name"] == "model.embed_tokens") {
      EXPECT_EQ(layer["reason"], "embeddings are left alone without --embeddings");
      continue;
    }
    ++layers;
    EXPECT_EQ(layer["decision"], "int4") << layer;
    const json& rounding = layer["rounding"];
    EXPECT_EQ(rounding["group_size"], 32);
    EXPECT_LT(rounding["loss"].get<double>(), rounding["rounded_loss"].get<double>()) << layer;
    EXPECT_EQ(rounding["damping"], 0.01);
    EXPECT_GT(layer["sqnr_db"].get<double>(), 8);
  }
  EXPECT_EQ(layers, 14);
  const json& calibration = report["calibration"];
  EXPECT_EQ(calibration["samples"], 20);
  EXPECT_EQ(calibration["length"], 64);
  EXPECT_EQ(calibration["weights"], 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96));
  // 4 bits, a scale of 16 and a zero point of 4 for 32 weights, and a group index for each input.
  EXPECT_NEAR(calibration["bits_per_weight"].get<double>(), 4 + 20.0 / 32, 0.6);
  EXPECT_EQ(report["output"]["bytes"], report["size"]["predicted_bytes"]);
  EXPECT_EQ(report["output"]["parameters"], report["input"]["parameters"]);
  EXPECT_GT(report["size"]["ratio_to_bf16"].get<double>(), 1);
  EXPECT_GT(report["comparison"]["reference"]["kl_divergence"]["mean"].get<double>(), 0);
  EXPECT_EQ(read_file(folder_ / "out/LICENSE"), "free\n");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.checkpoint"));

  const json config = config_of("out");
  EXPECT_EQ(config["dtype"], "float16");
  const json quantization = config["quantization_config"];
  EXPECT_EQ(quantization, json::parse(read_file(folder_ / "out/quantize_config.json")));
  const json expected = {{"quant_method", "gptq"},     {"bits", 4},   {"group_size", 32},
                         {"desc_act", false},          {"sym", true}, {"lm_head", false},
                         {"checkpoint_format", "gptq"}};
  for (const auto& [key, value] : expected.items()) EXPECT_EQ(quantization[key], value) << key;
  EXPECT_FALSE(quantization.contains("dynamic"));

  const json seen = json::parse(run_mcompress("inspect --json " + (folder_ / "out")).out);
  EXPECT_EQ(seen["language_model"]["quantization"], "gptq, 4 bits, group size 32");
  EXPECT_EQ(seen["language_model"]["commands"][0], "evaluate");
  EXPECT_FALSE(contains(seen["language_model"]["commands"].dump(), "gptq"));
  EXPECT_EQ(seen["parameters"], report["input"]["parameters"]);
  const json evaluated = report_of("evaluate " + (folder_ / "out") + " --eval-data " +
                                   (folder_ / "text.txt") + " --seqlen 64 --windows 10");
  EXPECT_EQ(evaluated["metrics"]["before"]["perplexity"]["value"],
            report["metrics"]["after"]["perplexity"]["value"]);
  EXPECT_EQ(evaluated["input"]["parameters"], report["input"]["parameters"]);
}

TEST_F(GptqFolder, HasTheSameBytesForAnyThreadCountAndWay) {
  run_mcompress(gptq("--threads 1", "one"));
  run_mcompress(gptq("--threads 2", "two"));
  EXPECT_FALSE(bytes_of("one").empty());
  EXPECT_EQ(bytes_of("one"), bytes_of("two"));
  for (const std::string compute : {"fp32", "bf16", "int8"}) {
    const json report = report_of(gptq("--threads 1 --force --calib-compute " + compute, "first"));
    EXPECT_EQ(report["calibration"]["compute"].get<std::string>().substr(0, 4) == "int8", compute == "int8");
    report_of(gptq("--threads 2 --force --calib-compute " + compute, "second"));
    EXPECT_EQ(bytes_of("first"), bytes_of("second")) << compute;
  }
  // And is another one with other settings.
  for (const std::string other :
       {"--no-act-order", "--no-true-sequential", "--no-mse", "--sweeps 0", "--asym", "--damp-percent 0.1",
        "--nsamples 19", "--calib-compute fp32 --no-mse"}) {
    EXPECT_EQ(run_mcompress(gptq(other + " --force", "other")).exit_code, 0) << other;
    EXPECT_NE(bytes_of("one"), bytes_of("other")) << other;
  }
}

TEST_F(GptqFolder, GoesOnWhereItWasStoppedToTheSameBytes) {
  const std::string slow = "--calib-data random-tokens --nsamples 4000 --threads 1 --calib-compute fp32 ";
  ASSERT_EQ(run_mcompress(gptq(slow, "whole")).exit_code, 0);
  for (const std::string signal : {"KILL", "TERM"}) {
    const std::string command = std::string(MCOMPRESS_BINARY) + " " + gptq(slow) + " >/dev/null 2>" +
                                (folder_ / "err") + " & pid=$!; until [ -e " + (folder_ / "out.checkpoint") +
                                "/block-00000.safetensors ]; do sleep 0.002; done; kill -" + signal +
                                " $pid; wait $pid";
    const int status = std::system(("exec sh -c '" + command + "'").c_str());
    ASSERT_NE(WEXITSTATUS(status), 0) << "the run was over before it was stopped";
    if (signal == "TERM") {
      EXPECT_EQ(WEXITSTATUS(status), 75);
      EXPECT_TRUE(contains(read_file(folder_ / "err"), "the same command with --resume goes on from '"));
    }
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
    expect_all({{gptq(slow), 73, "go on from it with --resume"},
                {gptq(slow + " --resume --bits 3"), 78, "other settings"}},
               folder_ / "out");
    const json report = report_of(gptq(slow + " --resume"));
    EXPECT_GE(report["calibration"]["blocks_kept"], 1);
    EXPECT_EQ(bytes_of("out"), bytes_of("whole"));
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out.checkpoint"));
    std::filesystem::remove_all(folder_ / "out");
  }
  const Outcome fresh = run_mcompress(gptq(slow + " --resume"));
  EXPECT_EQ(fresh.exit_code, 0);
  EXPECT_TRUE(contains(fresh.err, "to go on from; the run starts anew")) << fresh.err;
}

TEST_F(GptqFolder, FollowsTheShippedRecipe) {
  const json report = report_of(gptq("--config " + recipe("gptq.toml")));
  EXPECT_EQ(report["settings_from"]["act_order"], "config");
  EXPECT_EQ(report["settings"]["sym"], true);
  // A switch that is on by default is turned off by either of its names.
  for (const std::string line : {"sym = false", "asym = true"}) {
    write_file(folder_ / "own.toml", line);
    report_of(gptq("--force --config " + (folder_ / "own.toml")));
    EXPECT_EQ(config_of("out")["quantization_config"]["sym"], false) << line;
  }
}

TEST_F(GptqFolder, RefusesADamagedCheckpoint) {
  std::filesystem::create_directory(folder_ / "out.checkpoint");
  write_file(folder_ / "out.checkpoint/block-00000.safetensors", "no");
  expect_all({{gptq("--resume"), 65, "block-00000.safetensors"}}, folder_ / "out");
}

TEST_F(GptqFolder, IsWrittenInEveryWidthAndForm) {
  const double exact = perplexity("model");
  double before = exact;
  for (const int bits : {8, 4, 3, 2}) {
    ASSERT_EQ(run_mcompress(gptq("--force --bits " + std::to_string(bits))).exit_code, 0);
    const double now = perplexity("out");
    EXPECT_GT(std::abs(std::log(now / exact)), std::abs(std::log(before / exact)) / 2) << bits;
    if (bits == 8) {
      EXPECT_NEAR(now, exact, 0.01 * exact);
    }
    before = now;
  }
  // What the codes stand for, in a plain folder; the packed one has the other tensors in float16.
  ASSERT_EQ(run_mcompress(gptq("--force")).exit_code, 0);
  const json plain = report_of(gptq("--format dequantized", "plain"));
  EXPECT_EQ(plain["output"]["format"], "huggingface");
  EXPECT_FALSE(config_of("plain").contains("quantization_config"));
  EXPECT_NEAR(perplexity("plain"), perplexity("out"), 2e-3 * perplexity("out"));
  // Zero points, in the second version of the format.
  const json asymmetric = report_of(gptq("--asym", "asymmetric"));
  EXPECT_TRUE(contains(asymmetric["warnings"].dump(), "gptq_v2"));
  EXPECT_EQ(config_of("asymmetric")["quantization_config"]["checkpoint_format"], "gptq_v2");
  EXPECT_EQ(config_of("asymmetric")["quantization_config"]["sym"], false);
  EXPECT_NEAR(perplexity("asymmetric"), exact, 0.2 * exact);
  // Groups in the order of work, which g_idx tells.
  ASSERT_EQ(run_mcompress(gptq("--no-static-groups", "dynamic")).exit_code, 0);
  EXPECT_EQ(config_of("dynamic")["quantization_config"]["desc_act"], true);
  EXPECT_NEAR(perplexity("dynamic"), exact, 0.2 * exact);
  ASSERT_EQ(run_mcompress(gptq("--group-size -1", "whole")).exit_code, 0);
  EXPECT_EQ(config_of("whole")["quantization_config"]["group_size"], -1);
}

TEST_F(GptqFolder, IsSplitIntoShardsWithAnIndex) {
  const json whole = report_of(gptq("", "whole"));
  const json report = report_of(gptq("--max-shard-size 40KB"));
  EXPECT_EQ(report["output"]["bytes"], report["size"]["predicted_bytes"]);
  const json index = json::parse(read_file(folder_ / "out/model.safetensors.index.json"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/model.safetensors"));
  EXPECT_TRUE(index["weight_map"].contains("model.layers.1.mlp.down_proj.qweight"));
  for (const auto& [name, file] : index["weight_map"].items())
    EXPECT_TRUE(std::filesystem::exists(folder_ / ("out/" + file.get<std::string>()))) << name;
  EXPECT_EQ(perplexity("out"), perplexity("whole"));
}

TEST_F(GptqFolder, HasLayersOfTheirOwnSettings) {
  const json report =
      report_of(gptq("--ignore 'layers.1.mlp' --layer-config 'down_proj=bits:8,group:16' --layer-config "
                     "'layers.0.*q_proj=bits:2'"));
  EXPECT_EQ(layer_named(report, "model.layers.0.mlp.down_proj")["decision"], "int8");
  EXPECT_EQ(layer_named(report, "model.layers.0.mlp.down_proj")["rounding"]["group_size"], 16);
  EXPECT_EQ(layer_named(report, "model.layers.0.self_attn.q_proj")["decision"], "int2");
  EXPECT_EQ(layer_named(report, "model.layers.1.mlp.up_proj")["decision"], "keep");
  EXPECT_TRUE(contains(layer_named(report, "model.layers.1.mlp.up_proj")["reason"], "--ignore"));
  const json dynamic = config_of("out")["quantization_config"]["dynamic"];
  EXPECT_EQ(dynamic.size(), 5U);
  EXPECT_EQ(dynamic["+:^model\\.layers\\.0\\.mlp\\.down_proj$"], json({{"bits", 8}, {"group_size", 16}}));
  EXPECT_EQ(dynamic["-:^model\\.layers\\.1\\.mlp\\.up_proj$"], json::object());
  EXPECT_TRUE(contains(report["warnings"].dump(), "transformers does not"));
  report_of(gptq("--ignore mlp --force", "even"));
  EXPECT_EQ(
      config_of("even")["quantization_config"]["modules_in_block_to_quantize"],
      json::parse(R"([["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]])"));
  EXPECT_GT(perplexity("out"), 1);
  expect_all({{gptq("--layer-config down_proj --force"), 2, "there is no '='"},
              {gptq("--layer-config down_proj=bits:9 --force"), 2, "is not from 2 to 8"},
              {gptq("--layer-config down_proj=group:0 --force"), 2, "neither -1 nor from 1 to 16777216"},
              {gptq("--layer-config down_proj=sym:1 --force"), 2, "neither bits:N nor group:N"},
              {gptq("--layer-config no_such=bits:8 --force"), 2, "--layer-config 'no_such' matches no layer"},
              {gptq("--ignore no_such --force"), 2, "matches no layer"},
              {gptq("--ignore . --force"), 65, "nothing"}});
}

TEST_F(GptqFolder, SaysWhichLayersAGroupSizeDoesNotDivide) {
  // 96 inputs of the down layers; all others have 64.
  const std::string run = gptq("--group-size 64 ");
  expect_all(
      {{run, 2,
        "layer 'model.layers.*.mlp.down_proj' (2 layers) have 96 input features, which a group size of 64 "
        "does "
        "not divide; use 32, which divides them all, or --group-size-fallback adjust, tail or ignore"}},
      folder_ / "out");
  const auto group = [&](const std::string& fallback) {
    const json report = report_of(run + "--force --group-size-fallback " + fallback);
    return layer_named(report, "model.layers.0.mlp.down_proj");
  };
  EXPECT_EQ(group("adjust")["rounding"]["group_size"], 32);
  EXPECT_EQ(group("tail")["rounding"]["group_size"], 64);
  EXPECT_GT(perplexity("out"), 1);
  EXPECT_EQ(group("ignore")["reason"], "a group size of 64 does not divide its 96 input features");
  EXPECT_TRUE(contains(run_mcompress(run + "--force --group-size-fallback tail").err, "not by vLLM"));
  const Outcome plan = run_mcompress(run + "--group-size-fallback adjust --dry-run --force");
  EXPECT_TRUE(contains(plan.out, "model.layers.0.mlp.down_proj")) << plan.out << plan.err;
  EXPECT_TRUE(contains(plan.out, "predicted output: ")) << plan.out;
}

TEST_F(GptqFolder, RoundsAHeadOfItsOwnWhereAsked) {
  expect_all({{gptq("--lm-head"), 2, "is its embedding, which is left alone"}}, folder_ / "out");
  config_["tie_word_embeddings"] = false;
  add("lm_head", {448, 64}, 1);
  write_model();
  const json left = report_of(gptq(""));
  EXPECT_EQ(layer_named(left, "lm_head")["reason"], "the output layer is left alone without --lm-head");
  const json report = report_of(gptq("--lm-head --force"));
  EXPECT_EQ(layer_named(report, "lm_head")["decision"], "int4");
  EXPECT_EQ(config_of("out")["quantization_config"]["lm_head"], true);
  EXPECT_NEAR(perplexity("out"), perplexity("model"), 0.2 * perplexity("model"));
}

TEST_F(GptqFolder, RefusesWhatItCannotCalibrateOn) {
  write_file(folder_ / "short.txt", "too short");
  write_file(folder_ / "same.bin", std::string(8000, '\1'));
  write_file(folder_ / "far.bin", std::string(3998, '\1') + "\xff\xff");
  const auto with = [&](const std::string& file, const std::string& more = "") {
    return gptq("--calib-data " + (folder_ / file) + " " + more);
  };
  expect_all(
      {{with("short.txt"), 65, "64"},
       {with("none.txt"), 66, "does not exist"},
       {with("same.bin"), 65, "one token again and again"},
       {with("far.bin"), 65, "65535"},
       {with("text.txt", "--seqlen 4000"), 2, "--seqlen 4000 is beyond the 128 positions"},
       {with("text.txt", "--bits 5"), 2, "no weights of 5 bits"},
       {with("text.txt", "--bits 9"), 2, "--bits"},
       {with("text.txt", "--group-size 0"), 2, "neither -1 nor from 1 to 16777216"},
       {with("text.txt", "--damp-percent nan"), 2, "--damp-percent"},
       {"gptq " + (folder_ / "model") + " -o " + (folder_ / "out"), 2, "gptq needs --calib-data"},
       {"gptq " + (folder_ / "model") + " -o " + (folder_ / "model") + " --calib-data x", 73, "is the input"},
       {"gptq " + shipped("gguf/llama.gguf") + " -o " + (folder_ / "out") + " --calib-data x", 2,
        "is gguf, which gptq cannot run"}},
      folder_ / "out");
  const Outcome few = run_mcompress(with("text.txt", "--nsamples 100000"));
  EXPECT_EQ(few.exit_code, 0);
  EXPECT_TRUE(contains(few.err, "and --nsamples asks for 100000")) << few.err;
  expect_all({{with("text.txt"), 73, "--force"}});
  expect_all({{"gptq " + (folder_ / "out") + " -o " + (folder_ / "again") + " --calib-data " +
                   (folder_ / "text.txt"),
               65, "is quantized already (gptq, 4 bits)"}},
             folder_ / "again");
}

TEST_F(GptqFolder, NamesLayersAndWindowsThatAreNotFinite) {
  const float nan = NAN, huge = 3e38F;
  std::string& weight = tensors_["model.layers.1.mlp.up_proj.weight"].second;
  const std::string right = weight;
  weight.replace(40, sizeof(nan), reinterpret_cast<const char*>(&nan), sizeof(nan));
  write_model();
  expect_all({{gptq(""), 65, "model.layers.1.mlp.up_proj"}}, folder_ / "out");
  weight = right;
  std::string& norm = tensors_["model.layers.1.post_attention_layernorm.weight"].second;
  norm.replace(0, sizeof(huge), reinterpret_cast<const char*>(&huge), sizeof(huge));
  write_model();
  expect_all(
      {{gptq("--force"), 65, "beyond float16"}, {gptq("--force --format dequantized"), 65, "window 1"}},
      folder_ / "out");
}

// Folders of any tool: what does not fit is refused by name.
TEST_F(GptqFolder, IsRefusedWhereItsTensorsAreWrong) {
  ASSERT_EQ(run_mcompress(gptq("")).exit_code, 0);
  const std::string right = bytes_of("out"), config = read_file(folder_ / "out/config.json");
  const auto size = *reinterpret_cast<const uint64_t*>(right.data());
  const json header = json::parse(right.substr(8, size));
  const std::string layer = "model.layers.1.mlp.down_proj";
  const auto evaluate =
      "evaluate " + (folder_ / "out") + " --seqlen 64 --eval-data " + (folder_ / "text.txt");
  const auto expect = [&](const std::string& file, const std::string& words) {
    write_file(folder_ / "out/model.safetensors", file);
    expect_all({{evaluate, 65, words}});
  };
  const auto with_data = [&](const std::string& part, const std::string& bytes) {
    std::string file = right;
    const size_t begin = header[layer + part]["data_offsets"][0];
    return file.replace(8 + size + begin, bytes.size(), bytes);
  };
  const auto with_header = [&](const std::string& from, const std::string& to) {
    std::string file = right;
    return file.replace(file.find(from), from.size(), to);
  };
  expect(with_data(".g_idx", std::string("\x63\0\0\0", 4)), "g_idx has a group outside the 3 of scales");
  expect(with_data(".g_idx", "\xff\xff\xff\xff"), "g_idx has a group outside");
  expect(with_data(".scales", std::string("\0\x7c", 2)), "scales has NaN or infinite values");
  expect(with_header(layer + ".g_idx", layer + ".g_idy"), "lacks 'model.layers.1.mlp.down_proj.g_idx'");
  expect(with_header(layer + ".qzeros", layer + ".qzeroz"), "lacks 'model.layers.1.mlp.down_proj.qzeros'");
  expect(with_header(layer + ".qzeros", layer + ".weight"), "has both a '.qweight' and a '.weight'");
  std::string turned = right;
  expect(turned.replace(turned.find("[12,64]", turned.find(layer + ".qweight")), 7, "[64,12]"), "down_proj");
  write_file(folder_ / "out/model.safetensors", right);
  json other = json::parse(config);
  other["quantization_config"]["checkpoint_format"] = "marlin";
  other["quantization_config"]["format"] = "marlin";
  write_file(folder_ / "out/config.json", other.dump());
  expect_all({{evaluate, 65, "weights of checkpoint_format 'marlin'"}});
}

TEST_F(GptqFolder, LeavesNothingOnAFullDisk) {
  const std::string disk = folder_ / "disk";
  std::filesystem::create_directory(disk);
  const std::string mount = "mount -t tmpfs -o size=100k none " + disk + " 2>/dev/null";
  if (::geteuid() != 0 || std::system(mount.c_str()) != 0) GTEST_SKIP() << "needs the right to mount";
  const Outcome run =
      run_mcompress("gptq " + (folder_ / "model") + " -o " + disk + "/out --group-size 32 --seqlen 64" +
                    " --nsamples 4 --calib-data " + (folder_ / "text.txt"));
  EXPECT_EQ(run.exit_code, 74) << run.err;
  EXPECT_FALSE(std::filesystem::exists(disk + "/out"));
  std::system(("umount " + disk).c_str());
}

// On the digits of Fashion-MNIST: 4 bits cost next to nothing, and less than rounding to nearest.
TEST(GptqProgram, RoundsLinearLayersAndConvolutions) {
  if (!std::filesystem::exists(kFashionTest)) GTEST_SKIP() << "needs the Debian package of Fashion-MNIST";
  const TemporaryFolder folder;
  for (const std::string name : {"fashion_mlp.pt", "fashion_cnn.pt"}) {
    const std::string run = "gptq " + shipped(name) + " -o " + (folder / "q.pt") + " --calib-data " +
                            kFashion + " --force --nsamples 256 ";
    const json report = report_of(run + std::string("--group-size -1 --limit 2000 --eval-data ") + kFashion);
    EXPECT_EQ(report["calibration"]["samples"], 256);
    double loss = 0, rounded = 0;
    for (const json& layer : report["layers"]) {
      if (layer["decision"] != "int4") continue;
      EXPECT_LE(layer["rounding"]["loss"].get<double>(), layer["rounding"]["rounded_loss"].get<double>())
          << layer;
      loss += layer["rounding"]["loss"].get<double>();
      rounded += layer["rounding"]["rounded_loss"].get<double>();
    }
    EXPECT_LT(loss, 0.7 * rounded);
    EXPECT_GT(report["size"]["ratio"].get<double>(), name == "fashion_mlp.pt" ? 6 : 4);
    EXPECT_GT(report["metrics"]["after"]["top1"]["value"].get<double>(),
              report["metrics"]["before"]["top1"]["value"].get<double>() - 0.015);
    EXPECT_EQ(report["size"]["predicted_bytes"], report["output"]["bytes"]);
    for (const char* bits :
         {"--bits 2 --group-size -1", "--bits 3 --group-size -1", "--bits 8 --asym --group-size -1",
          "--no-static-groups --group-size 7 --group-size-fallback tail"})
      EXPECT_EQ(run_mcompress(run + bits).exit_code, 0) << bits;
  }
  const std::string mlp = "gptq " + shipped("fashion_mlp.pt") + " -o " + (folder / "r.pt") + " --calib-data ";
  expect_all({{mlp + kFashion + " --resume", 2, "--resume is for language models"},
              {mlp + kFashion + " --lm-head", 2, "--lm-head is for language models"},
              {mlp + kFashion + " --seqlen 8", 2, "--seqlen is for language models"},
              {mlp + kFashion + " --format gptq", 2, "--format gptq is for language models"},
              {mlp + kFashion, 2, "input features, which a group size of 128 does not divide"},
              {mlp + shipped("fashion_mlp.pt"), 65, ""}},
             folder / "r.pt");
}

TEST(NearestProgram, RoundsLayersWithoutData) {
  const TemporaryFolder folder;
  const auto nearest = [&](const std::string& name, const std::string& options) {
    return "quantize " + shipped(name) + " -o " + (folder / "q.pt") + " --force --mode weight-only " +
           options;
  };
  double error = 0;
  for (const int bits : {8, 4, 2}) {
    const json report =
        report_of(nearest("fashion_mlp.pt", "--group-size -1 --bits " + std::to_string(bits)));
    EXPECT_EQ(report["output"]["format"], "torchscript");
    EXPECT_EQ(report["size"]["predicted_bytes"], report["output"]["bytes"]);
    const json& layer = report["layers"][0];
    EXPECT_EQ(layer["decision"], "int" + std::to_string(bits));
    EXPECT_TRUE(layer["rounding"].is_null());
    EXPECT_GT(layer["max_error"].get<double>(), error);
    error = layer["max_error"];
  }
  const std::string cnn = nearest("fashion_cnn.pt", "--group-size -1 --format torchscript");
  const json plan = report_of(cnn + " --dry-run"), made = report_of(cnn);
  EXPECT_TRUE(contains(run_mcompress(cnn + " --dry-run").out,
                       "predicted output: " + made["output"]["bytes"].dump() + " bytes"));
  EXPECT_EQ(plan["layers"][0]["decision"], "int4");
  EXPECT_EQ(plan["layers"][0]["bytes_after"], made["layers"][0]["bytes_after"]);
  EXPECT_TRUE(plan["layers"][0]["sqnr_db"].is_null());
  report_of(cnn + " --layer-config .*=bits:3");
  if (std::filesystem::exists(kFashionTest)) {
    const json report = report_of(
        nearest("fashion_mlp.pt", std::string("--group-size -1 --limit 2000 --eval-data ") + kFashion));
    EXPECT_GT(report["metrics"]["after"]["top1"]["value"].get<double>(),
              report["metrics"]["before"]["top1"]["value"].get<double>() - 0.02);
  }
  expect_all(
      {{nearest("fashion_mlp.pt", ""), 2, "a group size of 128 does not divide"},
       {nearest("fashion_mlp.pt", "--format awq"), 2, "--format awq is for language models"},
       {nearest("fashion_mlp.pt", std::string("--calib-data ") + kFashion), 2, "or use 'mcompress gptq'"},
       {nearest("fashion_mlp.pt", "--embeddings"), 2, "--embeddings is for language models"}},
      folder / "no.pt");
}

}  // namespace
}  // namespace mcompress::testing
