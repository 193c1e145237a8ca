#include "mcompress/base/process.h"

#include <array>
#include <bit>
#include <cerrno>
#include <csignal>
#include <fstream>

#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mcompress/base/error.h"
#include "mcompress/base/interrupt.h"

namespace mcompress {

namespace {

constexpr size_t kMaxOutput = size_t{1} << 20;

// Starts `command` in a process group of its own, its stdout going to `output`.
pid_t spawn_shell(const std::string& command, int output) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  const std::array<const char*, 4> arguments{"sh", "-c", command.c_str(), nullptr};
  pid_t child = 0;
  const int failed =
      ::posix_spawn(&child, "/bin/sh", &actions, &attributes, const_cast<char**>(arguments.data()), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0) throw system_error("cannot start /bin/sh", failed);
  return child;
}

bool has_ended(pid_t child) {
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == child;
}

// Everything the child writes until it ends or closes its end, though a process that it left behind
// may still hold the other; kills the child's group when interrupted.
std::string read_all(int input, pid_t child) {
  std::string text;
  std::array<char, 4096> buffer{};
  try {
    for (;;) {
      check_interrupt();
      struct pollfd waiting {
        input, POLLIN, 0
      };
      const bool ended = has_ended(child);
      const int ready = ::poll(&waiting, 1, ended ? 0 : 50);
      if (ended && (ready == 0 || text.size() >= kMaxOutput)) return text;
      if (ready <= 0) continue;
      const ssize_t count = ::read(input, buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return text;
      if (text.size() < kMaxOutput) text.append(buffer.data(), static_cast<size_t>(count));
    }
  } catch (const Interrupted&) {
    ::kill(-child, SIGTERM);
    throw;
  }
}

// A callback of dl_iterate_phdr: drops the pages of one library's code. The program itself, which has
// no name there, keeps its own, where a debugger may have set breakpoints.
int drop_code(dl_phdr_info* library, size_t /*size*/, void* /*data*/) {
  if (*library->dlpi_name == '\0') return 0;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = library->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) continue;
    const uintptr_t begin = (library->dlpi_addr + segment.p_vaddr) / page * page;
    const uintptr_t end = library->dlpi_addr + segment.p_vaddr + segment.p_memsz;
    ::madvise(std::bit_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
  return 0;
}

}  // namespace

void hold_standard_streams() {
  for (int descriptor = 0; descriptor <= 2; ++descriptor) {
    if (::fcntl(descriptor, F_GETFD) < 0) ::open("/dev/null", O_RDONLY);
  }
}

void drop_startup_code() { ::dl_iterate_phdr(drop_code, nullptr); }

void keep_freed_memory() {
  constexpr int kLargest = 32 << 20, kKept = 256 << 20;
  mallopt(M_MMAP_THRESHOLD, kLargest);
  mallopt(M_TRIM_THRESHOLD, kKept);
}

void give_back_freed_memory() { ::malloc_trim(0); }

uint64_t peak_rss_bytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string run_shell(const std::string& command) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw system_error("cannot make a pipe", errno);
  const pid_t child = spawn_shell(command, ends[1]);
  ::close(ends[1]);
  std::string text = read_all(ends[0], child);
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) check_interrupt();
  if (WIFSIGNALED(status)) {
    throw bad_data("--eval-command was ended by signal {}: {}", WTERMSIG(status), command);
  }
  if (WEXITSTATUS(status) != 0) {
    throw bad_data("--eval-command ended with exit code {}: {}", WEXITSTATUS(status), command);
  }
  return text;
}

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char letter : text) {
    if (letter == '\'') {
      quoted += "'\\''";
    } else {
      quoted += letter;
    }
  }
  return quoted + "'";
}

}  // namespace mcompress
