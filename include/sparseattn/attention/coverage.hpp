#pragma once
/// \file
/// Which kernel serves which case.

#include <string>

namespace sparseattn {

/// The kernel of every pass, type and head dimension on this machine: a table for `-c` reports, one line per row, each
/// indented by two spaces. Where a CUDA build finds no device, its rows are one line with the reason. Needs no Kokkos.
[[nodiscard]] std::string attention_coverage();

}  // namespace sparseattn
