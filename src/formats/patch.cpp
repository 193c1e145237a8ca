#include "mcompress/formats/patch.h"

#include <algorithm>

#include <zlib.h>

#include "mcompress/base/error.h"
#include "mcompress/formats/zip.h"

namespace mcompress {

namespace {

// The checksum of one member, made while its bytes pass by.
struct Member {
  ZipEntry entry;
  uLong crc = 0;
};

class Writer {
 public:
  Writer(const MappedFile& source, const std::vector<Patch>& patches, OutputFile& file)
      : source_(source), file_(file) {
    if (!looks_like_zip(source.bytes())) return;
    for (ZipEntry& entry : read_zip(source.bytes(), source.path())) {
      const auto patched = [&](const Patch& patch) {
        return patch.range.data() >= entry.data.data() &&
               patch.range.data() < entry.data.data() + entry.data.size();
      };
      if (entry.crc32 != 0 && std::any_of(patches.begin(), patches.end(), patched))
        members_.push_back({std::move(entry)});
    }
  }

  void write(Bytes bytes) {
    const size_t at = file_.size();
    for (Member& member : members_) {
      const auto begin = static_cast<size_t>(member.entry.data.data() - source_.bytes().data());
      const size_t first = std::max(at, begin);
      const size_t last = std::min(at + bytes.size(), begin + member.entry.data.size());
      if (first >= last) continue;
      const Bytes part = bytes.subspan(first - at, last - first);
      member.crc = ::crc32_z(member.crc, reinterpret_cast<const Bytef*>(part.data()), part.size());
    }
    file_.write(bytes);
  }

  void finish() {
    for (const Member& member : members_) {
      const auto crc = static_cast<uint32_t>(member.crc);
      for (const uint64_t place : crc_places(source_.bytes(), member.entry))
        file_.write_at(place, std::as_bytes(std::span(&crc, 1)));
    }
  }

 private:
  const MappedFile& source_;
  OutputFile& file_;
  std::vector<Member> members_;  // those with patches
};

}  // namespace

void write_patched(const MappedFile& source, std::vector<Patch> patches, OutputFile& file) {
  constexpr size_t kPiece = size_t{1} << 20;
  std::sort(patches.begin(), patches.end(),
            [](const Patch& a, const Patch& b) { return a.range.data() < b.range.data(); });
  Writer writer(source, patches, file);
  const Bytes all = source.bytes();
  const auto copy_until = [&](size_t end) {
    while (file.size() < end) {
      const size_t at = file.size();
      writer.write(all.subspan(at, std::min(kPiece, end - at)));
      source.drop(all.subspan(at, file.size() - at));
    }
  };
  for (const Patch& patch : patches) {
    const auto begin = static_cast<size_t>(patch.range.data() - all.data());
    copy_until(begin);
    if (file.size() == begin) patch.produce([&](Bytes bytes) { writer.write(bytes); });
    if (file.size() != begin + patch.range.size())
      throw error(Exit::kInternal, "internal error: a patch of other than {} bytes; please report it",
                  patch.range.size());
    source.drop(patch.range);
  }
  copy_until(all.size());
  writer.finish();
}

}  // namespace mcompress
