#include "mcompress/formats/state_dict.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <set>

#include "mcompress/base/checked.h"
#include "mcompress/base/error.h"
#include "mcompress/formats/pickle.h"
#include "mcompress/formats/tensor_place.h"

namespace mcompress {

namespace {

using Kind = PickleValue::Kind;
using namespace std::string_view_literals;

constexpr std::array kWrappers = {"state_dict"sv, "model_state_dict"sv, "model"sv,
                                  "net"sv,        "params"sv,           "weights"sv};

// A dict, or an OrderedDict with its items.
bool is_dict(const PickleValue& value) {
  return value.kind == Kind::kDict || is_call_of(value, "collections.OrderedDict");
}

bool is_contiguous(const TensorPlace& place) {
  int64_t expected = 1;
  for (size_t i = place.shape.size(); i-- > 0;) {
    if (place.shape[i] != 1 && place.strides[i] != expected) return false;
    expected *= place.shape[i];
  }
  return true;
}

using FindStorage = std::function<Bytes(const std::string& key, const std::string& what)>;

Array to_array(const std::string& name, const TensorPlace& place, const FindStorage& find,
               const std::string& what) {
  const Bytes storage = find(place.storage_key, what);
  const auto size = checked_mul(place.storage_elements, size_of(place.dtype));
  if (!size || *size > storage.size()) {
    throw bad_data("{} has a storage of {} bytes, and the pickle asks for {} elements: the file is cut", what,
                   storage.size(), place.storage_elements);
  }
  Array array{name, place.dtype, place.shape, {}, {}};
  const uint64_t begin = place.offset * size_of(place.dtype);
  if (is_contiguous(place)) {
    array.bytes = storage.subspan(begin, *count_elements(place.shape) * size_of(place.dtype));
  } else {
    array.strides = place.strides;
    array.bytes = storage.subspan(begin, *size - begin);
  }
  return array;
}

// Walks the dict and turns its tensors into arrays.
class Collector {
 public:
  Collector(const FindStorage& find, const std::string& path) : find_(find), path_(path) {}

  void collect(const PickleValue& dict, const std::string& prefix) {
    for (const auto& [key, value] : dict.entries) {
      // A dict that holds another twice doubles the names at each level.
      if (++visited_ > kMaxEntries) throw bad_data("'{}' has more than {} entries", path_, kMaxEntries);
      if (key->kind != Kind::kText && key->kind != Kind::kInt) continue;
      const std::string name =
          prefix + (key->kind == Kind::kText ? std::string(key->text) : std::to_string(key->integer));
      const std::string what = fmt::format("tensor '{}' of '{}'", name, path_);
      TensorPlace place;
      if (read_tensor_place(*value, place, what)) {
        result.arrays.push_back(to_array(name, place, find_, what));
      } else if (is_dict(*value)) {
        collect(*value, name + ".");
      } else {
        result.notes.push_back(fmt::format("entry '{}' holds no tensor and was passed over", name));
      }
    }
  }

  StateDict result;

