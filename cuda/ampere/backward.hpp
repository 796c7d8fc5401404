#pragma once
/// \file
/// The backward pass of compute capability 8.0 and above, behind the door. Gradients are bit-identical from run to run.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::ampere {

// A call without gates is one with gate null, of which nothing of the sparse branch and not dgate is used.

/// What is not covered here, a string literal, or "".
[[nodiscard]] const char* backward_gap(const GatedBackwardParams& params);
[[nodiscard]] std::size_t backward_workspace(const GatedBackwardParams& params);
/// Arguments have been checked by the caller.
[[nodiscard]] Status backward(const GatedBackwardParams& params);

}  // namespace sparseattn::cuda::ampere
