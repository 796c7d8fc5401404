#pragma once
/// \file
/// A layout as the kernels of cuda/ampere walk it.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::ampere {

struct Branch {
    Layout layout;
    Transposed transposed;  // backward only
    // Backward only, [Hq][T_q]: lse * log2(e) - log2(weight) (+inf: the row takes no part), then delta.
    float2* rows;
};
inline constexpr int most_branches = 2;

}  // namespace sparseattn::cuda::ampere
