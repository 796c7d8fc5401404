#pragma once
/// \file
/// The one place that looks at KOKKOS_VERSION: what Kokkos 3.4.01 to 5.x spell differently, and what they spell long.

#include <Kokkos_Core.hpp>
#include <cmath>
#include <string>
#include <type_traits>

namespace sparseattn {

/// Whether the host reads and writes the memory of a space, a memory space or an execution space's own.
template <class Space>
inline constexpr bool host_accessible =
    Kokkos::SpaceAccessibility<Kokkos::HostSpace, typename Space::memory_space>::accessible;

/// Waits for the work submitted to `exec`; the label names the wait in profiles where Kokkos takes one (3.5 and later).
template <class Exec>
void fence(const Exec& exec, [[maybe_unused]] const std::string& label) {
#if KOKKOS_VERSION >= 30500
    exec.fence(label);
#else
    exec.fence();
#endif
}

/// Number of threads (host) or concurrently resident threads (device) of an execution-space instance.
template <class Exec>
int concurrency(const Exec& exec) {
    return static_cast<int>(exec.concurrency());
}

/// Number of the device that an execution-space instance runs on; -1 on the host.
template <class Exec>
int device_number([[maybe_unused]] const Exec& exec) {
#if defined(KOKKOS_ENABLE_CUDA)
    if constexpr (std::is_same_v<Exec, Kokkos::Cuda>) return exec.cuda_device();
#endif
    return -1;
}

/// Elementary functions callable on host and device in every supported Kokkos (its own math namespace starts at 3.7).
namespace math {
#if KOKKOS_VERSION >= 30700
using Kokkos::abs;
using Kokkos::cos;
using Kokkos::exp;
using Kokkos::fmax;
using Kokkos::fmin;
using Kokkos::isfinite;
using Kokkos::log;
using Kokkos::pow;
using Kokkos::sin;
using Kokkos::sqrt;
#else
using std::abs;
using std::cos;
using std::exp;
using std::fmax;
using std::fmin;
using std::isfinite;
using std::log;
using std::pow;
using std::sin;
using std::sqrt;
#endif
}  // namespace math

}  // namespace sparseattn
