#include "mcompress/base/interrupt.h"

#include <csignal>
#include <initializer_list>

#include <unistd.h>

namespace mcompress {

namespace {

volatile std::sig_atomic_t pending_signal = 0, accepted = 0;

void on_signal(int number) {
  if (pending_signal != 0) ::_exit(128 + number);
  pending_signal = number;
}

}  // namespace

void install_interrupt_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(number, &action, nullptr);
  // A write past RLIMIT_FSIZE then fails with EFBIG, which is reported as any full disk is.
  std::signal(SIGXFSZ, SIG_IGN);
}

void check_interrupt() {
  if (pending_signal != 0 && accepted == 0) throw Interrupted(pending_signal);
}

void accept_interrupt() { accepted = 1; }

}  // namespace mcompress
