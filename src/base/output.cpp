#include "mcompress/base/output.h"

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace fs = std::filesystem;

namespace {

std::string folder_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// "out/" names the same output as "out".
std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string temporary_name(const std::string& path) {
  const fs::path target(path);
  return (target.parent_path() / fmt::format(".{}.mcompress-tmp", target.filename().string())).string();
}

Error cannot_write(const std::string& path, int error_number) {
  if (error_number == EFBIG) return error(Exit::kIo, "cannot write '{}': file too large", path);
  return system_error(fmt::format("cannot write '{}'", path), error_number);
}

Error already_exists(const std::string& path) {
  return error(Exit::kCannotCreate, "output '{}' exists; use --force to replace it", path);
}

// The parent of an output that cannot be made is no missing input: 66 becomes 73.
Error cannot_create(const std::string& path, int error_number) {
  const Error cause = system_error(fmt::format("cannot create '{}'", path), error_number);
  const bool name = cause.code() == Exit::kNoInput || error_number == ENAMETOOLONG || error_number == ELOOP;
  return name ? Error(Exit::kCannotCreate, cause.what()) : cause;
}

// Whether two paths name one file, also where it does not exist yet.
bool same_path(const std::string& a, const std::string& b) {
  std::error_code ignored;
  if (fs::equivalent(a, b, ignored)) return true;
  return fs::weakly_canonical(a, ignored) == fs::weakly_canonical(b, ignored);
}

void check_existing(const std::string& target, OutputKind kind, bool force) {
  const fs::file_status status = fs::status(target);
  const bool folder = fs::is_directory(status);
  if (kind == OutputKind::kFile && folder)
    throw error(Exit::kCannotCreate, "output '{}' is a folder; name a file", target);
  if (kind == OutputKind::kFolder && !folder)
    throw error(Exit::kCannotCreate, "output '{}' is a file; name a folder", target);
  if (!folder && !fs::is_regular_file(status))
    throw error(Exit::kCannotCreate, "output '{}' is no regular file; name another", target);
  if (!force) throw already_exists(target);
  if (folder && !fs::is_empty(target) && !fs::exists(fs::path(target) / "config.json")) {
    throw error(
        Exit::kCannotCreate,
        "output '{}' is a folder without a config.json, so it holds no model and --force leaves it alone; "
        "name another",
        target);
  }
}

// Takes the lock that marks a temporary as being written; false where another run holds it.
void lock_temporary(int descriptor, const std::string& path) {
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    ::close(descriptor);
    throw error(Exit::kCannotCreate, "another mcompress is writing '{}'; wait for it to end", path);
  }
}

void sync_folder(const std::string& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

// Renames without replacing, where the file system can; plain rename after a look elsewhere.
void rename_to_new(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return;
  if (errno == EEXIST) throw already_exists(to);
  if (errno != EINVAL && errno != ENOSYS) throw cannot_write(to, errno);
  if (fs::exists(fs::symlink_status(to))) throw already_exists(to);
  if (::rename(from.c_str(), to.c_str()) != 0) throw cannot_write(to, errno);
}

}  // namespace

bool is_inside(const std::string& path, const std::string& folder) {
  std::error_code ignored;
  const fs::path relative =
      fs::weakly_canonical(path, ignored).lexically_relative(fs::weakly_canonical(folder, ignored));
  return !relative.empty() && *relative.begin() != "..";
}

void check_output(const std::string& path, OutputKind kind, bool force,
                  const std::vector<std::string>& other_paths, uint64_t size_bytes) {
  const std::string target = without_trailing_slash(path);
  std::error_code ignored;
  for (const std::string& other : other_paths) {
    if (other.empty() || other == "-") continue;
    if (same_path(target, other))
      throw error(Exit::kCannotCreate,
                  "output '{}' is the input or another output of this run; choose another name", target);
    if (kind == OutputKind::kFolder && is_inside(other, target))
      throw error(Exit::kCannotCreate, "output '{}' is a folder around '{}'; choose another name", target,
                  other);
  }
  if (fs::exists(fs::status(target, ignored))) check_existing(target, kind, force);
  const std::string folder = folder_of(target);
  if (!fs::is_directory(folder, ignored)) {
    throw error(Exit::kCannotCreate, "folder '{}' of output '{}' does not exist; make it first", folder,
                target);
  }
  if (::access(folder.c_str(), W_OK | X_OK) != 0) {
    throw error(Exit::kPermission, "folder '{}' of output '{}' is not writable", folder, target);
  }
  struct statvfs disk {};
  if (::statvfs(folder.c_str(), &disk) != 0) return;
  const uint64_t free_bytes = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  if (free_bytes < size_bytes) {
    throw error(Exit::kIo, "the disk of '{}' has {} bytes left, and the output needs {}; make room", folder,
                free_bytes, size_bytes);
  }
}

OutputFile::OutputFile(const std::string& path, bool force)
    : path_(path), temporary_(temporary_name(path)), force_(force) {
  for (;;) {
    descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (descriptor_ < 0) throw cannot_create(path_, errno);
    lock_temporary(descriptor_, path_);
    // Between open and lock, the other writer may have renamed or removed the file.
    struct stat locked {
    }, named{};
    if (::fstat(descriptor_, &locked) == 0 && ::lstat(temporary_.c_str(), &named) == 0 &&
        locked.st_ino == named.st_ino) {
      break;
    }
    ::close(descriptor_);
  }
  if (::ftruncate(descriptor_, 0) != 0) throw cannot_write(path_, errno);
}

OutputFile::~OutputFile() {
  if (descriptor_ < 0) return;
  ::unlink(temporary_.c_str());
  ::close(descriptor_);
}

void OutputFile::write(Bytes bytes) {
  constexpr size_t kPiece = size_t{4} << 20;
  for (; !bytes.empty(); bytes = bytes.subspan(std::min(kPiece, bytes.size()))) {
    check_interrupt();
    const Bytes piece = bytes.first(std::min(kPiece, bytes.size()));
    write_at(size_, piece);
    size_ += piece.size();
  }
}

void OutputFile::write_at(uint64_t offset, Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw cannot_write(path_, errno);
    offset += static_cast<uint64_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void OutputFile::commit() {
  if (::fsync(descriptor_) != 0) throw cannot_write(path_, errno);
  if (force_) {
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw cannot_write(path_, errno);
  } else {
    rename_to_new(temporary_, path_);
  }
  ::close(descriptor_);
  descriptor_ = -1;
  sync_folder(folder_of(path_));
}

OutputFolder::OutputFolder(const std::string& path, bool force)
    : path_(without_trailing_slash(path)), temporary_(temporary_name(path_)), force_(force) {
  if (::mkdir(temporary_.c_str(), 0777) != 0 && errno != EEXIST) throw cannot_create(path_, errno);
  descriptor_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (descriptor_ < 0) throw cannot_create(path_, errno);
  lock_temporary(descriptor_, path_);
  for (const auto& entry : fs::directory_iterator(temporary_)) fs::remove_all(entry.path());
}

OutputFolder::~OutputFolder() {
  if (descriptor_ < 0) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  ::close(descriptor_);
}

void OutputFolder::commit() {
  ::fsync(descriptor_);
  if (force_ && fs::exists(fs::symlink_status(path_))) {
    if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) != 0) {
      throw cannot_write(path_, errno);
    }
    std::error_code ignored;
    fs::remove_all(temporary_, ignored);
  } else {
    rename_to_new(temporary_, path_);
  }
  ::close(descriptor_);
  descriptor_ = -1;
  sync_folder(folder_of(path_));
}

}  // namespace mcompress
