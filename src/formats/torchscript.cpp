#include "mcompress/formats/torchscript.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <functional>
#include <map>
#include <string_view>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/pickle.h"
#include "mcompress/formats/tensor_place.h"

namespace mcompress {

namespace {

using namespace std::string_view_literals;

// The name below the archive's one folder, in lower case: LibTorch looks members up without case.
std::string inner_name(const ZipEntry& entry) {
  const size_t slash = entry.name.find('/');
  std::string name = slash == std::string::npos ? entry.name : entry.name.substr(slash + 1);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); });
  return name;
}

// The members by inner name. LibTorch takes the first member's folder for the archive's, so what lies
// in another, or twice under names that it does not tell apart, would not be what was scanned.
std::map<std::string, const ZipEntry*> members_of(const std::vector<ZipEntry>& entries,
                                                  const std::string& path) {
  std::map<std::string, const ZipEntry*> members;
  if (entries.empty()) return members;
  const std::string folder = entries.front().name.substr(0, entries.front().name.find('/') + 1);
  for (const ZipEntry& entry : entries) {
    if (folder.empty() || !entry.name.starts_with(folder))
      throw bad_data("member '{}' of '{}' lies outside the archive's folder '{}'", entry.name, path, folder);
    if (!members.emplace(inner_name(entry), &entry).second)
      throw bad_data("'{}' holds the member '{}' twice", path, entry.name);
  }
  return members;
}

bool is_torchscript_global(std::string_view global) {
  static constexpr std::array kAllowed = {"torch._utils._rebuild_qtensor"sv,
                                          "torch._utils._rebuild_sparse_tensor"sv,
                                          "builtins.complex"sv,
                                          "torch.per_tensor_affine"sv,
                                          "torch.per_channel_affine"sv,
                                          "torch.QInt8Storage"sv,
                                          "torch.QUInt8Storage"sv,
                                          "torch.QInt32Storage"sv,
                                          "torch.jit._pickle.build_intlist"sv};
  return global.starts_with("__torch__.") || global.starts_with("torch.jit._pickle.") ||
         is_state_dict_global(global) || global.ends_with("Storage") ||
         std::find(kAllowed.begin(), kAllowed.end(), global) != kAllowed.end();
}

// Reads the words and signs of TorchScript source, without its strings and comments. LibTorch's writer
// names operators only as torch.NAME or ops.SPACE.NAME and quotes strings in one line; what differs
// could hide an operator's name and is refused.
class SourceScanner {
 public:
  SourceScanner(std::string_view text, std::string what, bool trust_code)
      : text_(text), what_(std::move(what)), trust_code_(trust_code) {}

  void scan() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (expects_dot_ && c != '.' && !is_declared()) refuse_hidden();
      expects_dot_ = false;
      if (c == '#') {
        skip_until('\n');
      } else if (c == '"' || c == '\'') {
        skip_string(c);
        chain_.clear();
      } else if (std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_') {
        on_word(take_word());
      } else if (is_digit(at_)) {
        skip_number();
      } else {
        on_sign(c);
        ++at_;
      }
    }
  }

 private:
  // LibTorch's parser and compiler recurse over expressions; these bounds keep them on the stack.
  static constexpr size_t kMaxNesting = 100, kMaxTerms = 2000, kMaxIndent = 400;

  void skip_until(char end) {
    while (at_ < text_.size() && text_[at_] != end) ++at_;
  }

  void skip_string(char quote) {
    for (++at_; at_ < text_.size() && text_[at_] != quote; ++at_) {
      if (text_[at_] == '\n' && !trust_code_) refuse_hidden();
      if (text_[at_] == '\\') ++at_;
    }
    ++at_;
    // Three quotes in a row begin a string of many lines.
    if (at_ < text_.size() && text_[at_] == quote && !trust_code_) refuse_hidden();
  }

  [[noreturn]] void refuse_hidden() const {
    const auto line = 1 + std::count(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(at_), '\n');
    throw bad_data(
        "{} is written in a way that can hide what it calls (line {}); if you trust the model, pass "
        "--trust-code",
        what_, line);
  }

  bool is_digit(size_t place) const {
    return place < text_.size() && std::isdigit(static_cast<unsigned char>(text_[place])) != 0;
  }

  // Digits with a fraction and an exponent: the dot of `1.` is no access to an attribute.
  void skip_number() {
    while (is_digit(at_)) ++at_;
    if (at_ < text_.size() && text_[at_] == '.') ++at_;
    while (is_digit(at_)) ++at_;
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      const bool sign = at_ + 1 < text_.size() && (text_[at_ + 1] == '+' || text_[at_ + 1] == '-');
      if (is_digit(at_ + (sign ? 2 : 1))) at_ += sign ? 2 : 1;
      while (is_digit(at_)) ++at_;
    }
    count_term();
    chain_.clear();
    after_dot_ = false;
  }

  // A name with its type behind a colon is an attribute or a parameter.
  bool is_declared() const {
    const size_t next = text_.find_first_not_of(' ', at_);
    return next != std::string_view::npos && text_[next] == ':';
  }

  std::string_view take_word() {
    const size_t begin = at_;
    while (at_ < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '_'))
      ++at_;
    return text_.substr(begin, at_ - begin);
  }

  void on_word(std::string_view word) {
    count_term();
    if (!after_dot_) chain_.clear();
    if (!trust_code_) check_word(word);
    chain_ += chain_.empty() ? "" : ".";
    chain_ += word;
    after_dot_ = false;
  }

  void check_word(std::string_view word) {
    static constexpr std::array kSpaces = {
        "aten"sv,       "prim"sv,   "prims"sv,   "quantized"sv, "mkldnn"sv, "onednn"sv, "mkldnn_prepacked"sv,
        "_quantized"sv, "sparse"sv, "xnnpack"sv, "prepacked"sv};
    static constexpr std::array kClasses = {"quantized"sv, "sparse"sv, "rnn"sv, "xnnpack"sv, "mkldnn"sv};
    const bool of_torch = chain_ == "torch" || chain_ == "ops.aten";
    if (of_torch && (word == "save" || word == "from_file" || word == "load_tensor")) {
      throw bad_data("{} calls '{}', which reads or writes files; if you trust the model, pass --trust-code",
                     what_, word);
    }
    const auto allowed = [&](const auto& names) {
      return std::find(names.begin(), names.end(), word) != names.end();
    };
    if ((chain_ == "ops" && !allowed(kSpaces)) ||
        (chain_ == "__torch__.torch.classes" && !allowed(kClasses))) {
      throw bad_data(
          "{} uses '{}.{}', which is no part of computing; if you trust the model, pass --trust-code", what_,
          chain_, word);
    }
    // A name space that is not followed by a dot would be a value under another name.
    expects_dot_ = chain_.empty() ? word == "torch" || word == "ops" : chain_ == "ops";
  }

  void on_sign(char c) {
    if (c == '\n' && nesting_.empty()) {
      check_indent();
      terms_ = 0;
      chain_.clear();
      after_dot_ = false;
    }
    if (c == '\\' && !trust_code_) refuse_hidden();  // joins lines, which the writer never does
    if (std::isspace(static_cast<unsigned char>(c)) != 0 || c == '\\') return;
    after_dot_ = c == '.';
    if (!after_dot_) chain_.clear();
    if (after_dot_ && chain_.empty()) chain_ = ")";  // an attribute of a value
    if (c == '(' || c == '[' || c == '{') {
      count_term();
      nesting_.push_back(terms_);
      if (nesting_.size() > kMaxNesting)
        throw bad_data("{} nests deeper than {} brackets", what_, kMaxNesting);
    } else if ((c == ')' || c == ']' || c == '}') && !nesting_.empty()) {
      terms_ = nesting_.back();
      nesting_.pop_back();
    } else if (c == ',' && !nesting_.empty()) {
      terms_ = nesting_.back();
    } else if (!after_dot_) {
      count_term();
    }
  }

  void check_indent() {
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] == ' ') ++end;
    if (end - at_ > kMaxIndent) throw bad_data("{} indents deeper than {} columns", what_, kMaxIndent);
  }

  void count_term() {
    if (++terms_ > kMaxTerms) throw bad_data("{} has an expression of more than {} terms", what_, kMaxTerms);
  }

  std::string_view text_;
  std::string what_;
  bool trust_code_;
  size_t at_ = 0;
  std::string chain_;  // the words before this one, joined by dots
  bool after_dot_ = false, expects_dot_ = false;
  size_t terms_ = 0;             // of the expressions that are open
  std::vector<size_t> nesting_;  // terms outside each open bracket
};

