#pragma once

#include <cstdint>

#include <nlohmann/json_fwd.hpp>

#include "config_keys.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// What a model says of its positions outside the object that describes the rotation.
struct RopeDefaults {
  double theta = 10000;
  int64_t positions = 0;      // that the model was made for
  int64_t rotated_width = 0;  // of a head
};

// Reads rope_parameters, as transformers 5 writes all of it, or rope_theta and rope_scaling, as 4 does.
// Throws Error(65) for what is not known of it.
Rope read_rope(const ConfigKeys& keys, const RopeDefaults& defaults);

// The same from an object of that kind; `name` is what messages call it.
Rope read_rope_object(const ConfigKeys& keys, const nlohmann::json& object, const std::string& name,
                      const RopeDefaults& defaults);

}  // namespace mcompress
