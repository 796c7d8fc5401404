#pragma once
/// \file
/// Sizes and shared memory of the forward kernel.
///
/// A team is the set of warpgroups that walk one list together (`Team`). It has its own scheduler warp, loader warp,
/// query buffers and ring of key and value tiles, so that teams never wait for each other.

#include "cuda/hopper/forward_args.hpp"
#include "cuda/hopper/wgmma.cuh"
#include "cuda/token_rule.cuh"

namespace sparseattn::cuda::hopper {

template <int HeadDim, int Block, Team Kind, bool Singles>
struct ForwardShape {
    static constexpr int head_dim = HeadDim;
    static constexpr bool paired = Kind == Team::pair;
    static constexpr bool group = Kind == Team::group;
    static constexpr bool with_singles = Singles;
    static constexpr int threads = 384;
    static constexpr int keys = tile_keys(head_dim);  // of one tile
    static constexpr int runs = keys / 64;
    static constexpr int box = Block < keys ? Block : keys;  // keys of one copy
    static constexpr int scores = keys / 2;                  // of one thread
    static constexpr int teams = paired ? 1 : 2;
    static constexpr int warpgroups = 2 / teams;         // of a team
    static constexpr int panels = (head_dim + 63) / 64;  // of 64 channels; what is beyond head_dim reads as zeros
    static constexpr int query_panel = 64 * warpgroups * swizzle_row;
    static constexpr int query_bytes = panels * query_panel;
    static constexpr int key_panel = keys * swizzle_row;
    static constexpr int stage_bytes = panels * key_panel;
    static constexpr int query_stages = paired && head_dim <= 128 ? 2 : 1;
    static constexpr int tile_slots = 4;
    static constexpr int helpers = with_singles && paired ? 2 : 0;            // warps that copy single keys too
    static constexpr int filling_lanes = with_singles ? releasing_lanes : 1;  // that arrive when a stage is filled
    static constexpr int budget = 225 * 1024 / teams;                         // of 227 KB: leaves room for barriers
    static constexpr int fitting = (budget - query_stages * query_bytes) / stage_bytes;
    static constexpr int stages = fitting > 8 ? 8 : fitting;
    static_assert(stages >= 2, "K of one step and V of the step before");
};

/// Where a tile's first query and head are written; strides in elements.
struct TileResult {
    void* out;
    float* lse;
    std::int64_t out_token, out_head, lse_token, lse_head;
};

/// One (query block, unit) to compute, or a piece of its list.
struct Tile {
    const std::int32_t* columns;  // its list
    const std::int32_t* keys;     // its single keys
    TileResult result;            // of a whole list
    int begin;                    // first step of the list
    int steps;                    // key tiles, at least 1 (of no keys, when the list is empty); -1: no more tiles
    int blocks;                   // key blocks of the list
    int singles;                  // single keys
    int singles_from;             // the first step, counted from `begin`, that holds single keys; may be below 0
    int branch;                   // which result
    int slot;                     // of the partial result; -1: this is the whole list
    int head;                     // first head of the unit
    int first, end;               // queries, counted in the sequence
    int query_token;              // where the sequence begins in the packed arrays
    int key_token;
    int query_count, key_count;  // its lengths
    bool causal;
    bool last;          // of its query block
    Window windows[2];  // of the unit's heads; of a group: [0] hides whatever any head's hides
};

/// Where the keys of a tile stand in their sequence: runs of 64 (two, or one at d 256), or single keys from a list.
struct TileKeys {
    static constexpr int nowhere = 1 << 30;  // past every key: reads as zeros, masked
    int low, high;                           // first key of either half; low < 0: single keys, from number `high`
};

/// A stage of single keys that the loader and its helpers copy together.
struct Gather {
    int slot;   // of the tile; -1: no more
    int first;  // number of the stage's first single key
    int stage;
    std::uint32_t phase;
    bool value;
};

template <class Shape>
struct alignas(1024) TeamStorage {
    unsigned char query[Shape::query_stages][Shape::query_bytes];
    unsigned char ring[Shape::stages][Shape::stage_bytes];
};
inline constexpr int gather_begins = 0, gather_ends = 1;  // TeamControl::gathering
template <class Shape>
struct TeamControl {
    Barrier full[Shape::stages], empty[Shape::stages];
    Barrier query_full[Shape::query_stages], query_empty[Shape::query_stages];
    Barrier tile_full[Shape::tile_slots], tile_empty[Shape::tile_slots];
    TileKeys tile_keys[Shape::stages];
    Gather gather;
    NamedBarriers<1, 2, 32 * (1 + Shape::helpers)> gathering;  // of the loader and its helpers, around each such stage
    Tile tiles[Shape::tile_slots];
};
template <class Shape>
struct ForwardStorage {
    TeamStorage<Shape> data[Shape::teams];
    TeamControl<Shape> control[Shape::teams];
};

}  // namespace sparseattn::cuda::hopper
