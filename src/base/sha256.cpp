#include "mcompress/base/sha256.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <vector>

#include <openssl/evp.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace fs = std::filesystem;

namespace {

class Hasher {
 public:
  Hasher() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  }

  void update(Bytes bytes) { EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()); }

  std::string finish() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int size = 0;
    EVP_DigestFinal_ex(context_.get(), digest.data(), &size);
    return fmt::format("{:02x}", fmt::join(digest.begin(), digest.begin() + size, ""));
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256_of(Bytes bytes) {
  Hasher hasher;
  hasher.update(bytes);
  return hasher.finish();
}

std::string sha256_of_file(const MappedFile& file, const std::stop_token& stop) {
  constexpr size_t kPiece = size_t{1} << 20;
  Hasher hasher;
  const Bytes all = file.bytes();
  for (size_t at = 0; at < all.size(); at += kPiece) {
    check_interrupt();
    if (stop.stop_requested()) return "";
    const Bytes piece = all.subspan(at, std::min(kPiece, all.size() - at));
    hasher.update(piece);
    file.drop(all.first(at + piece.size()));
  }
  return hasher.finish();
}

std::string sha256_of_path(const std::string& path, const std::stop_token& stop) {
  if (!fs::is_directory(path)) return sha256_of_file(MappedFile(path), stop);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  Hasher hasher;
  for (const fs::path& file : files) {
    const std::string line =
        file.filename().string() + " " + sha256_of_file(MappedFile(file.string()), stop) + "\n";
    hasher.update(std::as_bytes(std::span(line)));
  }
  return hasher.finish();
}

}  // namespace mcompress
