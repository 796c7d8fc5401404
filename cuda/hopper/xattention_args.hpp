#pragma once
/// \file
/// What the kernels of the XAttention selection share with their host side.

#include <cuda.h>

#include "cuda/select.hpp"

namespace sparseattn::cuda::hopper {

inline constexpr int strided_tile = 128;              // strided query rows of one tile
inline constexpr int tile_columns = 256;              // strided columns of one; a half tile has the first half of them
inline constexpr int band = 8;                        // row tiles whose tiles run together, for the sake of the cache
inline constexpr int part_heads = 128;                // heads of one launch at most
inline constexpr int most_choice_bytes = 200 * 1024;  // of shared memory for the rows that a thread block chooses for

/// The strided rows [first, first + 128) of one sequence, and their tiles of strided columns.
struct RowTile {
    std::int32_t sequence;
    std::int32_t first;
    std::int32_t columns;     // tiles of strided columns that the rows see
    std::int32_t half;        // 1: the last of them is a half tile
    std::int32_t begin;       // number of the first of them
    std::int32_t half_begin;  // half tiles before it
};
/// A tile of the list that the scores are formed from.
struct TilePlace {
    std::int32_t row_tile, column;
};

/// Plans no larger are made by every thread block of the score kernel for itself, in shared memory: a launch less, and
/// the list is nearer. The first thread block writes the row tiles to the plan's arrays for the kernel behind.
inline constexpr int own_row_tiles = 256, own_tiles = 2560;

/// The plan of one head, the same for all; made on the device.
struct XAttentionPlan {
    std::int32_t* row_tile_begin;  // [sequences + 1]
    RowTile* row_tiles;
    TilePlace* places;  // whole tiles in bands of row tiles, each by columns; then, from `half_places`, half tiles
    int sequences, row_tile_count, tile_count, half_count;
    __host__ __device__ bool own() const {
        return sequences <= own_row_tiles && row_tile_count <= own_row_tiles && tile_count <= own_tiles;
    }
    __host__ __device__ TilePlace* half_places() const { return places + (tile_count - half_count); }
};

/// Geometry.
struct XAttentionShape {
    int block, stride;
    bool causal, reversed, keep_sink, keep_recent;
    float scale_log2;
    Batch batch;

    __host__ __device__ int block_columns() const { return block / stride; }
    __host__ __device__ int tile_blocks() const { return tile_columns / block_columns(); }
};

/// Strided columns that take part in strided row `row` of a sequence.
__host__ __device__ inline int column_end(const XAttentionShape& shape, int row, int queries, int keys) {
    int tokens = keys;
    if (shape.causal) {
        const int last = (row + 1) * shape.stride;
        tokens = (last < queries ? last : queries) + keys - queries;
    }
    return (tokens + shape.stride - 1) / shape.stride;
}
/// Tiles of strided columns for a row tile.
struct TileCount {
    int tiles, halves;  // halves of these tiles: 0 or 1
};
__host__ __device__ inline TileCount count_tiles(const XAttentionShape& shape, int first, int queries, int keys) {
    if (keys == 0) return {0, 0};
    const int rows = (queries + shape.stride - 1) / shape.stride;
    const int last = (first + strided_tile < rows ? first + strided_tile : rows) - 1;
    const int columns = column_end(shape, last, queries, keys);
    const int rest = columns % tile_columns;
    return {(columns + tile_columns - 1) / tile_columns, rest > 0 && rest <= tile_columns / 2 ? 1 : 0};
}

/// A [tokens, heads, d] array seen as (channel, head, token % S, token / S): `full` holds the phases that every strided
/// row has, `longer` the first T % S phases, which have one row more.
struct StridedMap {
    CUtensorMap full, longer;
    int rest;  // T % S
    int rows;  // T / S
};

/// Heads of one launch.
struct HeadTable {
    double threshold[part_heads];
    std::int16_t head[part_heads];
    std::int16_t list[part_heads];
};

/// One launch works on heads [0, heads) of the table and on tiles of the plan: `tiles` from number `first_tile` on,
/// whose places are `wholes` from `first_whole` on and `halves` from half place `first_half` on.
struct ScoreArgs {
    StridedMap query, key;
    XAttentionShape shape;
    XAttentionPlan plan;
    HeadTable table;
    int heads, span, group;  // `span` neighbours of the table run a tile side by side
    int first_tile, tiles, first_whole, wholes, first_half, halves;
    int panels;    // of 64 channels
    float* sums;   // [heads, tiles, 128, tile_blocks], by number of the tile
    float2* tops;  // [heads, tiles, 128]: maximum of the raw scores, and sum, over the tile's columns
};

/// Rows [first_row, first_row + rows) of the batch, for the heads of the table.
struct ChoiceArgs {
    XAttentionShape shape;
    XAttentionPlan plan;
    HeadTable table;
    SelectionTarget target;
    int heads, first_row, rows;
    int first_tile, tiles;
    const float* sums;  // null: every block
    const float2* tops;
    std::uint32_t* words;  // [lists, rows of the batch, word_count]
    int word_count;
    std::int32_t* counts;  // [lists, rows of the batch]
    float* masses;         // [lists, rows of the batch, mass_stride], or null
    std::int64_t mass_stride;
};

cudaError_t launch_plan(const XAttentionShape& shape, const XAttentionPlan& plan, cudaStream_t stream);
cudaError_t launch_scores(const ScoreArgs& args, int multiprocessors, cudaStream_t stream);
/// `warp_floats` floats of shared memory hold a row's masses and factors. Writes bits, and the number of those of each
/// (list, row).
cudaError_t launch_choice(const ChoiceArgs& args, int warp_floats, cudaStream_t stream);
/// Offsets from these numbers, and columns, of lists [0, target.lists), of which those past `mask_lists` are empty.
cudaError_t launch_lists(const SelectionTarget& target, const std::uint32_t* words, int word_count,
                         const std::int32_t* counts, int mask_lists, cudaStream_t stream);

}  // namespace sparseattn::cuda::hopper
