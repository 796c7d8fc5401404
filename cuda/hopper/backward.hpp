#pragma once
/// \file
/// The backward pass on Hopper, behind the door.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::hopper {

/// What is not covered here, a string literal, or "".
[[nodiscard]] const char* backward_gap(const BackwardParams& params);
[[nodiscard]] std::size_t backward_workspace(const BackwardParams& params);
/// Arguments have been checked by the caller.
[[nodiscard]] Status backward(const BackwardParams& params);

}  // namespace sparseattn::cuda::hopper
