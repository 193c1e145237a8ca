#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mcompress/base/mapped_file.h"

namespace mcompress {

// A value of a pickle. Nothing is executed: calls and objects are kept as what they name.
struct PickleValue {
  enum class Kind { kNone, kBool, kInt, kFloat, kText, kTuple, kList, kDict, kGlobal, kCall, kStorage };
  Kind kind = Kind::kNone;
  int64_t integer = 0;                    // kBool, kInt (INT64_MIN for a larger number)
  double number = 0;                      // kFloat
  std::string_view text;                  // kText: the text or bytes; kGlobal: "module.name"
  std::vector<const PickleValue*> items;  // tuple, list; kCall: arguments; kStorage: persistent id
  std::vector<std::pair<const PickleValue*, const PickleValue*>> entries;  // kDict, or a call's items
  const PickleValue* callee = nullptr;                                     // kCall: its global
  const PickleValue* state = nullptr;                                      // kCall: what BUILD gave it
  mutable int height = 0;  // nesting below and including this value, once measured
};

// One parsed pickle; it owns its values. Texts point into the bytes that were parsed.
class Pickle {
 public:
  using Allow = bool (*)(std::string_view global);

  // Reads one pickle of protocol 2 to 5 from the front of `bytes`. Only globals that `allow` accepts
  // may be named; any other is refused with its name (65), as are unknown opcodes, counts that do
  // not fit the bytes, more than 400,000 values and nesting deeper than 128. `what` names the
  // pickle in messages.
  Pickle(Bytes bytes, Allow allow, const std::string& what);

  const PickleValue& root() const { return *root_; }
  uint64_t size_bytes() const { return size_bytes_; }  // bytes used, STOP included

 private:
  friend class PickleMachine;
  std::deque<PickleValue> values_;
  std::deque<std::string> texts_;  // names put together from two parts
  const PickleValue* root_ = nullptr;
  uint64_t size_bytes_ = 0;
};

}  // namespace mcompress
