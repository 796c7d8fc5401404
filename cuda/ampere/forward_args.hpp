#pragma once
/// \file
/// What the forward kernel of compute capability 8.0 gets, and its instantiations.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::ampere {

/// Launches the kernel on arguments that forward_gap accepts, with thread blocks of 64 or 128 queries.
template <int HeadDim, int Queries>
[[nodiscard]] cudaError_t launch_forward(const ForwardParams& params);

}  // namespace sparseattn::cuda::ampere
