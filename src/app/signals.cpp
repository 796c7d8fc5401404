#include "sparseattn/app/signals.hpp"

#include <array>
#include <csignal>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

constexpr std::array<int, 4> watched = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT};

// What handlers may touch.
volatile std::sig_atomic_t stop_signal_number = 0;
volatile std::sig_atomic_t checkpoint_wanted = 0;
volatile std::sig_atomic_t terminations = 0;

bool in_use = false;

extern "C" void sparseattn_on_signal(int number) {
    if (number == SIGUSR2) {
        checkpoint_wanted = 1;
        return;
    }
    stop_signal_number = number;
    if (number == SIGUSR1) return;
    terminations = terminations + 1;
    if (terminations > 1) {
        // Both are async-signal-safe; the signal arrives again, with its default action, when this handler returns.
        std::signal(number, SIG_DFL);
        std::raise(number);
    }
}

}  // namespace

SignalRequests::SignalRequests() {
    require(!in_use, "number of SignalRequests", 2, "1");
    stop_signal_number = 0;
    checkpoint_wanted = 0;
    terminations = 0;
    struct sigaction action = {};
    action.sa_handler = sparseattn_on_signal;
    action.sa_flags = SA_RESTART;  // an interrupted write of a file goes on
    sigemptyset(&action.sa_mask);
    for (const int number : watched) sigaction(number, &action, nullptr);
    in_use = true;
}

SignalRequests::~SignalRequests() {
    in_use = false;
}

bool SignalRequests::stop() const {
    return stop_signal_number != 0;
}

bool SignalRequests::take_checkpoint() {
    const bool wanted = checkpoint_wanted != 0;
    checkpoint_wanted = 0;
    return wanted;
}

const char* SignalRequests::stop_signal() const {
    switch (stop_signal_number) {
        case SIGUSR1:
            return "SIGUSR1";
        case SIGTERM:
            return "SIGTERM";
        case SIGINT:
            return "SIGINT";
        default:
            return "";
    }
}

}  // namespace sparseattn
