#include "mcompress/formats/zstd.h"
#include "prune.h"

namespace mcompress::cli {

void check_auto(const PruneCommand& options, const std::string& obstacle, Report& report) {
  const std::string text = fmt::format("'{}' cannot be stored as a bitmask: {}", options.model, obstacle);
  if (options.store != "auto") throw bad_data("{}; use --store dense", text);
  report.warnings.push_back(text);
}

uint64_t bytes_to_write(const PruneCommand& options, uint64_t dense_bytes) {
  return options.store == "dense" ? dense_bytes : 3 * dense_bytes;
}

void describe_dense(const std::string& path, const RunOptions& run, Report& report) {
  if (run.report.empty()) return;
  const MappedFile file(path);
  const uint64_t packed = timed(report, "pack", [&] { return packed_zstd_bytes(file.bytes()); });
  report.storage = Storage{"dense", file.bytes().size(), file.bytes().size(), packed, packed};
}

std::string write_stored(const PruneCommand& options, const OutputFile& dense, const OutputFile& sparse,
                         OutputFile& file, Report& report) {
  const MappedFile dense_map(dense.temporary()), sparse_map(sparse.temporary());
  const Bytes dense_bytes = dense_map.bytes(), sparse_bytes = sparse_map.bytes();
  return timed(report, "pack", [&] {
    const uint64_t dense_zstd = packed_zstd_bytes(dense_bytes);
    dense_map.drop(dense_bytes);
    std::string store = options.store;
    uint64_t sparse_zstd = store == "bitmask+zstd" ? 0 : packed_zstd_bytes(sparse_bytes);
    if (store == "auto") {
      const uint64_t least = std::min({dense_bytes.size(), sparse_bytes.size(), sparse_zstd});
      store = least == sparse_zstd ? "bitmask+zstd" : least == sparse_bytes.size() ? "bitmask" : "dense";
    }
    if (store == "bitmask+zstd") {
      pack_zstd(sparse_bytes, [&file](Bytes bytes) { file.write(bytes); });
      sparse_zstd = file.size();
    } else {
      file.write(store == "bitmask" ? sparse_bytes : dense_bytes);
    }
    report.storage = Storage{store, dense_bytes.size(), file.size(), dense_zstd,
                             store == "dense" ? dense_zstd : sparse_zstd};
    return store;
  });
}

}  // namespace mcompress::cli
