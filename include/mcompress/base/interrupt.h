#pragma once

#include <exception>

namespace mcompress {

// Thrown where work stops because a signal asked for it; not an Error.
struct Interrupted : std::exception {
  explicit Interrupted(int signal_number) : signal(signal_number) {}
  int signal;
};

// Makes SIGINT, SIGTERM and SIGHUP ask for a stop; a second one ends the process at once.
void install_interrupt_handlers();

// Throws Interrupted where a stop was asked for. Long loops call it at least every second.
void check_interrupt();

// From here on the stop is being made, and check_interrupt() lets it: for what saves the work so far.
void accept_interrupt();

}  // namespace mcompress
