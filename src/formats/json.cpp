#include "mcompress/formats/json.h"

#include <filesystem>
#include <set>
#include <vector>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"
#include "mcompress/base/mapped_file.h"
#include "mcompress/base/text.h"

namespace mcompress {

namespace {

constexpr size_t kMaxDepth = 64;

// A first pass that builds nothing but the key sets of the open objects: nlohmann's own parser
// keeps the last of two equal keys, and its copies crash on deep nesting.
class StrictCheck : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::string problem;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    return fail(fmt::format("key '{}' occurs twice", name));
  }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    return fail(fmt::format("not valid JSON at byte {}", at));
  }

 private:
  bool fail(std::string text) {
    problem = std::move(text);
    return false;
  }
  bool open() {
    keys_.emplace_back();
    return keys_.size() <= kMaxDepth || fail(fmt::format("nested deeper than {} levels", kMaxDepth));
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;
};

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& what) {
  if (text.starts_with("version https://git-lfs"))
    throw bad_data("{} is a Git LFS pointer, not the file; run 'git lfs pull'", what);
  StrictCheck check;
  if (!nlohmann::json::sax_parse(text, &check)) throw bad_data("{}: {}", what, check.problem);
  return nlohmann::json::parse(text);
}

nlohmann::json read_json_file(const std::string& path) {
  const MappedFile file(path);
  return parse_json(text_of(file.bytes()), fmt::format("'{}'", path));
}

std::string model_type_of(const std::string& folder) {
  const std::string path = folder + "/config.json";
  if (!std::filesystem::exists(path)) return "";
  const nlohmann::json config = read_json_file(path);
  const nlohmann::json type =
      config.is_object() ? config.value("model_type", nlohmann::json()) : nlohmann::json();
  return type.is_string() ? type.get<std::string>() : "";
}

}  // namespace mcompress
