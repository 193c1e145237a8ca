#include "mcompress/methods/teacher.h"

#include <ATen/ATen.h>

#include "mcompress/base/error.h"
#include "mcompress/base/output.h"
#include "mcompress/base/progress.h"
#include "mcompress/base/sha256.h"
#include "mcompress/formats/safetensors.h"
#include "mcompress/model/checkpoint.h"
#include "mcompress/model/pieces.h"

namespace mcompress {

namespace {

constexpr int64_t kHashDigits = 64;

// A hash of the arrays but for the hash itself.
std::string hash_of(const std::vector<Array>& arrays) {
  std::string hashes;
  for (const char* name : {"scores", "classes"}) {
    for (const Array& array : arrays) {
      if (array.name == name) hashes += sha256_of(array.bytes);
    }
  }
  return sha256_of(std::as_bytes(std::span(hashes)));
}

// A teacher's output in the type of the file, checked.
at::Tensor narrowed(const at::Tensor& scores, int64_t begin, int64_t rows) {
  if (scores.dim() != 2 || scores.size(0) != rows)
    throw bad_data("the teacher's output is not [batch, classes]");
  const at::Tensor half = scores.to(at::kHalf);
  if (!half.isfinite().all().item<bool>())
    throw bad_data(
        "the teacher's scores of the rows from {} to {} of the data hold NaN, infinity or numbers beyond "
        "65504; check those rows, then the teacher",
        begin, begin + rows);
  return half;
}

}  // namespace

TeacherBatch TeacherScores::at(const at::Tensor& places) const {
  return {scores.index_select(0, places).to(at::kFloat),
          classes.defined() ? classes.index_select(0, places).to(at::kLong) : at::Tensor()};
}

void write_teacher_scores(const std::string& path,
                          const std::function<at::Tensor(const at::Tensor&)>& teacher, const Dataset& data,
                          int64_t batch_size, int64_t top_k, const TeacherSource& source) {
  const Dataset all{data.inputs, {}, data.options};
  const int64_t classes = narrowed(teacher(all.batch(0, 1)), 0, 1).size(1);
  const bool cut = top_k > 0 && top_k < classes;
  const int64_t columns = cut ? top_k : classes;
  std::vector<SafetensorsWriter::Entry> entries = {{"scores", DType::kF16, {all.size(), columns}},
                                                   {"sha256", DType::kU8, {kHashDigits}}};
  if (cut) entries.push_back({"classes", DType::kI32, {all.size(), columns}});
  const SafetensorsWriter writer(std::move(entries), source);
  OutputFile file(path, true);
  writer.write_header(file);
  const std::string no_hash(kHashDigits, '0');  // so that the file has its length
  writer.write(file, "sha256", 0, std::as_bytes(std::span(no_hash)));
  Progress progress("run the teacher", all.size());
  all.for_batches(batch_size, [&](const at::Tensor& batch, int64_t begin, int64_t end) {
    at::Tensor scores = narrowed(teacher(batch), begin, end - begin);
    if (cut) {
      const auto [highest, indices] = scores.to(at::kFloat).topk(columns, 1);
      const at::Tensor places = indices.to(at::kInt);
      writer.write(file, "classes", static_cast<uint64_t>(begin * columns) * sizeof(int32_t),
                   bytes_of(places));
      scores = highest.to(at::kHalf);
    }
    scores = scores.contiguous();
    writer.write(file, "scores", static_cast<uint64_t>(begin * columns) * sizeof(at::Half), bytes_of(scores));
    progress.step(end - begin);
  });
  const MappedFile written(file.temporary());
  const std::string hash = hash_of(read_safetensors(written.bytes(), file.temporary()).arrays);
  writer.write(file, "sha256", 0, std::as_bytes(std::span(hash)));
  file.commit();
}

TeacherScores read_teacher_scores(const std::string& path, const TeacherSource& source, int64_t rows,
                                  int64_t classes) {
  const auto file = std::make_shared<const MappedFile>(path);
  const auto damaged = [&](const std::string& why) {
    return bad_data("the teacher's scores in '{}' are damaged: {}; delete the file and run again", path, why);
  };
  SafetensorsFile content;
  try {
    content = read_safetensors(file->bytes(), path);
  } catch (const Error& failure) {
    throw damaged(failure.what());
  }
  for (const auto& [name, value] : source) {
    if (name.ends_with("_path")) continue;
    const auto found = content.metadata.find(name);
    if (found == content.metadata.end()) throw damaged(fmt::format("'{}' is missing", name));
    if (found->second == value) continue;
    const auto place = content.metadata.find(name + "_path");
    throw error(
        Exit::kConfig,
        "'{}' holds a teacher's scores of another {}: {}, not {}; delete it or choose another --cache", path,
        name,
        place == content.metadata.end() ? found->second
                                        : fmt::format("'{}' ({})", place->second, found->second),
        value);
  }
  TeacherScores result;
  std::string hash;
  for (const Array& array : content.arrays) {
    if (array.name == "sha256" && array.dtype == DType::kU8)
      hash.assign(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size());
    const bool fits =
        array.shape.size() == 2 && array.shape[0] == rows && array.shape[1] > 0 && array.shape[1] <= classes;
    if (array.name == "scores" && array.dtype == DType::kF16 && fits) result.scores = map_rows(array, file);
    if (array.name == "classes" && array.dtype == DType::kI32 && fits) result.classes = map_rows(array, file);
  }
  if (!result.scores.defined()) throw damaged(fmt::format("it has no scores of {} rows", rows));
  if (hash != hash_of(content.arrays)) throw damaged("its hash is not that of its content");
  const bool narrow = result.classes.defined();
  if (narrow ? result.classes.sizes() != result.scores.sizes() : result.scores.size(1) != classes)
    throw damaged("its classes and scores do not belong together");
  if (narrow && (result.classes.min().item<int64_t>() < 0 || result.classes.max().item<int64_t>() >= classes))
    throw damaged("it names classes that there are none of");
  return result;
}

}  // namespace mcompress
