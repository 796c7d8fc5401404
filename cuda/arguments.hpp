#pragma once
/// \file
/// What a call must bring whichever kernel serves it.

#include "cuda/attention.hpp"

namespace sparseattn::cuda {

/// The first argument that breaks the door's contract, or null. Whether the workspace is large enough is not looked at:
/// that depends on the kernel.
[[nodiscard]] const char* broken_argument(const ForwardParams& params);

}  // namespace sparseattn::cuda
