#include <nlohmann/json.hpp>

#include "json_fields.h"
#include "json_model.h"
#include "json_steps.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/json.h"
#include "parts.h"

namespace mcompress {

namespace {

using nlohmann::json;

// Reads one tokenizer.json; every step that it does not know is refused by name.
class Reader {
 public:
  Reader(const json& root, const std::string& name) : root_(root), fields_(name) {}

  Tokenizer read() {
    if (!root_.is_object() || !root_.contains("model")) throw fields_.fault("it has no 'model'");
    // "truncation", "padding" and "decoder" are of no concern for ids.
    normalizers_ = read_normalizers(fields_, JsonFields::member(root_, "normalizer"));
    PreTokenizer pre_tokenizer = read_pre_tokenizer(fields_, JsonFields::member(root_, "pre_tokenizer"));
    read_post_processor(JsonFields::member(root_, "post_processor"));
    JsonModel model = read_model(fields_, root_["model"], pre_tokenizer.is_byte_level);
    std::vector<AddedToken> raw, normalized;
    for (AddedToken& token : read_added_tokens(model)) {
      model.bytes_of[token.id] = token.content;
      (token.normalized ? normalized : raw).push_back(std::move(token));
    }
    return Tokenizer(std::make_unique<const Tokenizer::Parts>(Tokenizer::Parts{
        AddedTokens(std::move(raw)), AddedTokens(std::move(normalized)), std::move(normalizers_),
        std::move(pre_tokenizer.splits), std::move(model.pieces), std::move(before_), std::move(after_),
        std::move(model.bytes_of), std::move(model.kind)}));
  }

 private:
  void read_post_processor(const json& step) {
    constexpr const char* kWhat = "the post_processor";
    if (step.is_null()) return;
    const std::string type = fields_.type_of(step, kWhat);
    if (type == "Sequence") {
      for (const json& part : fields_.list(step, "processors", kWhat)) read_post_processor(part);
    } else if (type == "TemplateProcessing") {
      read_template(step);
    } else if (type == "RobertaProcessing" || type == "BertProcessing") {
      for (const auto& [key, ids] : {std::pair("cls", &before_), std::pair("sep", &after_)}) {
        const json& token = fields_.list(step, key, kWhat);
        if (token.size() != 2) throw fields_.fault(fmt::format("'{}' is not a token and its id", key));
        ids->push_back(fields_.id(token[1], key));
      }
    } else if (type != "ByteLevel") {  // which changes offsets only
      throw fields_.fault(fmt::format("post_processor '{}' is not known", type));
    }
  }

  void read_template(const json& step) {
    constexpr const char* kWhat = "the post_processor";
    std::vector<int32_t>* ids = &before_;
    int texts = 0;
    for (const json& piece : fields_.list(step, "single", kWhat)) {
      if (piece.is_object() && piece.contains("Sequence")) {
        if (fields_.text(piece["Sequence"], "id", kWhat) != "A" || ++texts > 1)
          throw fields_.fault("its template is not around one text $A");
        ids = &after_;
        continue;
      }
      const std::string token = fields_.text(JsonFields::member(piece, "SpecialToken"), "id", kWhat);
      for (const json& value : fields_.list(
               JsonFields::member(JsonFields::member(step, "special_tokens"), token.c_str()), "ids", kWhat))
        ids->push_back(fields_.id(value, token));
    }
    if (texts != 1) throw fields_.fault("its template is not around one text $A");
  }

  // The id of an added token is that of the same token of the model, or no other token's.
  void check_id(const AddedToken& token, const JsonModel& model) const {
    const auto of_model = model.ids.find(token.content);
    if (of_model != model.ids.end() && of_model->second != token.id)
      throw fields_.fault(fmt::format("added token '{}' has the id {}, and {} in the model", token.content,
                                      token.id, of_model->second));
    if (of_model == model.ids.end() && model.bytes_of.contains(token.id))
      throw fields_.fault(fmt::format("added token '{}' has the id {} of token '{}'", token.content, token.id,
                                      model.bytes_of.at(token.id)));
  }

  std::vector<AddedToken> read_added_tokens(const JsonModel& model) const {
    std::vector<AddedToken> tokens;
    const json& all = JsonFields::member(root_, "added_tokens");
    if (all.is_null()) return tokens;
    for (const json& entry : fields_.list(root_, "added_tokens", "it")) {
      AddedToken token;
      token.content = fields_.text(entry, "content", "an added token");
      token.id = fields_.id(JsonFields::member(entry, "id"), token.content);
      check_id(token, model);
      token.single_word = fields_.flag(entry, "single_word", false);
      token.lstrip = fields_.flag(entry, "lstrip", false);
      token.rstrip = fields_.flag(entry, "rstrip", false);
      token.normalized = fields_.flag(entry, "normalized", !fields_.flag(entry, "special", false));
      if (token.normalized) token.content = normalize(normalizers_, token.content);
      tokens.push_back(std::move(token));
    }
    return tokens;
  }

  const json& root_;
  const JsonFields fields_;
  std::vector<Normalizer> normalizers_;
  std::vector<int32_t> before_, after_;
};

}  // namespace

Tokenizer tokenizer_of_json(const json& root, const std::string& name) { return Reader(root, name).read(); }

Tokenizer read_tokenizer_json(std::string_view text, const std::string& name) {
  return tokenizer_of_json(parse_json(text, name), name);
}

}  // namespace mcompress
