#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

namespace mcompress {

// auto: a bar where stderr is a terminal, lines otherwise. lines: one line a phase.
// jsonl: one JSON object a step.
enum class ProgressStyle { kAuto, kBar, kLines, kJsonLines, kNone };

void set_progress_style(ProgressStyle style);

// The progress of one phase of `total` steps on stderr, with the time left. The bar is erased when
// the phase ends. step() also stops the run where a signal asked for it (throws Interrupted).
class Progress {
 public:
  Progress(std::string phase, int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void step(int64_t count = 1);
  void note(std::string text) { note_ = std::move(text); }  // shown beside the counts, such as a loss
  // A line of its own among those of the phase, where a person reads: the result of one step.
  void line(const std::string& text) const;
  double seconds_left() const;  // an estimate, once there was a step

 private:
  double elapsed_seconds() const;

  std::string phase_, note_;
  int64_t total_, done_ = 0;
  std::chrono::steady_clock::time_point start_, last_shown_;
};

}  // namespace mcompress
