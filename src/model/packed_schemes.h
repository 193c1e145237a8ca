#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "mcompress/base/pattern.h"
#include "mcompress/model/packed_layer.h"

namespace mcompress {

// What a configuration says of a layer.
struct LayerScheme {
  int64_t bits = 0, group_size = 0;  // 0: it does not say
  bool symmetric = true;
  bool act_order = false;  // groups may be none of neighbours
};

// What a quantization_config that read_quantization() knows says of each layer, as readers of its form take
// it (GPTQModel, quantization/config.py; optimum, gptq/quantizer.py; AutoAWQ, utils/module.py; transformers,
// quantizers/quantizers_utils.py; compressed-tensors, utils/match.py).
class PackedSchemes {
 public:
  // Its keys in the order of the file. Throws Error(2) for an expression that is none.
  PackedSchemes(PackedForm form, nlohmann::ordered_json quantization);

  LayerScheme of(const std::string& layer) const;

  // Which readers leave alone a layer of a block, or of compressed-tensors any layer.
  struct Readers {
    bool all, some;
  };
  Readers left_alone(const std::string& layer) const;

  bool takes_every_linear() const;  // of compressed-tensors: that it does not ignore

 private:
  using Json = nlohmann::ordered_json;

  // A name, or an expression that matches from the start of one on.
  struct Name {
    std::string text;
    std::optional<Pattern> expression = {};

    bool is(const std::string& layer) const;
  };
  // Of GPTQModel, `dynamic`.
  struct Override {
    Pattern expression;
    bool leaves_out;
    Json change;
  };
  // Of compressed-tensors.
  struct Group {
    std::vector<Name> targets;
    Json weights;

    bool names(const std::string& layer) const;
  };

  const Override* override_of(const std::string& layer) const;
  const Group* group_of(const std::string& layer) const;

  PackedForm form_;
  Json quantization_;
  std::vector<Override> overrides_;
  std::vector<Group> groups_;
  std::vector<Name> ignored_;            // of compressed-tensors
  std::vector<Name> kept_;               // of AWQ, with expressions as transformers reads them
  std::vector<std::string> taken_ends_;  // of GPTQ, where only layers with such an end are packed
};

}  // namespace mcompress
