#pragma once
/// \file
/// Start and end of a program: MPI, Kokkos, and what a failure does.

#include <functional>
#include <string>

#include "sparseattn/parallel/communicator.hpp"

namespace sparseattn {

/// Kokkos for the life of the object, unless it is running already. Hands the --kokkos-* arguments to it; `argv` is not
/// changed.
class KokkosGuard {
  public:
    KokkosGuard(int argc, const char* const* argv);
    ~KokkosGuard();
    KokkosGuard(const KokkosGuard&) = delete;
    KokkosGuard& operator=(const KokkosGuard&) = delete;

  private:
    bool started_;
};

/// MPI and Kokkos for the life of the object: initialised in this order, finalised in the other. What was already
/// running is left running. A process started without mpirun is a job of one rank; with SPARSEATTN_MPI=off in the
/// environment MPI is not touched at all. While an exception is on its way, MPI is left to run_guarded().
///
/// Errors: Error when MPI cannot serve threads, or when the launcher started several processes that MPI does not see
/// as one job.
class Runtime {
  public:
    Runtime(int argc, const char* const* argv);
    ~Runtime();
    Runtime(const Runtime&) = delete;
    Runtime& operator=(const Runtime&) = delete;

    [[nodiscard]] const Communicator& world() const { return world_; }

  private:
    class Mpi {
      public:
        Mpi();
        ~Mpi();
        Mpi(const Mpi&) = delete;
        Mpi& operator=(const Mpi&) = delete;

      private:
        bool started_ = false;
        int exceptions_;
    };
    Mpi mpi_;
    KokkosGuard kokkos_;
    Communicator world_;
};

/// Calls `body` and returns its exit code. An exception becomes one line per reason on stderr, "program: rank r of n:
/// reason", and the exit code of Error::exit_code() (70 for other exceptions), but for InvalidArgument and
/// NotCompiled that of bad input, 2. A failure that all ranks agreed on ends each of them in order and is printed once;
/// any other failure in a job of several ranks ends the whole job at once with that code (MPI_Abort), so that no rank
/// waits for the lost one.
[[nodiscard]] int run_guarded(const std::string& program, const std::function<int()>& body) noexcept;

/// This process's rank as the launcher's environment tells it before MPI runs; 0 when unknown.
[[nodiscard]] int launcher_rank();
/// The number of processes likewise; 1 when unknown.
[[nodiscard]] int launcher_size();

}  // namespace sparseattn
