#pragma once

#include <cstdint>
#include <string>

namespace mcompress {

// Keeps files from being opened as 0, 1 or 2 where the caller closed these; writing there still fails.
void hold_standard_streams();

// Unmaps the pages of code that were read so far; those still needed come back from the page cache.
// LibTorch's start reads some 45 MB that are not used again.
void drop_startup_code();

// Keeps activations of up to 32 MiB, the most that glibc allows, in the heap when they are freed: pages that
// are given back and faulted in anew cost more than a convolution.
void keep_freed_memory();
// Gives back what was kept so far.
void give_back_freed_memory();

uint64_t peak_rss_bytes();  // highest resident set of this process so far
std::string cpu_name();     // model name of the processor as the kernel gives it

// Runs `command` with /bin/sh and returns what it wrote to stdout, at most 1 MiB; its stderr is
// ours. Throws Error(65) where it exits with another code than 0, Interrupted on a signal to us.
std::string run_shell(const std::string& command);

// `text` as one word for /bin/sh.
std::string shell_quoted(const std::string& text);

}  // namespace mcompress
