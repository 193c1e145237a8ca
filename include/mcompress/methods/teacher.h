#pragma once

#include <functional>
#include <map>
#include <string>

#include "mcompress/data/dataset.h"
#include "mcompress/methods/distill.h"

namespace mcompress {

// A teacher's scores for all rows of a data file, so that it runs over them once: safetensors with `scores`
// float16 [rows, k] and, of the k highest, `classes` int32 [rows, k]; `sha256` of both; and in the metadata
// what they were made from, of which all but the texts that end in "_path" must be the same when they are
// read.
using TeacherSource = std::map<std::string, std::string>;
struct TeacherScores {
  at::Tensor scores, classes;  // in their map

  TeacherBatch at(const at::Tensor& places) const;  // of these rows
};

// Runs the teacher over all rows of the data, whatever its `places` choose. `top_k` 0: all classes. Throws
// Error(65) where its outputs are no scores, not finite, or too large for float16.
void write_teacher_scores(const std::string& path,
                          const std::function<at::Tensor(const at::Tensor&)>& teacher, const Dataset& data,
                          int64_t batch_size, int64_t top_k, const TeacherSource& source);

// The scores of so many rows and classes. Throws Error(65) where the file is damaged, Error(78) where it was
// made from something else, naming that.
TeacherScores read_teacher_scores(const std::string& path, const TeacherSource& source, int64_t rows,
                                  int64_t classes);

}  // namespace mcompress
