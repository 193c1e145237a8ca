#include "mcompress/base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include "mcompress/base/interrupt.h"
#include "mcompress/base/text.h"

namespace mcompress {

namespace {

using Clock = std::chrono::steady_clock;

ProgressStyle active_style = ProgressStyle::kNone;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void set_progress_style(ProgressStyle style) {
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  if (style == ProgressStyle::kAuto) style = terminal ? ProgressStyle::kBar : ProgressStyle::kLines;
  active_style = style;
}

Progress::Progress(std::string phase, int64_t total)
    : phase_(std::move(phase)), total_(total), start_(Clock::now()), last_shown_(start_) {}

Progress::~Progress() {
  if (active_style == ProgressStyle::kBar) write_stderr("\r\x1b[K");
  if (active_style == ProgressStyle::kLines) {
    write_stderr(fmt::format("{}: {} of {} in {:.1f} s{}{}\n", phase_, done_, total_, elapsed_seconds(),
                             note_.empty() ? "" : ", ", note_));
  }
}

void Progress::line(const std::string& text) const {
  if (active_style == ProgressStyle::kBar) write_stderr("\r\x1b[K");
  if (active_style == ProgressStyle::kBar || active_style == ProgressStyle::kLines) write_stderr(text + "\n");
}

double Progress::elapsed_seconds() const { return seconds_between(start_, Clock::now()); }

double Progress::seconds_left() const {
  return elapsed_seconds() / static_cast<double>(done_) * static_cast<double>(total_ - done_);
}

void Progress::step(int64_t count) {
  check_interrupt();
  done_ += count;
  if (done_ <= 0) return;
  if (active_style == ProgressStyle::kJsonLines) {
    write_stderr(
        fmt::format("{{\"type\":\"progress\",\"phase\":\"{}\",\"done\":{},\"total\":{},\"eta_seconds\":{:.1f}"
                    ",\"note\":\"{}\"}}\n",
                    phase_, done_, total_, seconds_left(), note_));
  }
  const bool due = seconds_between(last_shown_, Clock::now()) > 0.1;
  if (active_style == ProgressStyle::kBar && due) {
    last_shown_ = Clock::now();
    write_stderr(fmt::format("\r\x1b[K{}: {} of {}, {:.0f} s left{}{}", phase_, done_, total_, seconds_left(),
                             note_.empty() ? "" : ", ", note_));
  }
}

}  // namespace mcompress
