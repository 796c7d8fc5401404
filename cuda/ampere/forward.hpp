#pragma once
/// \file
/// The forward kernel of compute capability 8.0 and above as the door sees it.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::ampere {

/// "" when the kernel covers the case, else what it does not cover. It needs no workspace.
[[nodiscard]] const char* forward_gap(const ForwardParams& params);
[[nodiscard]] Status forward(const ForwardParams& params);

}  // namespace sparseattn::cuda::ampere
