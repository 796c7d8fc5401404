#pragma once
/// \file
/// What the forward kernels get, and their instantiations.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "cuda/attention.hpp"

namespace sparseattn::cuda::hopper {

/// Keys of one step of the kernel: 128, or 64 where the accumulators of 256 channels leave no registers for more.
__host__ __device__ constexpr int tile_keys(int head_dim) {
    return head_dim > 128 ? 64 : 128;
}

/// What the two computing warpgroups of a multiprocessor work on.
enum class Team {
    pair,    // both walk one list: 128 queries of one head, or 64 of each of two heads that share it ("folded")
    single,  // each walks its own list: 64 queries of one head
    group,   // each walks its own list for 64 rows; a row is one query of one of the heads that share the list
};
constexpr int team_rows(Team team) {
    return team == Team::pair ? 128 : 64;
}

/// One result: that of a plain call, or of either branch of a gated one.
struct ForwardBranch {
    Layout layout;
    Heads out;
    Rows lse;
    float closed;  // heads with this gate have empty lists
};

/// In which order tiles of (unit, query block) are computed: sections of key heads whose keys and values stay in the L2
/// cache together; in a section the longest lists first. A unit is one branch of the heads that walk a list together.
struct Schedule {
    int* counter;        // tiles taken so far, beyond the first of each team
    int* order;          // [tiles], section by section: row * section_units + unit of the section
    int tiles;           // of the whole call
    int rows;            // query blocks
    int units;           // of the whole call: unit u is branch u % branches of heads u / branches * heads_per_unit, ...
    int section_units;   // per section; the last section may have fewer
    int heads_per_unit;  // 1; 2 when folded; any number in a group
    int branches;        // 1, or 2 in a gated call
    int tokens;          // group: queries of one pass over a list (the rows of a query block may take several)
    int parts;           // group: passes that a query block takes at most
};

/// A pass over a part of a list, or, among the merges, a tile whose list was cut.
struct alignas(16) ListPiece {
    int place;  // (row * units + unit) * parts + part
    int begin;  // first step; merge: number of pieces
    int steps;
    int slot;  // of its partial result, -1: the list is whole; merge: slot of the first piece
};

/// Where tiles are few, long lists are cut into pieces, which leave partial results that a second kernel merges.
struct ListPieces {
    bool cut;          // false: nothing is, and `Schedule::order` holds
    ListPiece* items;  // longest first; null: few tiles of groups, whose pieces every team finds by itself
    ListPiece* merges;
    int* counts;  // of items and of merges
    float* out;   // [slots, slot_rows, d], normalised
    float* lse;   // [slots, slot_rows]
    int slot_rows;
    int teams;  // of the whole device
};

struct ForwardArgs {
    CUtensorMap query, key, value;
    Schedule schedule;
    ListPieces pieces;
    Batch batch;
    ForwardBranch branch[2];
    Heads key_rows, value_rows;  // for single keys, which no box covers
    const float* gate;           // [Hq] or null
    int query_heads, head_dim;
    int group;         // query heads per key head
    float scale_log2;  // scale * log2(e)
};

/// Fills the order and clears the counter.
[[nodiscard]] cudaError_t launch_schedule(const ForwardArgs& args, cudaStream_t stream);

/// The same for lists that may be cut: fills `items` and `merges`. At most `most_planned_tiles` query blocks x units.
inline constexpr int most_planned_tiles = 2048;
inline constexpr int most_team_planned_tiles = 32;  // of groups, planned without a kernel: a warp's lanes
inline constexpr int most_waves = 4;                // pieces of cut lists, in units of the teams of the device
[[nodiscard]] cudaError_t launch_plan(const ForwardArgs& args, cudaStream_t stream);
/// Adds up partial results, weighted by exp(lse), in the order of their lists.
[[nodiscard]] cudaError_t launch_merge(const ForwardArgs& args, int grid, cudaStream_t stream);

/// Runs the kernel on `grid` multiprocessors, directly behind launch_schedule or launch_plan on the same stream.
/// `Block` of a group is 64 whatever the layout's is. `Singles`: there may be single keys; what looks for them would
/// slow down other calls. Of groups only the kernels that do are instantiated.
template <int HeadDim, int Block, Team Kind, bool Singles>
[[nodiscard]] cudaError_t launch_forward(const ForwardArgs& args, int grid, cudaStream_t stream);

}  // namespace sparseattn::cuda::hopper