 private:
  static constexpr size_t kMaxEntries = 200'000;
  const FindStorage& find_;
  const std::string& path_;
  size_t visited_ = 0;
};

bool holds_tensor(const PickleValue& dict, const std::string& what) {
  TensorPlace ignored;
  return std::any_of(dict.entries.begin(), dict.entries.end(),
                     [&](const auto& entry) { return read_tensor_place(*entry.second, ignored, what); });
}

// The dict of tensors, or the one that a checkpoint holds under a usual name.
const PickleValue* unwrap(const PickleValue* dict, std::vector<std::string>& notes, const std::string& what) {
  while (!holds_tensor(*dict, what)) {
    const PickleValue* inner = nullptr;
    for (const std::string_view wrapper : kWrappers) {
      for (const auto& [key, value] : dict->entries) {
        if (inner == nullptr && key->kind == Kind::kText && key->text == wrapper && is_dict(*value)) {
          inner = value;
          notes.push_back(fmt::format("state dict taken from entry '{}'", wrapper));
        }
      }
    }
    if (inner == nullptr) break;
    dict = inner;
  }
  return dict;
}

// A model wrapped in DataParallel has every name begin with 'module.'.
void strip_module_prefix(StateDict& dict) {
  constexpr std::string_view kPrefix = "module.";
  const bool all =
      !dict.arrays.empty() && std::all_of(dict.arrays.begin(), dict.arrays.end(),
                                          [&](const Array& a) { return a.name.starts_with(kPrefix); });
  if (!all) return;
  for (Array& array : dict.arrays) array.name.erase(0, kPrefix.size());
  dict.notes.emplace_back("prefix 'module.' removed from every name");
}

StateDict read_root(const PickleValue& root, const FindStorage& find, const std::string& path) {
  if (!is_dict(root))
    throw bad_data("'{}' holds no state dict; save one with torch.save(model.state_dict(), path)", path);
  Collector collector(find, path);
  const PickleValue* dict = unwrap(&root, collector.result.notes, fmt::format("'{}'", path));
  collector.collect(*dict, "");
  if (collector.result.arrays.empty()) {
    throw bad_data("'{}' holds no tensors; save a state dict with torch.save(model.state_dict(), path)",
                   path);
  }
  strip_module_prefix(collector.result);
  std::map<std::string, int> seen;
  for (const Array& array : collector.result.arrays) {
    if (++seen[array.name] > 1) throw bad_data("'{}' names the tensor '{}' twice", path, array.name);
  }
  return std::move(collector.result);
}

// The pickle of a file that was written with torch.save(model): its first global is a user's class.
Pickle read_pickle(Bytes bytes, const std::string& path) {
  try {
    return Pickle(bytes, is_state_dict_global, fmt::format("'{}'", path));
  } catch (const Error& refused) {
    const std::string text = refused.what();
    const bool module = text.find("names 'torch.nn.") != std::string::npos ||
                        text.find("names '__main__.") != std::string::npos ||
                        text.find("names 'torchvision.") != std::string::npos;
    if (!module) throw;
    throw bad_data(
        "{}. It seems to be a whole pickled nn.Module, which only its own Python code can load: in that "
        "program, save torch.jit.script(model).save(path) or torch.save(model.state_dict(), path)",
        text);
  }
}

constexpr std::array<unsigned char, 10> kLegacyMagic = {0x6c, 0xfc, 0x9c, 0x46, 0xf9,
                                                        0x20, 0x6a, 0xa8, 0x50, 0x19};

// Reads the raw storages behind the pickles of the legacy layout.
std::map<std::string, Bytes> read_legacy_storages(Bytes rest, const Pickle& keys,
                                                  const std::map<std::string, DType>& dtypes,
                                                  const std::string& path) {
  std::map<std::string, Bytes> storages;
  for (const PickleValue* key : keys.root().items) {
    const std::string name(key->text);
    const auto dtype = dtypes.find(name);
    if (dtype == dtypes.end())
      throw bad_data("'{}' lists the storage '{}', which no tensor uses", path, name);
    uint64_t elements = 0;
    if (rest.size() < sizeof(elements)) throw bad_data("'{}' is cut before storage '{}'", path, name);
    std::memcpy(&elements, rest.data(), sizeof(elements));
    const auto size = checked_mul(elements, size_of(dtype->second));
    if (!size || !fits(sizeof(elements), *size, rest.size())) {
      throw bad_data("'{}' is cut: storage '{}' of {} elements does not fit the rest of the file", path, name,
                     elements);
    }
    storages[name] = rest.subspan(sizeof(elements), *size);
    rest = rest.subspan(sizeof(elements) + *size);
  }
  return storages;
}

// The dtype of every storage that a persistent id below `value` names.
void collect_storage_dtypes(const PickleValue& value, std::map<std::string, DType>& dtypes,
                            std::set<const PickleValue*>& seen) {
  if (value.kind == Kind::kStorage && value.items.size() >= 3 && value.items[1]->kind == Kind::kGlobal) {
    if (const auto dtype = dtype_of_storage(value.items[1]->text))
      dtypes[std::string(value.items[2]->text)] = *dtype;
  }
  if (!seen.insert(&value).second) return;
  for (const PickleValue* item : value.items) collect_storage_dtypes(*item, dtypes, seen);
  for (const auto& [key, item] : value.entries) collect_storage_dtypes(*item, dtypes, seen);
}

}  // namespace

bool looks_like_legacy_torch_save(Bytes bytes) {
  // PROTO 2, LONG1 of ten bytes, the magic number.
  constexpr size_t kMagicAt = 4;
  return bytes.size() > kMagicAt + kLegacyMagic.size() && bytes[0] == std::byte{0x80} &&
         bytes[2] == std::byte{0x8a} &&
         std::memcmp(bytes.data() + kMagicAt, kLegacyMagic.data(), kLegacyMagic.size()) == 0;
}

StateDict read_state_dict_zip(const std::vector<ZipEntry>& entries, const std::string& path) {
  const ZipEntry* pickle_entry = nullptr;
  std::map<std::string, const ZipEntry*> storages;
  for (const ZipEntry& entry : entries) {
    const size_t slash = entry.name.find('/');
    const std::string inner = slash == std::string::npos ? entry.name : entry.name.substr(slash + 1);
    if (inner == "data.pkl") pickle_entry = &entry;
    if (inner.starts_with("data/")) storages[inner.substr(5)] = &entry;
  }
  if (pickle_entry == nullptr) {
    throw bad_data("'{}' is a zip, but neither TorchScript nor torch.save wrote it: it has no data.pkl",
                   path);
  }
  check_crcs(entries, path);
  const std::string content = unpack(*pickle_entry, path);
  const Pickle pickle = read_pickle(std::as_bytes(std::span(content)), path);
  const FindStorage find = [&](const std::string& key, const std::string& what) {
    const auto found = storages.find(key);
    if (found == storages.end()) throw bad_data("{} needs the member 'data/{}', which is missing", what, key);
    if (found->second->deflated)
      throw bad_data("{} has a compressed storage; torch.save stores them plain", what);
    return found->second->data;
  };
  return read_root(pickle.root(), find, path);
}

StateDict read_legacy_state_dict(Bytes bytes, const std::string& path) {
  // Magic number, protocol version and the writer's sizes come first and are not needed.
  uint64_t at = 0;
  for (int i = 0; i < 3; ++i) at += read_pickle(bytes.subspan(at), path).size_bytes();
  const Pickle object = read_pickle(bytes.subspan(at), path);
  at += object.size_bytes();
  const Pickle keys = read_pickle(bytes.subspan(at), path);
  at += keys.size_bytes();
  std::map<std::string, DType> dtypes;
  std::set<const PickleValue*> seen;
  collect_storage_dtypes(object.root(), dtypes, seen);
  const auto storages = read_legacy_storages(bytes.subspan(at), keys, dtypes, path);
  const FindStorage find = [&](const std::string& key, const std::string& what) {
    const auto found = storages.find(key);
    if (found == storages.end()) throw bad_data("{} needs the storage '{}', which is missing", what, key);
    return found->second;
  };
  return read_root(object.root(), find, path);
}

}  // namespace mcompress
