#include <ATen/ATen.h>

#include "mcompress/base/interrupt.h"
#include "mcompress/formats/patch.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

// Rows whose elements do not lie one after the other are changed in a copy of all their bytes.
void produce_strided(const Array& array, const EditRows& edit, const std::function<void(Bytes)>& write) {
  std::vector<std::byte> copy(array.bytes.begin(), array.bytes.end());
  const Array copied{array.name, array.dtype, array.shape, array.strides, copy};
  const at::Tensor rows = rows_of(copied, 0, array.shape[0]);
  for_row_pieces(0, array.shape[0], rows.numel() / array.shape[0], [&](int64_t begin, int64_t end) {
    check_interrupt();
    const at::Tensor part = rows.slice(0, begin, end);
    part.copy_(edit(part, begin, end));
  });
  write(copy);
}

void produce(const Array& array, const EditRows& edit, const std::function<void(Bytes)>& write) {
  if (!array.strides.empty()) return produce_strided(array, edit, write);
  const auto columns = static_cast<int64_t>(array.bytes.size() / size_of(array.dtype)) / array.shape[0];
  for_row_pieces(0, array.shape[0], columns, [&](int64_t begin, int64_t end) {
    check_interrupt();
    write(bytes_of(edit(rows_of(array, begin, end), begin, end).contiguous()));
  });
}

}  // namespace

void write_edited(const CheckpointFiles& checkpoint, size_t part, const std::map<size_t, EditRows>& edits,
                  OutputFile& file) {
  std::vector<Patch> patches;
  for (const auto& [index, edit] : edits) {
    if (checkpoint.file_of[index] != part) continue;
    const Array& array = checkpoint.arrays[index];
    patches.push_back({array.bytes, [&array, &edit](const auto& write) { produce(array, edit, write); }});
  }
  write_patched(*checkpoint.files[part], std::move(patches), file);
}

}  // namespace mcompress
