// TorchScript archives built to be hostile: each is refused before LibTorch would see it.
#include "mcompress/formats/torchscript.h"

#include <gtest/gtest.h>

#include "mcompress/base/error.h"
#include "test_files.h"

namespace mcompress {
namespace {

using namespace std::string_literals;

struct Members {
  std::string code = "class M(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    return x\n";
  std::string data = "\x80\x02N."s, constants = "\x80\x02)."s;
  std::vector<std::pair<std::string, std::string>> more = {};
  std::string leave_out = {};
};

std::string scan(const Members& members, bool trust_code = false) {
  const testing::TemporaryFolder folder;
  {
    OutputFile file(folder / "m.pt", false);
    ZipWriter writer(file);
    std::vector<std::pair<std::string, std::string>> all = {{"data.pkl", members.data},
                                                            {"code/__torch__.py", members.code},
                                                            {"constants.pkl", members.constants},
                                                            {"version", "3\n"}};
    all.insert(all.end(), members.more.begin(), members.more.end());
    for (const auto& [name, content] : all) {
      if (name != members.leave_out) writer.add("m/" + name, std::as_bytes(std::span(content)), false);
    }
    writer.finish();
    file.commit();
  }
  const MappedFile map(folder / "m.pt");
  try {
    scan_torchscript(read_zip(map.bytes(), "m.pt"), "m.pt", trust_code);
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), Exit::kBadData);
    return failure.what();
  }
  return "accepted";
}

Members with_statement(const std::string& statement) {
  Members members;
  members.code =
      "class M(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    " + statement + "\n    return x\n";
  return members;
}

std::string repeat(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

// A pickled tensor of `elements` floats, shape [`rows`], over storage '0'.
std::string tensor_pickle(int elements, int rows, int stride = 1) {
  const auto number = [](int n) { return "J"s + std::string(reinterpret_cast<const char*>(&n), 4); };
  return "\x80\x02"
         "ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
         "0X\x03\0\0\0cpu"s +
         number(elements) + "tQ" + number(0) + number(rows) + "\x85" + number(stride) +
         "\x85\x89"
         "ccollections\nOrderedDict\n)RtR."s;
}

TEST(TorchScriptScan, AcceptsAPlainProgram) {
  EXPECT_EQ(scan({}), "accepted");
  Members members;
  members.data = tensor_pickle(2, 2);
  members.more = {{"data/0", std::string(8, '\0')}};
  EXPECT_EQ(scan(members), "accepted");
}

TEST(TorchScriptScan, RefusesOperatorsThatReachFiles) {
  const std::vector<std::string> statements = {"y = torch.from_file(\"/etc/passwd\", False, 10)",
                                               "y = ops.aten.from_file(\"x\")",
                                               "torch.save(x, \"/tmp/x\")",
                                               "ops.aten.save(x, \"/tmp/x\")",
                                               "_0 = torch.\\\n      save(x, \"/tmp/x\")",
                                               "_0 = torch . save(x, \"x\")",
                                               "_0 = (torch.  # a comment\n  save)(x, \"x\")",
                                               "y = ops.debugprims.load_tensor(\"x\")"};
  for (const std::string& statement : statements) {
    EXPECT_NE(scan(with_statement(statement)).find("--trust-code"), std::string::npos) << statement;
    EXPECT_EQ(scan(with_statement(statement), true), "accepted") << statement;
  }
}

TEST(TorchScriptScan, IsNotFooledByNamesAndStrings) {
  for (const char* statement :
       {"y = self.save(x)", "save = x", "y = \"torch.save(x)\"", "print(x)  # torch.save(x)",
        "y = (self.ops).save(x)", "y = self.ops.conv.forward(x)", "y = ops.quantized.linear_dynamic(x)",
        "y = \"it's\"", "y = annotate(__torch__.torch.classes.quantized.LinearPackedParamsBase, x)"}) {
    EXPECT_EQ(scan(with_statement(statement)), "accepted") << statement;
  }
}

TEST(TorchScriptScan, SeesACallBehindANumberThatEndsInADot) {
  for (const char* number : {"1.", "1.5", "2.e5", ".5", "1e-3", "0.", "1_.", "1.j"}) {
    for (const char* call : {"torch.save(x)", "ops.aten.save(x)", "t = torch", "ops.rpc.call(x)"}) {
      const std::string statement = std::string("q = ") + number + "\n    " + call;
      EXPECT_NE(scan(with_statement(statement)).find("--trust-code"), std::string::npos) << statement;
    }
  }
}

TEST(TorchScriptScan, AllowsAttributesAndParametersOfEveryName) {
  for (const char* statement :
       {"ops : Tensor", "torch : int = 1", "y = self.ops.forward(x)", "from_file : Tensor",
        "y = self.from_file.forward(self.load_tensor.forward(x))", "y = self.torch.save(x)"}) {
    EXPECT_EQ(scan(with_statement(statement)), "accepted") << statement;
  }
}

TEST(TorchScriptScan, SeesEveryMemberThatLibTorchMayRead) {
  const std::string evil = "class N(Module):\n  def f(self, x: Tensor) -> None:\n    torch.save(x, \"x\")\n";
  for (const char* name : {"code/n.py", "CODE/n.py", "code/n.PY"}) {
    Members members;
    members.more = {{name, evil}};
    EXPECT_NE(scan(members).find("calls 'save'"), std::string::npos) << name;
  }
  Members twice;
  twice.more = {{"DATA.pkl", "x"}};
  EXPECT_NE(scan(twice).find("twice"), std::string::npos);
  Members outside;
  outside.more = {{"../other/code/n.py", evil}};
  EXPECT_NE(scan(outside), "accepted");
}

TEST(TorchScriptScan, RefusesWhatCouldHideACall) {
  for (const char* statement :
       {"t = torch", R"(getattr(torch, "save")(x))", "t = ops.aten", "y = ops . prim.data(x)", "y = [torch]",
        R"(q = """ " """)", "q = ''' ' '''", "q = \"a\nb\""}) {
    EXPECT_NE(scan(with_statement(statement)).find("can hide what it calls"), std::string::npos) << statement;
    EXPECT_EQ(scan(with_statement(statement), true), "accepted") << statement;
  }
  for (const char* statement :
       {"ops.rpc.rpc_sync(x)", "y = annotate(__torch__.torch.classes.c10d.Store, x)"}) {
    EXPECT_NE(scan(with_statement(statement)).find("no part of computing"), std::string::npos) << statement;
  }
}

