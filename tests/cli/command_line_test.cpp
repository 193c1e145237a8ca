#include "cli/run_mcompress.h"

namespace mcompress::testing {
namespace {

using nlohmann::json;

TEST(Messages, OfTheCommandLineNameTheRemedy) {
  const TemporaryFolder folder;
  const std::string mlp = shipped("fashion_mlp.pt");
  const std::string to = " -o " + (folder / "q");
  expect_all(
      {{"", 2, "name a command: inspect, evaluate, quantize"},
       {"quantise", 2, "unknown command 'quantise', did you mean 'quantize'"},
       {"xyz", 2, "unknown command 'xyz'; the commands are"},
       {"quantize " + mlp + " --quiat", 2, "unknown option '--quiat', did you mean '--quiet'"},
       {"quantize", 2, "model is required"},
       {"quantize " + mlp, 2, "needs -o/--output"},
       {"quantize " + mlp + to + " --mode turbo", 2, "turbo"},
       {"quantize " + mlp + to + " --ignore nothing", 2, "--ignore 'nothing' matches no layer"},
       {"quantize " + mlp + to + " --layer nothing", 2, "--layer 'nothing' matches no layer"},
       {"quantize " + mlp + to + " --layer '('", 2, "not a regular expression"},
       {"quantize " + mlp + to + " --ignore .", 65,
        "has nothing to compress: 'fc1' and 1 more: matched by --ignore"},
       {"quantize " + mlp + to + " --max-accuracy-drop 0.1", 2, "needs --eval-data or --eval-command"},
       {"quantize " + mlp + to + " --min-agreement 99%", 2, "need --eval-data"},
       {"quantize " + mlp + to + " --min-agreement x%", 2, "no fraction from 0 to 1"},
       {"quantize " + mlp + to + " --max-accuracy-drop 5", 2, "nor a percentage such as 0.5%"},
       {"quantize " + mlp + to + " --min-size-ratio nan", 2, "'nan' is no number"},
       {"quantize " + mlp + to + " --seed 99999999999999999999", 2, "no whole number of 64 bits"},
       {"quantize " + mlp + to + " --threads 2147483647", 2, "from 0 to 1024"},
       {"quantize " + mlp + to + " --scale 0", 2, "'0' is not above 0"},
       {"quantize " + mlp + to + " --mean 0.5,x", 2, "'x' is no number"},
       {"quantize " + mlp + to + " --report ''", 2, "it is empty"},
       {"quantize " + mlp + to + " --max-accuracy-drop 1% --eval-command 'echo {} # {model}'", 2,
        "needs 'top1' or 'accuracy'"},
       {"quantize " + mlp + to + " --dtype float16 --per-tensor", 2, "--per-tensor goes with --dtype int8"},
       {"quantize " + mlp + to + " --dtype float16 --runtime fbgemm", 2, "--runtime fbgemm goes with"},
       {"quantize " + mlp + to + " --threads -1", 2, "--threads"},
       {"quantize " + mlp + to + " --eval-command true", 2, "no {model}"},
       {"quantize " + mlp + to + " --force --eval-command 'echo 3 # {model}'", 65, "no JSON object"},
       {"quantize " + mlp + to + " --force --eval-command 'exit 4 # {model}'", 65, "exit code 4"},
       {"evaluate " + mlp, 2, "needs --eval-data or --eval-command"},
       {"inspect --json --report - " + mlp, 2, "both want stdout"}});
}

TEST(Messages, OfFilesNameTheRemedy) {
  const TemporaryFolder folder;
  write_file(folder / "empty", "");
  write_file(folder / "old", "x");
  write_file(folder / "r.toml", "seed = 1\n");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  const std::string mlp = shipped("fashion_mlp.pt");
  const std::string to = " -o " + (folder / "q");
  expect_all(
      {{"quantize " + mlp + " -o " + (folder / "old"), 73, "use --force"},
       {"quantize " + mlp + to + " --report " + (folder / "q"), 73, "another output of this run"},
       {"inspect " + mlp + " --force --report " + mlp, 73, "is the input"},
       {"evaluate " + mlp + " --force --eval-data " + (folder / "old") + " --report " + (folder / "old"), 73,
        "is the input"},
       {"quantize " + mlp + " --force --config " + (folder / "r.toml") + " -o " + (folder / "r.toml"), 73,
        "is the input"},
       {"quantize " + mlp + " -o " + (folder / "old") + " --dry-run", 73, "use --force"},
       {"quantize " + mlp + " -o -", 2, "-o - is not possible"},
       {"quantize " + mlp + " --force -o " + (folder / "pipe"), 73, "is no regular file"},
       {"quantize " + mlp + " -o " + (folder / std::string(300, 'n')), 73, "File name too long"},
       {"quantize " + shipped("state_dicts/plain.pt") + to + " --runtime portable", 2, "means nothing"},
       {"inspect " + mlp + " --config " + (folder / "pipe"), 78, "is no regular file"},
       {"inspect " + mlp + " --config " + folder.path(), 78, "is no regular file"},

       {"quantize " + mlp + " -o " + mlp + " --force", 73, "is the input"},
       {"quantize " + mlp + " -o " + (folder / "no/q"), 73, "does not exist; make it first"},
       {"quantize " + mlp + " -o " + folder.path() + " --force", 73, "is a folder; name a file"},
       {"quantize " + mlp + to + " --report " + (folder / "old"), 73, "use --force"},
       {"quantize " + mlp + to + " --eval-data " + (folder / "no"), 66, "does not exist"},
       {"quantize " + mlp + to + " --eval-data " + (folder / "empty"), 65,
        "is empty; pass a file with samples"},
       {"quantize " + mlp + to + " --eval-data " + (folder / "old"), 65, "no data set that is known"},
       {"quantize " + mlp + to + " --eval-data " + folder.path(), 66, "has no 't10k-images-idx3-ubyte'"},
       {"quantize " + mlp + to + " --mean 1,2 --eval-data " + kFashion, 2, "has 1 channels"},
       {"evaluate " + shipped("fashion_cnn.pt") + " --eval-data " + mlp, 65, "is a zip, but no .npz"},
       {"inspect " + (folder / "no"), 66, "No such file or directory; check the path"},
       {"inspect " + (folder / "empty"), 65, "is empty; download or export it again"},
       {"inspect " + folder.path(), 65, "no config.json"},
       {"evaluate " + (folder / "old") + " --eval-data " + kFashion, 65, "no model that is known"}});
}

TEST(Config, RecipesAreRunAndUnknownKeysRefused) {
  const TemporaryFolder folder;
  const std::string run =
      "quantize " + shipped("fashion_mlp.pt") + " --force -o " + (folder / "q") + " --config ";
  const json report = report_of(run + recipe("quantize_dynamic.toml"));
  EXPECT_EQ(report["settings_from"]["batch_size"], "config");
  const std::string cnn = "quantize " + shipped("fashion_cnn.pt") + " --force -o " + (folder / "q");
  const json fixed =
      report_of(cnn + " --calib-data " + kFashion + " --config " + recipe("quantize_static.toml"));
  EXPECT_EQ(fixed["gates"][0]["passed"], true);
  const json trained = report_of(cnn + " --limit 1000 --epochs 1 --train-limit 2000 --train-data " +
                                 kFashionTest + " --config " + recipe("qat.toml"));
  EXPECT_EQ(trained["settings"]["weight_bits"], 4);
  EXPECT_EQ(trained["training"]["epochs"].size(), 2U);
  const json pruned = report_of("prune " + shipped("fashion_mlp.pt") + " --force -o " + (folder / "q") +
                                " --config " + recipe("prune.toml"));
  const std::string few_rows = " --train-limit 600 --epochs 1 --train-data " + std::string(kFashion);
  report_of("prune " + shipped("fashion_cnn.pt") + " -o " + (folder / "f.pt") + few_rows + " --config " +
            recipe("prune_finetune.toml"));
  report_of("distill " + shipped("fashion_cnn.pt") + " " + shipped("fashion_student.pt") + " -o " +
            (folder / "d.pt") + few_rows + " --config " + recipe("distill.toml"));
  EXPECT_EQ(pruned["storage"]["store"], "bitmask");
  EXPECT_EQ(pruned["gates"][0]["passed"], true);
  write_file(folder / "bad.toml", "mod = \"dynamic\"\n");
  write_file(folder / "value.toml", "mode = \"turbo\"\n");
  write_file(folder / "broken.toml", "mode = = 3 [\n");
  write_file(folder / "table.toml", "[quantize]\nignore = [\"fc2\"]\n");
  expect_all({{run + (folder / "bad.toml"), 78, "unknown key 'mod', did you mean '--mode'"},
              {run + (folder / "value.toml"), 78, "turbo"},
              {run + (folder / "no.toml"), 66, "does not exist"}});
  EXPECT_EQ(run_mcompress(run + (folder / "broken.toml")).exit_code, 78);
  EXPECT_EQ(report_of(run + (folder / "table.toml"))["settings"]["ignore"], json::array({"fc2"}));
}

TEST(Config, TheRecipeWinsOverTheDataItNames) {
  const TemporaryFolder folder;
  write_file(folder / "data.toml", "mean = [0.5]\nstd = [0.25]\n");
  write_file(folder / "r.toml", "mean = [0.125]\ndata-config = \"" + (folder / "data.toml") +
                                    "\"\n[evaluate]\nlimit = 3\n[quantize]\nseed = 7\n");
  const std::string run = "quantize " + shipped("fashion_mlp.pt") + " --dry-run --config ";
  const json report = report_of(run + (folder / "r.toml"));
  EXPECT_EQ(report["settings"]["mean"], json::array({0.125}));
  EXPECT_EQ(report["settings"]["std"], json::array({0.25}));
  EXPECT_EQ(report["settings"]["seed"], 7);
  EXPECT_EQ(report["settings"]["limit"], 0);
  write_file(folder / "data.toml", "force = true\n");
  expect_all({{run + (folder / "r.toml"), 78, "unknown key 'force'"}});
}

TEST(Config, FlagsWinOverEnvironmentAndThatOverTheRecipe) {
  const TemporaryFolder folder;
  write_file(folder / "r.toml", "seed = 1\nbatch-size = 1\nlimit = 1\n");
  const json report = report_of("quantize " + shipped("fashion_mlp.pt") + " -o " + (folder / "q") +
                                    " --seed 3 --config " + (folder / "r.toml"),
                                0, "MCOMPRESS_SEED=2 MCOMPRESS_BATCH_SIZE=2");
  EXPECT_EQ(report["settings"]["seed"], 3);
  EXPECT_EQ(report["settings"]["batch_size"], 2);
  EXPECT_EQ(report["settings"]["limit"], 1);
  EXPECT_EQ(report["settings_from"]["seed"], "flag");
  EXPECT_EQ(report["settings_from"]["batch_size"], "environment");
  EXPECT_EQ(report["settings_from"]["limit"], "config");
  EXPECT_EQ(report["settings_from"]["mode"], "default");
}

TEST(Streams, StdoutHoldsResultsOnly) {
  const Outcome version = run_mcompress("--version");
  EXPECT_TRUE(version.out.starts_with("mcompress ")) << version.out;
  EXPECT_EQ(version.err, "");
  EXPECT_EQ(json::parse(run_mcompress("--version --json").out)["name"], "mcompress");
  const TemporaryFolder folder;
  const Outcome quiet = run_mcompress("quantize -q " + shipped("fashion_mlp.pt") + " -o " + (folder / "q"));
  EXPECT_EQ(quiet.err, "");
  const Outcome verbose =
      run_mcompress("quantize -v --force " + shipped("fashion_mlp.pt") + " -o " + (folder / "q"));
  EXPECT_TRUE(contains(verbose.err, "fc1: int8")) << verbose.err;
  EXPECT_FALSE(contains(verbose.err, "\x1b")) << "escape codes off a terminal";
}

TEST(Streams, AClosedOrFullStderrStopsNothing) {
  const TemporaryFolder folder;
  const std::string run = "quantize --force " + shipped("fashion_mlp.pt") + " -o " + (folder / "q");
  for (const char* where : {" 2>&-", " 2>/dev/full", " 0<&- 2>&-"}) {
    EXPECT_EQ(std::system((std::string(MCOMPRESS_BINARY) + " " + run + " >/dev/null" + where).c_str()), 0)
        << where;
    EXPECT_EQ(run_mcompress("inspect " + (folder / "q")).exit_code, 0) << where;
  }
  const int full = std::system((std::string(MCOMPRESS_BINARY) + " --version >/dev/full 2>/dev/null").c_str());
  EXPECT_EQ(WEXITSTATUS(full), 74);
}

TEST(Streams, MessagesAreJsonObjectsOnRequest) {
  const TemporaryFolder folder;
  EXPECT_EQ(json::parse(run_mcompress("quantise --log-format json").err)["exit"], 2);
  EXPECT_EQ(json::parse(run_mcompress("quantize --log-format=json --sead 1").err)["exit"], 2);
  const Outcome gate = run_mcompress("quantize --log-format json --progress none --min-size-ratio 9 " +
                                     shipped("fashion_mlp.pt") + " -o " + (folder / "q"));
  EXPECT_EQ(gate.exit_code, 3);
  EXPECT_TRUE(contains(json::parse(gate.err)["message"], "gate --min-size-ratio failed")) << gate.err;
}

TEST(Streams, ErrorsAreOneJsonObjectOnRequest) {
  const Outcome run = run_mcompress("inspect --log-format json /does/not/exist");
  const json object = json::parse(run.err);
  EXPECT_EQ(object["exit"], 66);
  EXPECT_EQ(run.exit_code, 66);
}

TEST(Streams, ProgressHasALinePerStepAsJson) {
  const TemporaryFolder folder;
  const Outcome run =
      run_mcompress("quantize --progress jsonl " + shipped("fashion_mlp.pt") + " -o " + (folder / "q"));
  const json first = json::parse(run.err.substr(0, run.err.find('\n')));
  EXPECT_EQ(first["phase"], "compress");
  EXPECT_EQ(first["total"], 2);
}

}  // namespace
}  // namespace mcompress::testing
