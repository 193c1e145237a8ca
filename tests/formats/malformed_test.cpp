// A table of inputs built to be wrong: each is refused with code 65 and the words that tell why.
#include <functional>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/formats/checkpoint_files.h"
#include "mcompress/formats/data_files.h"
#include "mcompress/formats/gzip.h"
#include "mcompress/formats/json.h"
#include "mcompress/formats/pickle.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/state_dict.h"
#include "mcompress/formats/tensor_place.h"
#include "test_files.h"

namespace mcompress {
namespace {

using namespace std::string_literals;

Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

struct Case {
  std::string name, input, words;
};

void expect_refused(const std::vector<Case>& cases, const std::function<void(const std::string&)>& read) {
  for (const Case& c : cases) {
    try {
      read(c.input);
      ADD_FAILURE() << c.name << " was accepted";
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), Exit::kBadData) << c.name;
      EXPECT_NE(std::string(failure.what()).find(c.words), std::string::npos)
          << c.name << ": " << failure.what();
    }
  }
}

std::string u64(uint64_t value) { return {reinterpret_cast<const char*>(&value), sizeof(value)}; }

std::string safetensors(const std::string& header, const std::string& data = "") {
  return u64(header.size()) + header + data;
}

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

TEST(Malformed, SafetensorsAreRefusedWithTheReason) {
  const std::string four(4, '\0');
  const std::vector<Case> cases = {
      {"empty", "", "too few"},
      {"seven bytes", "1234567", "too few"},
      {"huge header", u64(uint64_t{1} << 63), "announces a header"},
      {"header above the limit", u64(100'000'001) + "{}", "at most"},
      {"header beyond the file", u64(50) + "{}", "the file is cut"},
      {"no brace", safetensors("[]"), "does not begin with '{'"},
      {"leading blank", safetensors(" {}"), "does not begin with '{'"},
      {"not JSON", safetensors("{]"), "not valid JSON"},
      {"invalid UTF-8", safetensors("{\"\xff\":1}"), "not valid JSON"},
      {"trailing JSON", safetensors("{}{}"), "not valid JSON"},
      {"deep nesting", safetensors("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}"),
       "nested deeper"},
      {"very deep nesting", safetensors("{\"a\":" + std::string(200'000, '[')), "nested deeper"},
      {"duplicate name", safetensors(R"({"a":1,"a":1})"), "occurs twice"},
      {"entry is a number", safetensors(R"({"a":1})"), "has no dtype"},
      {"no dtype", safetensors(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", four), "has no dtype"},
      {"no shape", safetensors(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", four), "has no shape"},
      {"no offsets", safetensors(R"({"a":{"dtype":"F32","shape":[1]}})", four), "has no data_offsets"},
      {"unknown key", safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", four),
       "unknown keys"},
      {"unknown dtype", safetensors(tensor("\"F31\"", "[1]", "[0,4]"), four), "unknown dtype"},
      {"dtype is a number", safetensors(tensor("1", "[1]", "[0,4]"), four), "unknown dtype"},
      {"shape is text", safetensors(tensor("\"F32\"", "\"1\"", "[0,4]"), four), "is not a list"},
      {"negative dimension", safetensors(tensor("\"F32\"", "[-1]", "[0,4]"), four),
       "no non-negative integer"},
      {"float dimension", safetensors(tensor("\"F32\"", "[1.5]", "[0,4]"), four), "no non-negative integer"},
      {"dimension above 2^63", safetensors(tensor("\"F32\"", "[9223372036854775808]", "[0,4]"), four),
       "no non-negative"},
      {"product overflows", safetensors(tensor("\"F32\"", "[4294967296,4294967296]", "[0,4]"), four),
       "overflows"},
      {"bytes overflow", safetensors(tensor("\"F32\"", "[4611686018427387904]", "[0,4]"), four), "overflows"},
      {"offset beyond data", safetensors(tensor("\"F32\"", "[2]", "[0,8]"), four), "cut or damaged"},
      {"offsets reversed", safetensors(tensor("\"F32\"", "[1]", "[4,0]"), four), "no [begin, end]"},
      {"one offset", safetensors(tensor("\"F32\"", "[1]", "[0]"), four), "no [begin, end]"},
      {"negative offset", safetensors(tensor("\"F32\"", "[1]", "[-4,0]"), four), "no non-negative integer"},
      {"text offset", safetensors(tensor("\"F32\"", "[1]", "[\"0\",4]"), four), "no non-negative integer"},
      {"size differs", safetensors(tensor("\"F32\"", "[2]", "[0,4]"), four), "ask for 8"},
      {"tail", safetensors(tensor("\"F32\"", "[1]", "[0,4]"), four + "x"), "behind its last tensor"},
      {"hole", safetensors(tensor("\"F32\"", "[1]", "[4,8]"), four + four), "leave a hole"},
      {"overlap",
       safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                   R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                   four),
       "overlap"},
      {"metadata is a list", safetensors(R"({"__metadata__":[]})"), "is not an object"},
      {"metadata value is a number", safetensors(R"({"__metadata__":{"a":1}})"), "is not a string"},
  };
  expect_refused(cases, [](const std::string& input) { read_safetensors(bytes_of(input), "x"); });
}

TEST(Malformed, DataFilesAreRefusedWithTheReason) {
  const auto npy = [](const std::string& header, const std::string& data) {
    return "\x93NUMPY\x01\x00"s + static_cast<char>(header.size() & 0xff) +
           static_cast<char>(header.size() >> 8) + header + data;
  };
  expect_refused({{"cut header", "\0\0\x08\x03\0\0"s, "cut in its header"},
                  {"floats", "\0\0\x0d\x01\0\0\0\x01"s, "element type 0x0d"},
                  {"short",
                   "\0\0\x08\x01\0\0\0\x05"
                   "ab"s,
                   "asks for 5"},
                  {"long",
                   "\0\0\x08\x01\0\0\0\x01"
                   "ab"s,
                   "asks for 1"},
                  {"huge", "\0\0\x08\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"s, "more than 2^64"},
                  {"not IDX", "abcdef", "no IDX file"},
                  {"empty", "", "no IDX file"}},
                 [](const std::string& input) { read_idx(bytes_of(input), "x"); });
  expect_refused(
      {{"empty", "", "no .npy file"},
       {"magic only", "\x93NUMPY", "no .npy file"},
       {"version 9", "\x93NUMPY\x09\0\0\0\0\0\0"s, "unknown version"},
       {"header beyond the file", "\x93NUMPY\x01\0\xff\x00{}"s, "does not fit"},
       {"huge header", "\x93NUMPY\x02\0\xff\xff\xff\xff{}"s, "does not fit"},
       {"no descr", npy("{'shape': (1,)}", "abcd"), "no 'descr'"},
       {"no shape", npy("{'descr': '<f4', 'fortran_order': False}", "abcd"), "no 'shape'"},
       {"object", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "abcd"), "dtype '|O'"},
       {"big-endian", npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", "abcd"),
        "little-endian"},
       {"Fortran", npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}", "abcd"), "Fortran order"},
       {"32 GiB", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (8589934592,)}", "abcd"),
        "asks for"},
       {"overflow", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", ""),
        "overflows"},
       {"negative", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "abcd"),
        "has the shape"}},
      [](const std::string& input) { read_npy(bytes_of(input), "x"); });
  expect_refused({{"cut", "\x1f\x8b\x08\0\0\0\0\0\0\x03"s, "cut or damaged"},
                  {"damaged", "\x1f\x8b\x08\0\0\0\0\0\0\x03garbage!"s, "cut or damaged"}},
                 [](const std::string& input) { gunzip(bytes_of(input), "x"); });
}

TEST(Malformed, PicklesAreRefusedWithTheReason) {
  const std::string cut_text = "\x80\x02X\xff\xff\xff\x7fu"s;
  std::string deep = "\x80\x02"s;
  for (int i = 0; i < 200; ++i) deep += "]";
  for (int i = 0; i < 199; ++i) deep += "a";
  const std::vector<Case> cases = {
      {"empty", "", "is cut"},
      {"no stop", "\x80\x02N", "is cut"},
      {"os.system",
       "\x80\x02"
       "cos\nsystem\nX\x02\0\0\0id\x85R."s,
       "os.system"},
      {"builtins.eval",
       "\x80\x02"
       "cbuiltins\neval\n."s,
       "builtins.eval"},
      {"stack global", "\x80\x04\x8c\x02os\x8c\x06system\x93."s, "os.system"},
      {"nn.Module",
       "\x80\x02"
       "ctorch.nn.modules.linear\nLinear\n)\x81."s,
       "torch.nn.modules.linear.Linear"},
      {"text of 2 GB", cut_text, "is cut"},
      {"bytes of 2^63", "\x80\x02\x8e\0\0\0\0\0\0\0\x80"s, "is cut"},
      {"protocol 9", "\x80\x09N.", "protocol above 5"},
      {"unknown opcode", "\x80\x02\xff.", "opcode 0xff"},
      {"INST", "\x80\x02(ios\nsystem\n.", "opcode 0x69"},
      {"empty stack", "\x80\x02.", "stack is empty"},
      {"no mark", "\x80\x02t.", "lacks a mark"},
      {"unknown memo", "\x80\x02h\x05.", "never stored"},
      {"odd items", "\x80\x02}(Nu.", "key without a value"},
      {"append to None", "\x80\x02NNa.", "no list"},
      {"item in None", "\x80\x02NNNs.", "no dict"},
      {"build of None", "\x80\x02N}b.", "no object"},
      {"call of None", "\x80\x02N)R.", "no global"},
      {"deep", deep + ".", "nested deeper"},
      {"cycle",
       "\x80\x02]q\x01h\x01"
       "a.",
       "nested deeper"},
      {"a million values", "\x80\x02" + std::string(1'000'001, 'N') + ".", "more than 400000 values"},
      {"a million memo entries", "\x80\x02N" + std::string(1'000'001, '\x94') + ".",
       "more than 400000 values"},
      {"a value pushed a million times",
       [] {
         std::string pushes = "\x80\x02Nq\x01";
         for (int i = 0; i < 1'000'000; ++i) pushes += "h\x01";
         return pushes + ".";
       }(),
       "more than 400000 values"},
      {"a million marks", "\x80\x02" + std::string(1'000'001, '(') + ".", "nested deeper"},
  };
  expect_refused(cases, [](const std::string& input) { Pickle(bytes_of(input), is_state_dict_global, "x"); });
}

TEST(Malformed, JsonIsRefusedWithTheReason) {
  expect_refused({{"empty", "", "not valid JSON"},
                  {"cut", "{\"a\":", "not valid JSON"},
                  {"NaN", "NaN", "not valid JSON"},
                  {"nested twins", R"({"a":{"b":1,"b":2}})", "'b' occurs twice"},
                  {"deep objects",
                   [] {
                     std::string text;
                     for (int i = 0; i < 100; ++i) text += "{\"a\":";
                     return text;
                   }(),
                   "nested deeper"}},
                 [](const std::string& input) { parse_json(input, "x"); });
}

TEST(Malformed, StrangeFilesAreNamedWithTheWayOut) {
  const testing::TemporaryFolder folder;
  const std::vector<Case> cases = {
      {"empty", "", "is empty"},
      {"lfs", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"},
      {"hdf5", "\x89HDF\r\n\x1a\n", "HDF5"},
      {"7z", "7z\xbc\xaf\x27\x1c", "7z archive"},
      {"gzip", "\x1f\x8b\x08", "unpack it first"},
      {"html", "<!DOCTYPE html>", "failed download"},
      {"npy", "\x93NUMPY\x01", "NumPy array"},
      {"plain pickle", "\x80\x04N.", "plain pickle"},
      {"text", "hello, world", "no model that is known"},
      {"zip without directory", "PK\x03\x04" + std::string(30, '\0'), "no central directory"},
      {"tar", std::string(257, 'a') + "ustar" + std::string(250, '\0'), "tar archive"}};
  expect_refused(cases, [&](const std::string& input) {
    testing::write_file(folder / "model", input);
    detect_model(folder / "model");
  });
}

}  // namespace
}  // namespace mcompress
