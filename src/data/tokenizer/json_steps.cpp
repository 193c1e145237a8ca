#include "json_steps.h"

#include <array>
#include <string_view>
#include <utility>

#include "mcompress/formats/base64.h"
#include "unicode.h"

namespace mcompress {

namespace {

using nlohmann::json;

// A pattern is {"String": text} or {"Regex": expression}.
std::variant<std::string, Expression> read_pattern(const JsonFields& fields, const json& step,
                                                   const char* what) {
  const json& pattern = JsonFields::member(step, "pattern");
  if (pattern.size() > 1) throw fields.fault(fmt::format("the pattern of {} has more than one key", what));
  if (JsonFields::member(pattern, "String").is_string()) return pattern["String"].get<std::string>();
  if (JsonFields::member(pattern, "Regex").is_string())
    return Expression(pattern["Regex"].get<std::string>(), fields.name());
  throw fields.fault(fmt::format("{} has no pattern, a String or Regex", what));
}

Behavior read_behavior(const JsonFields& fields, const json& step, const char* what) {
  constexpr std::array<std::pair<std::string_view, Behavior>, 5> kKnown = {
      {{"Removed", Behavior::kRemoved},
       {"Isolated", Behavior::kIsolated},
       {"MergedWithPrevious", Behavior::kMergedWithPrevious},
       {"MergedWithNext", Behavior::kMergedWithNext},
       {"Contiguous", Behavior::kContiguous}}};
  const std::string given = fields.text(step, "behavior", what);
  for (const auto& [name, behavior] : kKnown) {
    if (name == given) return behavior;
  }
  throw fields.fault(fmt::format("behavior '{}' of {} is not known", given, what));
}

class NormalizerReader {
 public:
  explicit NormalizerReader(const JsonFields& fields) : fields_(fields) {}

  void read(const json& step) {
    if (step.is_null()) return;
    constexpr const char* kWhat = "the normalizer";
    const std::string type = fields_.type_of(step, kWhat);
    if (type == "Sequence") {
      for (const json& part : fields_.list(step, "normalizers", kWhat)) read(part);
    } else if (type == "NFC") {
      add_form(NormalForm::kNfc);
    } else if (type == "NFD") {
      add_form(NormalForm::kNfd);
    } else if (type == "NFKC") {
      add_form(NormalForm::kNfkc);
    } else if (type == "NFKD") {
      add_form(NormalForm::kNfkd);
    } else if (type == "Lowercase") {
      steps.push_back(lowercase());
    } else if (type == "StripAccents") {
      steps.push_back(strip_accents());
    } else if (type == "Strip") {
      steps.push_back(strip(fields_.flag(step, "strip_left", true), fields_.flag(step, "strip_right", true)));
    } else if (type == "Prepend") {
      steps.push_back(prepend(fields_.text(step, "prepend", kWhat)));
    } else if (type == "Replace") {
      add_replace(step);
    } else if (type == "BertNormalizer") {
      add_bert(step);
    } else if (type == "Precompiled") {
      add_map(step);
    } else {
      throw fields_.fault(fmt::format("normalizer '{}' is not known", type));
    }
  }

  std::vector<Normalizer> steps;

 private:
  void add_form(NormalForm form) {
    steps.emplace_back([form](std::string_view text) { return normal_form(text, form); });
  }
  void add_replace(const json& step) {
    auto pattern = read_pattern(fields_, step, "normalizer Replace");
    std::string content = fields_.text(step, "content", "normalizer Replace");
    if (auto* expression = std::get_if<Expression>(&pattern)) {
      steps.push_back(replace(std::move(*expression), std::move(content)));
      return;
    }
    auto& from = std::get<std::string>(pattern);
    if (from.empty()) throw fields_.fault("normalizer Replace has an empty pattern");
    steps.push_back(replace(std::move(from), std::move(content)));
  }
  void add_bert(const json& step) {
    BertOptions options;
    options.clean_text = fields_.flag(step, "clean_text", true);
    options.handle_chinese_chars = fields_.flag(step, "handle_chinese_chars", true);
    options.lowercase = fields_.flag(step, "lowercase", true);
    options.strip_accents = fields_.flag(step, "strip_accents", options.lowercase);
    steps.push_back(bert_normalizer(options));
  }
  void add_map(const json& step) {
    constexpr const char* kKey = "precompiled_charsmap";
    if (JsonFields::member(step, kKey).is_null()) return;
    const std::string text = fields_.text(step, kKey, "normalizer Precompiled");
    if (text.empty()) return;
    const std::optional<std::string> bytes = from_base64(text);
    if (!bytes) throw fields_.fault("the precompiled_charsmap is not base64");
    steps.push_back(precompiled(std::make_shared<const CharacterMap>(*bytes, fields_.name())));
  }

