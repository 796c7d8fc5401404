#pragma once
/// \file
/// The Hopper forward kernel as the door sees it.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::hopper {

/// "" when the kernel covers the case, else what it does not cover.
[[nodiscard]] const char* forward_gap(const ForwardParams& params);
[[nodiscard]] std::size_t forward_workspace(const ForwardParams& params);
[[nodiscard]] Status forward(const ForwardParams& params);

}  // namespace sparseattn::cuda::hopper