// Every tensor of a TorchScript pickle lies inside its storage, and every storage inside its member.
void check_storages(const PickleValue& root, const std::string& folder,
                    const std::map<std::string, const ZipEntry*>& members, const std::string& path) {
  std::map<const PickleValue*, bool> seen;
  const std::function<void(const PickleValue&)> visit = [&](const PickleValue& value) {
    if (!seen.emplace(&value, true).second) return;
    const std::string what = fmt::format("a tensor of {} in '{}'", folder, path);
    TensorPlace place;
    if (read_tensor_place(value, place, what)) {
      const auto member = members.find(folder + "/" + place.storage_key);
      if (member == members.end())
        throw bad_data("{} needs the member '{}/{}', which is missing", what, folder, place.storage_key);
      const auto size = checked_mul(place.storage_elements, size_of(place.dtype));
      if (!size || *size > member->second->size_bytes) {
        throw bad_data("{} asks for {} elements of a member of {} bytes", what, place.storage_elements,
                       member->second->size_bytes);
      }
    }
    for (const PickleValue* item : value.items) visit(*item);
    for (const auto& [key, item] : value.entries) visit(*item);
    if (value.state != nullptr) visit(*value.state);
  };
  visit(root);
}

}  // namespace

bool is_torchscript(const std::vector<ZipEntry>& entries) {
  return std::any_of(entries.begin(), entries.end(),
                     [](const ZipEntry& e) { return inner_name(e) == "constants.pkl"; });
}

void scan_torchscript(const std::vector<ZipEntry>& entries, const std::string& path, bool trust_code) {
  check_crcs(entries, path);
  const auto members = members_of(entries, path);
  for (const char* needed : {"data.pkl", "constants.pkl", "version"}) {
    const bool hidden =
        members.contains(".data/version") && needed == std::string_view("version");  // newer writers
    if (!members.contains(needed) && !hidden) {
      throw bad_data("TorchScript archive '{}' has no member '{}'", path, needed);
    }
  }
  for (const char* folder : {"data", "constants"}) {
    const std::string content = unpack(*members.at(fmt::format("{}.pkl", folder)), path);
    const std::string what = fmt::format("{}.pkl of '{}'", folder, path);
    const Pickle pickle(std::as_bytes(std::span(content)), is_torchscript_global, what);
    check_storages(pickle.root(), folder, members, path);
  }
  for (const auto& [name, entry] : members) {
    if (!name.starts_with("code/") || !name.ends_with(".py")) continue;
    const std::string content = unpack(*entry, path);
    SourceScanner(content, fmt::format("'{}' of '{}'", name, path), trust_code).scan();
  }
}

}  // namespace mcompress
