#pragma once
/// \file
/// What this build is.

#include <string>

namespace sparseattn {

/// Library version, "0.1.0".
[[nodiscard]] std::string version();
/// Version with the git commit it was built from, "0.1.0+g1a2b3c4d5e6f" ("-dirty" when files differed).
[[nodiscard]] std::string version_with_commit();
/// Compiler, flags and the Kokkos back ends this library was compiled with, one "name: value" per line.
[[nodiscard]] std::string build_report();

/// Why Kokkos cannot start for want of a device, in CUDA's words; empty where it can. Needs no Kokkos.
[[nodiscard]] std::string missing_device();

}  // namespace sparseattn
