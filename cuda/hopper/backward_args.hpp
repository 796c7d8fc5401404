#pragma once
/// \file
/// What the backward kernels of Hopper share: one plain parameter block, the workspace, the launches.

#include <cuda.h>

#include "cuda/attention.hpp"

namespace sparseattn::cuda::hopper {

/// Queries are worked on in tiles of 64. Tiles never cross a row (query block), so each row has block / 64 of them and
/// tile t of head h is number h * tiles + t in every array over tiles.
inline constexpr int query_tile = 64;

/// A share of an item of a pass: entries [first, first + count) of its lists, one after the other. Long items of the
/// key pass are cut into pieces whose sums go to slots of their own and are added up, in order, at the end.
struct Piece {
    int item;  // of the key pass: see KeyItem; of the query pass: query head * rows + (rows - 1 - row)
    int first, count;
    int slot;  // of the partial sums; -1: the piece is the whole item
};
/// An item that was cut: its slots, in order.
struct Merge {
    int item, slot, pieces, unused;
};
/// Which pieces there are and in which order they are started. Made on the device, the same in every run.
struct Plan {
    int* next;   // [2] pieces taken so far by the key pass and the query pass
    int* count;  // [3] pieces of the key pass, of the query pass, merges
    Piece* key_pieces;
    Piece* query_pieces;      // or null
    Piece* spare_key_pieces;  // as many again, for the sort
    Piece* spare_query_pieces;
    Merge* merges;
    float* partials;  // [slots][dK, dV][block / 64][64 * d] in fragment order

    /// Pieces are at most 2/3 of a multiprocessor's fair share long, so cut items have at most these.
    static int slots(int processors) { return 3 * processors; }
    static int most_merges(int processors) { return 3 * processors / 2; }
};

/// One branch of all heads: its lists from both sides, its token rule, what its forward pass saved. Attention without
/// gates has one; gated attention has two, full and sparse, and both add to the same gradients.
struct Branch {
    bool causal;
    const std::int32_t* head_list;
    const Window* windows;
    const std::int64_t* column_offsets;  // [lists * rows + 1] into columns
    const std::int32_t* columns;
    const std::int64_t* row_offsets;  // [lists * key blocks + 1] into rows
    const std::int32_t* rows;
    const std::int64_t* single_offsets;  // [lists * rows + 1] into singles; null: no single keys
    const std::int32_t* singles;
    const std::int64_t* single_row_offsets;  // [lists * T_k + 1] into single_rows
    const std::int32_t* single_rows;
    Heads out;
    Rows lse;
};

/// The keys that rows visit singly, collected for the key pass, so that a vertical line costs what it keeps and not all
/// of its key block. A sequence of a key head of which few keys are visited singly (by any head of the group, in any
/// branch), each by many rows, has them in lines: the key pass works on them in tiles of their own, over all rows that
/// visit them, singly or by block, and leaves them out where it works on their blocks. Otherwise blocks are the better
/// tiles: the rows that visit keys of a block singly follow those that visit all of it.
struct Lines {
    static constexpr int most = 4;  // at most one key of so many
    std::int32_t* keys;    // [key heads][T_k]: those of a sequence from its first token on, ascending, counted in it
    int* counts;           // [key heads][sequences]; -1: not in lines
    unsigned char* taken;  // [key heads][T_k]: 1: in lines. Null: no branch has single keys
};

/// Everything the kernels read besides the tensor maps.
struct BackwardArgs {
    int query_heads, key_heads;
    int group;     // query heads per key head
    int head_dim;  // kernels work on 64 or 128 channels; those past head_dim read as zeros and are not written
    int branches;
    int tiles;         // of one head: layout.rows * block / 64
    float scale;       // of query . key
    float scale_log2;  // scale * log2(e)
    Batch batch;
    Layout layout;  // the grid; lists and token rules are those of the branches
    Branch branch[2];
    const float* gate;  // [Hq], or null: one branch of weight 1
    // [branches * Hq * tiles][2][64]: lse * log2(e) - log2(weight) (+inf: the row takes no part), so that probabilities
    // come out times the branch's weight; then delta.
    float* row_values;
    float* gate_sums;  // [Hq * tiles], with gates: dout (full - sparse) of a tile
    float* dq_sums;    // [Hq * tiles][64 * d] in fragment order (see backward_parts.cuh), or null
    Lines lines;
    Plan plan;
    Heads key, value;  // for what the tensor maps cannot load: single keys
    Heads dq, dk, dv;
    float* dgate;
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

/// What the host asks the device.
struct Machine {
    int processors, l2_bytes;
};

// In the order of the launches. Plan, preparation and key pass overlap: preparing needs nothing of the plan, and the
// key pass waits for both. The query pass starts on the multiprocessors that the key pass leaves.

/// Fills the lines.
cudaError_t launch_lines(const BackwardArgs& args, const GatedBackwardParams& params);
/// Fills the plan.
cudaError_t launch_plan(const BackwardArgs& args, const GatedBackwardParams& params, const Machine& machine);
/// delta, lse to base 2, dq_sums to zero when there are any; gate_sums.
cudaError_t launch_prepare(const BackwardArgs& args, const GatedBackwardParams& params);
/// dK and dV; with args.dq_sums also adds each key block's share of dQ there, in no fixed order.
cudaError_t launch_key_pass(const BackwardArgs& args, const GatedBackwardParams& params, int processors);
/// dQ by itself, in fixed order.
cudaError_t launch_query_pass(const BackwardArgs& args, const GatedBackwardParams& params, int processors);
/// dK and dV of the items that were cut.
cudaError_t launch_merge(const BackwardArgs& args, const GatedBackwardParams& params, int processors);
/// dgate from gate_sums.
cudaError_t launch_gate(const BackwardArgs& args, const GatedBackwardParams& params);
/// dQ from dq_sums.
cudaError_t launch_finish(const BackwardArgs& args, const GatedBackwardParams& params);

}  // namespace sparseattn::cuda::hopper
