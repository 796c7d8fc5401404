#pragma once
/// \file
/// The report of -c/--config: what this build is and where it runs.

#include <string>

namespace sparseattn {

/// Version, compiler, flags, Kokkos spaces and threads, MPI, HDF5 and BLAS libraries, attention kernels (a table, see
/// attention_coverage()), host: one "name: value" per line. Starts Kokkos (without arguments) when it is not running
/// and has its device; needs no MPI.
[[nodiscard]] std::string environment_report();

}  // namespace sparseattn
