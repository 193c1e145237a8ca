#include "mcompress/data/images.h"

#include <algorithm>
#include <filesystem>

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/data_files.h"
#include "mcompress/formats/gzip.h"

namespace mcompress {

namespace fs = std::filesystem;

namespace {

at::Tensor copy_bytes(Bytes bytes, at::IntArrayRef shape) {
  return at::from_blob(const_cast<std::byte*>(bytes.data()), shape, at::kByte).clone();
}

at::Tensor read_idx_tensor(const std::string& path) {
  const MappedFile file(path);
  std::string unpacked;
  Bytes bytes = file.bytes();
  if (looks_like_gzip(bytes)) {
    unpacked = gunzip(bytes, path);
    bytes = std::as_bytes(std::span(unpacked));
  }
  const Array array = read_idx(bytes, path);
  return copy_bytes(array.bytes, array.shape);
}

std::string find_in(const std::string& folder, const std::string& stem) {
  for (const char* ending : {"", ".gz"}) {
    if (fs::exists(folder + "/" + stem + ending)) return folder + "/" + stem + ending;
  }
  throw error(Exit::kNoInput, "folder '{}' has no '{}' (or .gz)", folder, stem);
}

Images load_idx_folder(const std::string& folder) {
  at::Tensor pixels = read_idx_tensor(find_in(folder, "t10k-images-idx3-ubyte"));
  const at::Tensor labels = read_idx_tensor(find_in(folder, "t10k-labels-idx1-ubyte"));
  if (pixels.dim() != 3 || labels.dim() != 1 || pixels.size(0) != labels.size(0)) {
    throw bad_data("the images and labels in '{}' do not belong together", folder);
  }
  return {pixels.unsqueeze(1), labels.to(at::kLong), {}};
}

Images load_cifar(const std::string& path) {
  const MappedFile file(path);
  if (!looks_like_cifar10(file.bytes())) {
    throw bad_data("'{}' is no data set that is known: CIFAR-10 binary, or a folder with an IDX pair", path);
  }
  constexpr int64_t kChannels = 3, kSide = 32;
  const auto count = static_cast<int64_t>(file.bytes().size() / kCifarRow);
  const at::Tensor rows = copy_bytes(file.bytes(), {count, static_cast<int64_t>(kCifarRow)});
  return {rows.narrow(1, 1, kCifarRow - 1).reshape({count, kChannels, kSide, kSide}),
          rows.select(1, 0).to(at::kLong),
          {}};
}

at::Tensor per_channel(const std::vector<double>& values, int64_t channels, const char* name) {
  if (static_cast<int64_t>(values.size()) != channels) {
    throw error(Exit::kUsage, "--{} has {} values, and the images have {} channels", name, values.size(),
                channels);
  }
  return at::tensor(values, at::kFloat).view({1, channels, 1, 1});
}

}  // namespace

int64_t Images::size() const { return labels.size(0); }

at::Tensor Images::batch(int64_t begin, int64_t end) const {
  at::Tensor x = pixels.slice(0, begin, end).to(at::kFloat).mul_(options.scale);
  if (!options.mean.empty()) x.sub_(per_channel(options.mean, x.size(1), "mean"));
  if (!options.stddev.empty()) x.div_(per_channel(options.stddev, x.size(1), "std"));
  return x;
}

Images load_images(const std::string& path, const ImageOptions& options) {
  if (!fs::exists(path)) throw error(Exit::kNoInput, "data '{}' does not exist", path);
  Images images = fs::is_directory(path) ? load_idx_folder(path) : load_cifar(path);
  if (images.size() == 0) throw bad_data("data '{}' holds no samples", path);
  images.options = options;
  if (options.limit > 0 && options.limit < images.size()) {
    images.pixels = images.pixels.slice(0, 0, options.limit);
    images.labels = images.labels.slice(0, 0, options.limit);
  }
  images.batch(0, 1);  // wrong options fail before the long work
  return images;
}

}  // namespace mcompress
