#pragma once
/// \file
/// Signals as requests that a loop polls.

namespace sparseattn {

/// While one exists, SIGUSR1, SIGTERM and SIGINT ask to stop after a checkpoint and SIGUSR2 asks for a checkpoint; the
/// second SIGTERM or SIGINT ends the process as if nothing were installed. The handlers stay for the rest of the
/// process: the ranks of a job stop together as soon as one of them was asked, and a request that reaches another rank
/// after that must not kill it. One object per process at a time (InvalidArgument otherwise).
class SignalRequests {
  public:
    SignalRequests();
    ~SignalRequests();
    SignalRequests(const SignalRequests&) = delete;
    SignalRequests& operator=(const SignalRequests&) = delete;

    /// Whether a stop was asked for; stays true.
    [[nodiscard]] bool stop() const;
    /// Whether a checkpoint was asked for since the last call.
    [[nodiscard]] bool take_checkpoint();
    /// "SIGTERM", ... that asked to stop; "" when none did.
    [[nodiscard]] const char* stop_signal() const;
};

}  // namespace sparseattn
