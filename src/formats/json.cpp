#include "mcompress/formats/json.h"

#include <set>
#include <vector>

#include <nlohmann/json.hpp>

#include "mcompress/base/error.h"

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
  StrictCheck check;
  if (!nlohmann::json::sax_parse(text, &check)) throw bad_data("{}: {}", what, check.problem);
  return nlohmann::json::parse(text);
}

}  // namespace mcompress
