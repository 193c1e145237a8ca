#include "mcompress/data/dataset.h"

#include <algorithm>
#include <filesystem>
#include <random>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/data_files.h"
#include "mcompress/formats/gzip.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/formats/zip.h"
#include "mcompress/model/checkpoint.h"

namespace mcompress {

namespace fs = std::filesystem;

namespace {

at::Tensor copy_array(const Array& array) {
  return rows_of(array, 0, array.shape.empty() ? 1 : array.shape[0]).clone();
}

bool is_label_array(const at::Tensor& tensor) { return tensor.dim() == 1 && !tensor.is_floating_point(); }

// Tells inputs from labels.
Dataset make_pair(at::Tensor first, at::Tensor second, const std::string& path) {
  if (is_label_array(first)) std::swap(first, second);
  if (!is_label_array(second))
    throw bad_data("'{}' has no labels: an array of rank 1 with an integer type", path);
  if (first.dim() < 2 || first.size(0) != second.size(0)) {
    throw bad_data("the inputs and labels of '{}' do not belong together: {} inputs, {} labels", path,
                   first.dim() == 0 ? 0 : first.size(0), second.size(0));
  }
  return {first, second.to(at::kLong), {}};
}

at::Tensor read_idx_tensor(const std::string& path) {
  const auto file = std::make_shared<const MappedFile>(path);
  if (!looks_like_gzip(file->bytes())) return map_rows(read_idx(file->bytes(), path), file);
  const std::string unpacked = gunzip(file->bytes(), path);
  return copy_array(read_idx(std::as_bytes(std::span(unpacked)), path));
}

Dataset load_idx_pair(const std::string& images, const std::string& labels) {
  Dataset data = make_pair(read_idx_tensor(images), read_idx_tensor(labels), images);
  if (data.inputs.dim() == 3) data.inputs = data.inputs.unsqueeze(1);
  return data;
}

std::string find_in(const std::string& folder, const std::string& stem) {
  for (const char* ending : {"", ".gz"}) {
    if (fs::exists(folder + "/" + stem + ending)) return folder + "/" + stem + ending;
  }
  throw error(Exit::kNoInput, "folder '{}' has no '{}' (or .gz)", folder, stem);
}

Dataset load_folder(const std::string& folder, const std::string& split) {
  const std::string prefix = split == "train" ? "train" : "t10k";
  const std::string images = find_in(folder, prefix + "-images-idx3-ubyte");
  return load_idx_pair(images, find_in(folder, prefix + "-labels-idx1-ubyte"));
}

// The labels' file name for one of images.
std::string labels_beside(const std::string& images) {
  std::string labels = images;
  const size_t at = labels.rfind("images-idx3");
  if (at == std::string::npos) {
    throw bad_data(
        "'{}' is an IDX file whose labels are not found by its name (images-idx3 -> labels-idx1); pass the "
        "folder",
        images);
  }
  return labels.replace(at, std::string("images-idx3").size(), "labels-idx1");
}

Dataset load_cifar(const SharedFile& file) {
  constexpr int64_t kChannels = 3, kSide = 32;
  const auto count = static_cast<int64_t>(file->bytes().size() / kCifarRow);
  const at::Tensor rows =
      map_rows({"cifar", DType::kU8, {count, static_cast<int64_t>(kCifarRow)}, {}, file->bytes()}, file);
  return {rows.narrow(1, 1, kCifarRow - 1).view({count, kChannels, kSide, kSide}),
          rows.select(1, 0).to(at::kLong),
          {}};
}

Dataset load_npz(Bytes bytes, const std::string& path, bool labelled) {
  std::vector<at::Tensor> tensors;
  for (const ZipEntry& entry : read_zip(bytes, path)) {
    if (!entry.name.ends_with(".npy"))
      throw bad_data("'{}' is a zip, but no .npz: it holds '{}'", path, entry.name);
    const std::string content = unpack(entry, path);
    tensors.push_back(copy_array(read_npy(std::as_bytes(std::span(content)), path + ":" + entry.name)));
  }
  if (tensors.size() == 1 && !labelled) return {tensors[0], {}, {}};
  if (tensors.size() != 2)
    throw bad_data("'{}' holds {} arrays; two are needed, inputs and labels", path, tensors.size());
  return make_pair(tensors[0], tensors[1], path);
}

Dataset load_safetensors(const SharedFile& file, const std::string& path, bool labelled) {
  const std::vector<Array> arrays = read_safetensors(file->bytes(), path).arrays;
  if (arrays.size() == 1 && !labelled) return {map_rows(arrays[0], file), {}, {}};
  if (arrays.size() != 2)
    throw bad_data("'{}' holds {} tensors; two are needed, inputs and labels", path, arrays.size());
  return make_pair(map_rows(arrays[0], file), map_rows(arrays[1], file), path);
}

at::Tensor map_npy(const SharedFile& file, const std::string& path) {
  return map_rows(read_npy(file->bytes(), path), file);
}

Dataset load_npy_pair(const std::string& first, const std::string& second) {
  const auto read = [](const std::string& path) {
    return map_npy(std::make_shared<const MappedFile>(path), path);
  };
  return make_pair(read(first), read(second), first);
}

Dataset load_file(const std::string& path, bool labelled) {
  const auto file = std::make_shared<const MappedFile>(path);
  const Bytes bytes = file->bytes();
  if (bytes.empty()) throw bad_data("data '{}' is empty; pass a file with samples", path);
  if (looks_like_gzip(bytes) || looks_like_idx(bytes)) return load_idx_pair(path, labels_beside(path));
  if (looks_like_zip(bytes)) return load_npz(bytes, path, labelled);
  if (looks_like_safetensors(bytes)) return load_safetensors(file, path, labelled);
  if (looks_like_npy(bytes) && !labelled) return {map_npy(file, path), {}, {}};
  if (looks_like_npy(bytes)) throw bad_data("'{}' is one .npy file; pass two as inputs.npy,labels.npy", path);
  if (looks_like_cifar10(bytes)) return load_cifar(file);
  throw bad_data("'{}' is no data set that is known: IDX, CIFAR-10 binary, .npy pair, .npz or safetensors",
                 path);
}

Dataset load(const std::string& path, const std::string& split, bool labelled) {
  const size_t comma = path.find(',');
  if (!fs::exists(path) && comma != std::string::npos)
    return load_npy_pair(path.substr(0, comma), path.substr(comma + 1));
  if (!fs::exists(path)) throw error(Exit::kNoInput, "data '{}' does not exist", path);
  return fs::is_directory(path) ? load_folder(path, split) : load_file(path, labelled);
}

at::Tensor per_channel(const std::vector<double>& values, const at::Tensor& inputs, const char* name) {
  const auto count = static_cast<int64_t>(values.size());
  if (count != 1 && count != inputs.size(1)) {
    throw error(Exit::kUsage, "--{} has {} values, and the data has {} channels", name, values.size(),
                inputs.size(1));
  }
  std::vector<int64_t> shape(static_cast<size_t>(inputs.dim()), 1);
  shape[1] = count;
  return at::tensor(values, at::kFloat).view(shape);
}

}  // namespace

int64_t Dataset::size() const { return places.defined() ? places.numel() : inputs.size(0); }

at::Tensor Dataset::batch(int64_t begin, int64_t end) const {
  return prepare(places.defined() ? inputs.index_select(0, places.slice(0, begin, end))
                                  : inputs.slice(0, begin, end));
}

at::Tensor Dataset::raw(const at::Tensor& samples) const {
  return inputs.index_select(0, places.defined() ? places.index_select(0, samples) : samples);
}

at::Tensor Dataset::prepare(const at::Tensor& raw) const {
  const bool bytes = raw.scalar_type() == at::kByte;
  if (!bytes && !raw.is_floating_point())
    return raw.to(at::kLong, false, true);  // token ids; the file's are not the model's to change
  at::Tensor x = raw.to(at::kFloat).mul(options.scale.value_or(bytes ? 1.0 / 255.0 : 1.0));
  if (!options.mean.empty()) x.sub_(per_channel(options.mean, x, "mean"));
  if (!options.stddev.empty()) x.div_(per_channel(options.stddev, x, "std"));
  return x;
}

Dataset Dataset::first(int64_t count) const {
  const auto cut = [&](const at::Tensor& rows) {
    return rows.defined() ? rows.slice(0, 0, std::min(count, size())) : rows;
  };
  return {places.defined() ? inputs : cut(inputs), cut(labels), options, cut(places)};
}

Dataset Dataset::select(const at::Tensor& samples) const {
  return {inputs, labels.defined() ? labels.index_select(0, samples) : labels, options,
          places.defined() ? places.index_select(0, samples) : samples};
}

void Dataset::for_batches(
    int64_t batch_size,
    const std::function<void(const at::Tensor& batch, int64_t begin, int64_t end)>& use) const {
  for (int64_t begin = 0; begin < size(); begin += batch_size) {
    const int64_t end = std::min(begin + batch_size, size());
    use(batch(begin, end), begin, end);
  }
}

at::Tensor shuffled(int64_t size, uint64_t seed) {
  at::Tensor order = at::arange(size, at::kLong);
  auto* values = order.mutable_data_ptr<int64_t>();
  std::mt19937_64 random(seed);
  for (int64_t i = size - 1; i > 0; --i)
    std::swap(values[i], values[random() % static_cast<uint64_t>(i + 1)]);
  return order;
}

namespace {

Dataset load_checked(const std::string& path, const DataOptions& options, bool labelled) {
  Dataset data = load(path, options.split, labelled);
  if (data.inputs.dim() == 0 || data.size() == 0) throw bad_data("data '{}' holds no samples", path);
  if (options.layout == "nhwc" && data.inputs.dim() == 4) data.inputs = data.inputs.permute({0, 3, 1, 2});
  data.options = options;
  if (options.limit > 0) data = data.first(options.limit);
  data.batch(0, 1);  // wrong options fail before the long work
  return data;
}

}  // namespace

Dataset load_dataset(const std::string& path, const DataOptions& options) {
  return load_checked(path, options, true);
}

Dataset load_inputs(const std::string& path, const DataOptions& options) {
  return load_checked(path, options, false);
}

}  // namespace mcompress