TEST(TorchScriptScan, RefusesWhatWouldCrashTheParser) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"y = " + repeat("(", 200'000), "nests deeper"},
      {"y = " + repeat("[", 5'000), "nests deeper"},
      {"y = " + repeat("-", 300'000) + "1", "terms"},
      {"y = " + repeat("1+", 100'000) + "1", "terms"},
      {"y = " + repeat("not ", 100'000) + "True", "terms"},
      {"y = x" + repeat("[0]", 100'000), "terms"},
      {"y = x" + repeat("()", 100'000), "terms"},
      {"y = " + repeat("a.", 100'000) + "b", "terms"},
      {"if x:\n" + std::string(5'000, ' ') + "y = 1", "indents deeper"}};
  for (const auto& [statement, words] : cases) {
    EXPECT_NE(scan(with_statement(statement)).find(words), std::string::npos) << statement.substr(0, 20);
  }
  // Long lists and many statements are ordinary.
  EXPECT_EQ(scan(with_statement("y = [" + repeat("1, ", 100'000) + "1]")), "accepted");
  EXPECT_EQ(scan(with_statement(repeat("y = x + 1\n    ", 20'000))), "accepted");
}

TEST(TorchScriptScan, RefusesMissingMembersAndWrongStorages) {
  EXPECT_THROW(scan_torchscript({}, "m.pt", false), Error);
  for (const char* name : {"data.pkl", "constants.pkl", "version"}) {
    Members members;
    members.leave_out = name;
    EXPECT_NE(scan(members).find(name), std::string::npos);
  }
  const auto tensor = [](const std::string& pickle, const std::string& storage) {
    Members members;
    members.data = pickle;
    if (!storage.empty()) members.more = {{"data/0", storage}};
    return scan(members);
  };
  const std::string eight(8, '\0');
  EXPECT_NE(tensor(tensor_pickle(2, 2), "").find("is missing"), std::string::npos);
  EXPECT_NE(tensor(tensor_pickle(200, 2), eight).find("asks for 200 elements"), std::string::npos);
  EXPECT_NE(tensor(tensor_pickle(2, 3), eight).find("reaches element 2"), std::string::npos);
  EXPECT_NE(tensor(tensor_pickle(2, 2, 5), eight).find("reaches element 5"), std::string::npos);
  EXPECT_NE(tensor(tensor_pickle(2, 1 << 30, 0), eight).find("over a storage of 2"), std::string::npos);
  EXPECT_NE(tensor("\x80\x02"
                   "cos\nsystem\n."s,
                   "")
                .find("os.system"),
            std::string::npos);
}

}  // namespace
}  // namespace mcompress
