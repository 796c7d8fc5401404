#pragma once
/// \file
/// What the backward kernels of Hopper share: one plain parameter block, the workspace, the launches.

#include <cuda.h>

#include "cuda/attention.hpp"

namespace sparseattn::cuda::hopper {

/// Queries are worked on in tiles of 64. Tiles never cross a row (query block), so each row has block / 64 of them and
/// tile t of head h is number h * tiles + t in every array over tiles.
inline constexpr int query_tile = 64;

/// Everything the kernels read besides the tensor maps.
struct BackwardArgs {
    int query_heads, key_heads;
    int tiles;           // of one head: layout.rows * block / 64
    float scale;         // of query . key
    float scale_log2;    // scale * log2(e)
    Batch batch;
    Layout layout;
    Transposed transposed;
    float* row_values;   // [Hq * tiles][2][64]: lse * log2(e) (+inf: the row takes no part), then delta
    float* dq_sums;      // [Hq * tiles][64 * d] in fragment order (see backward_parts.cuh), or null
    int* next_item;      // [2] work counters of the key pass and the query pass
    Heads dq, dk, dv;
};

/// Tensor maps, in boxes of 64 channels by the tokens that a kernel loads at once.
struct KeyPassMaps {
    CUtensorMap query, dout;  // 64 tokens
    CUtensorMap key, value;   // a block
};
struct QueryPassMaps {
    CUtensorMap query, dout;  // a block
    CUtensorMap key, value;   // a block
};

/// delta, lse to base 2, work counters to zero, dq_sums to zero when there are any.
cudaError_t launch_prepare(const BackwardArgs& args, const BackwardParams& params);
/// dK and dV; with args.dq_sums also adds each key block's share of dQ there, in no fixed order.
cudaError_t launch_key_pass(const BackwardArgs& args, const BackwardParams& params, int processors);
/// dQ by itself, in fixed order.
cudaError_t launch_query_pass(const BackwardArgs& args, const BackwardParams& params, int processors);
/// dQ from dq_sums.
cudaError_t launch_finish(const BackwardArgs& args, const BackwardParams& params);

}  // namespace sparseattn::cuda::hopper