  const JsonFields& fields_;
};

class PreTokenizerReader {
 public:
  explicit PreTokenizerReader(const JsonFields& fields) : fields_(fields) {}

  void read(const json& step) {
    constexpr const char* kWhat = "the pre_tokenizer";
    if (step.is_null()) return;
    const std::string type = fields_.type_of(step, kWhat);
    if (result.is_byte_level)
      throw fields_.fault(fmt::format("pre_tokenizer '{}' comes after ByteLevel", type));
    if (type == "Sequence") {
      for (const json& part : fields_.list(step, "pretokenizers", kWhat)) read(part);
    } else if (type == "ByteLevel") {
      add_byte_level(step);
    } else if (type == "Digits") {
      add(split_by_pattern(fields_.flag(step, "individual_digits", false) ? Split::kDigits
                                                                          : Split::kDigitRuns));
    } else if (type == "Split") {
      add_split(step);
    } else if (type == "Metaspace") {
      add_metaspace(step);
    } else if (type == "BertPreTokenizer") {
      add(split_for_bert());
    } else if (type == "Whitespace") {
      add(split_words());
    } else if (type == "WhitespaceSplit") {
      add(split_white_space());
    } else if (type == "Punctuation") {
      const bool given = !JsonFields::member(step, "behavior").is_null();
      add(split_punctuation(given ? read_behavior(fields_, step, "a Punctuation") : Behavior::kIsolated));
    } else {
      throw fields_.fault(fmt::format("pre_tokenizer '{}' is not known", type));
    }
  }

  PreTokenizer result;

 private:
  void add(SplitStep step) { result.splits.push_back(std::move(step)); }

  void add_byte_level(const json& step) {
    result.is_byte_level = true;
    const bool prefix = fields_.flag(step, "add_prefix_space", true),
               pattern = fields_.flag(step, "use_regex", true);
    if (prefix && !pattern)
      throw fields_.fault("ByteLevel with add_prefix_space and without use_regex is not known");
    if (pattern) add(split_by_pattern(Split::kGpt2, prefix));
  }

  void add_split(const json& step) {
    const Behavior behavior = read_behavior(fields_, step, "a Split");
    const bool invert = fields_.flag(step, "invert", false);
    const json& regex = JsonFields::member(JsonFields::member(step, "pattern"), "Regex");
    // The known patterns match all of a text, so that these two leave the same pieces.
    const bool keeps_all =
        (behavior == Behavior::kIsolated && !invert) || (behavior == Behavior::kRemoved && invert);
    const Split* known =
        regex.is_string() && keeps_all ? split_of_pattern(regex.get<std::string>()) : nullptr;
    add(known != nullptr ? split_by_pattern(*known)
                         : split_by_expression(read_pattern(fields_, step, "a Split"), behavior, invert));
  }

  void add_metaspace(const json& step) {
    constexpr const char* kWhat = "Metaspace";
    std::string scheme = fields_.flag(step, "add_prefix_space", true) ? "always" : "never";  // of older files
    if (!JsonFields::member(step, "prepend_scheme").is_null())
      scheme = fields_.text(step, "prepend_scheme", kWhat);
    if (scheme != "always" && scheme != "first" && scheme != "never")
      throw fields_.fault(fmt::format("prepend_scheme '{}' of Metaspace is not known", scheme));
    const std::string replacement = fields_.text(step, "replacement", kWhat);
    if (replacement.empty() || character_at(replacement, 0).bytes != replacement.size())
      throw fields_.fault(fmt::format("the replacement '{}' of Metaspace is not one character", replacement));
    add(metaspace(replacement,
                  scheme == "always"  ? Prepend::kAlways
                  : scheme == "first" ? Prepend::kFirst
                                      : Prepend::kNever,
                  fields_.flag(step, "split", true)));
  }

  const JsonFields& fields_;
};

}  // namespace

std::vector<Normalizer> read_normalizers(const JsonFields& fields, const json& step) {
  NormalizerReader reader(fields);
  reader.read(step);
  return std::move(reader.steps);
}

PreTokenizer read_pre_tokenizer(const JsonFields& fields, const json& step) {
  PreTokenizerReader reader(fields);
  reader.read(step);
  return std::move(reader.result);
}

}  // namespace mcompress
