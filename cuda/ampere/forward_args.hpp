#pragma once
/// \file
/// What the forward kernel of compute capability 8.0 gets, and its instantiations.

#include "cuda/attention.hpp"

namespace sparseattn::cuda::ampere {

/// Keys of one step: fewer where two steps of keys and values would not fit beside the queries.
constexpr int step_keys(int head_dim) {
    return head_dim > 128 ? 32 : 64;
}
/// Warps of a thread block, 16 queries each. With 256 channels a block of 128 queries is worked on by halves: its
/// queries, keys and values would not fit into the 99 KiB that every device since 8.0 has.
constexpr int forward_warps(int head_dim, int block) {
    return block == 128 && head_dim <= 128 ? 8 : 4;
}

/// Launches the kernel on arguments that forward_gap accepts.
template <int HeadDim, int Warps>
[[nodiscard]] cudaError_t launch_forward(const ForwardParams& params);

}  // namespace sparseattn::cuda::ampere
