#pragma once
/// \file
/// What the backward kernels of compute capability 8.0 share, and their launches.

#include "cuda/ampere/branch.hpp"

namespace sparseattn::cuda::ampere {

struct BackwardArgs {
    Batch batch;
    Branch branch[most_branches];  // full, or full and sparse
    int branches;
    const float* gate;  // [Hq] or null: a branch whose weight is 0 takes no part (of full: gate, of sparse: 1 - gate)
    Heads query, key, value, dout, dq, dk, dv;
    int query_heads, key_heads, group, head_dim;  // group: query heads per key head
    float scale, scale_log2;
};

/// What the forward pass left of each branch.
struct ForwardResults {
    Heads out[most_branches];
    Rows lse[most_branches];
};

/// Fills the branches' rows.
[[nodiscard]] cudaError_t launch_prepare(const BackwardArgs& args, const ForwardResults& results, cudaStream_t stream);
/// dgate [Hq] of two branches from their rows.
[[nodiscard]] cudaError_t launch_dgate(const BackwardArgs& args, float* dgate, cudaStream_t stream);
/// dK and dV, then dQ.
template <int HeadDim>
[[nodiscard]] cudaError_t launch_key_pass(const BackwardArgs& args, cudaStream_t stream);
template <int HeadDim>
[[nodiscard]] cudaError_t launch_query_pass(const BackwardArgs& args, cudaStream_t stream);

}  // namespace sparseattn::cuda::ampere
