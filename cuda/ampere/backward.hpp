#pragma once
/// \file
/// The backward pass of compute capability 8.0 and above, behind the door. Gradients are bit-identical from run to run.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::ampere {

/// What is not covered here, a string literal, or "".
[[nodiscard]] const char* backward_gap(const BackwardParams& params);
[[nodiscard]] std::size_t backward_workspace(const BackwardParams& params);
/// Arguments have been checked by the caller.
[[nodiscard]] Status backward(const BackwardParams& params);

[[nodiscard]] const char* gated_backward_gap(const GatedBackwardParams& params);
[[nodiscard]] std::size_t gated_backward_workspace(const GatedBackwardParams& params);
[[nodiscard]] Status gated_backward(const GatedBackwardParams& params);

}  // namespace sparseattn::cuda::ampere
