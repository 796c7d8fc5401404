#pragma once
/// \file
/// Tensor maps for the bulk copy engine, made on the host. The driver's encoder is found at run time, so that nothing
/// links against the driver.

#include <cuda.h>

#include "cuda/attention.hpp"

namespace sparseattn::cuda::hopper {

/// Map of a [tokens, heads, d] bf16 array as a tensor with dimensions (d, heads, tokens); boxes hold 64 channels of
/// `box_heads` heads (inner) and `box_tokens` tokens, laid out as rows of 128 bytes with the 128-byte swizzle. The
/// array must be 16-byte aligned with strides that are multiples of 8 elements. `streamed`: read once, from
/// memory rather than the L2 cache.
[[nodiscard]] cudaError_t make_heads_map(CUtensorMap& map, const Heads& array, int tokens, int heads, int head_dim,
                                         int box_tokens, int box_heads = 1, bool streamed = false);

/// Map of the first `phases` of every `stride` tokens of such an array, with dimensions (d, heads, phases, rows) where
/// row r begins at token r * stride; boxes hold 64 channels of one phase of one head for `box_rows` rows.
[[nodiscard]] cudaError_t make_strided_map(CUtensorMap& map, const Heads& array, int heads, int head_dim, int stride,
                                           int phases, int rows, int box_rows);

}  // namespace sparseattn::cuda::hopper
