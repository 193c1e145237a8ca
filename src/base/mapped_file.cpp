#include "mcompress/base/mapped_file.h"

#include <cerrno>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mcompress/base/error.h"

namespace mcompress {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw system_error(fmt::format("cannot open '{}'", path), errno);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw bad_data("'{}' is not a regular file", path);
  }
  const auto size = static_cast<size_t>(status.st_size);
  if (size > 0) {
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    const int error_number = errno;
    ::close(descriptor);
    if (address == MAP_FAILED) throw system_error(fmt::format("cannot map '{}'", path), error_number);
    bytes_ = Bytes(static_cast<const std::byte*>(address), size);
  } else {
    ::close(descriptor);
  }
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::drop(Bytes part) const {
  // Memory that is not of this map would lose its content.
  const bool inside =
      part.data() >= bytes_.data() && part.data() + part.size() <= bytes_.data() + bytes_.size();
  if (part.empty() || !inside) return;
  const size_t into_page =
      reinterpret_cast<uintptr_t>(part.data()) % static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  std::byte* begin = const_cast<std::byte*>(part.data()) - into_page;
  ::madvise(begin, part.size() + into_page, MADV_DONTNEED);
}

}  // namespace mcompress
