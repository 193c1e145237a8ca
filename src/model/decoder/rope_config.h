#pragma once

#include <cstdint>

#include "config_keys.h"
#include "mcompress/model/decoder.h"

namespace mcompress {

// What a model says of its positions outside the object that describes the rotation.
struct RopeDefaults {
  double theta = 10000;
  int64_t positions = 0;      // that the model was made for
  int64_t original = 0;       // those that longrope begins from, over what its object says; 0: as that says
  int64_t rotated_width = 0;  // of a head
};

// Reads rope_parameters, as transformers 5 writes all of it, or rope_theta and rope_scaling, as 4 does.
// Throws Error(65) for what is not known of it.
Rope read_rope(const ConfigKeys& keys, const RopeDefaults& defaults);

// Whether rope_parameters holds an object for each kind of attention (Gemma 3), and the one of a kind.
bool has_rope_by_kind(const ConfigKeys& keys);
Rope read_rope_of_kind(const ConfigKeys& keys, const char* kind, const RopeDefaults& defaults);

}  // namespace mcompress
