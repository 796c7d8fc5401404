#pragma once
/// \file
/// The Hopper forward kernel as the door sees it.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::hopper {

/// "" when the kernel covers the case, else what it does not cover.
[[nodiscard]] const char* forward_gap(const ForwardParams& params);
[[nodiscard]] std::size_t forward_workspace(const ForwardParams& params);
[[nodiscard]] Status forward(const ForwardParams& params);

/// Both branches in one launch, without the blend. Each must be covered.
[[nodiscard]] std::size_t branches_workspace(const GatedForwardParams& params);
[[nodiscard]] Status branches_forward(const GatedForwardParams& params);

}  // namespace sparseattn::cuda::hopper
