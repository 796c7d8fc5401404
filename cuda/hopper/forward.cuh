#pragma once
/// \file
/// Block-sparse attention forward for Hopper: one warpgroup loads and schedules, two compute.
///
/// A team is the set of warpgroups that walk one list together: both (Paired; 128 query rows, or 64 rows of two heads
/// that share a list), or each alone (64 rows). A team has its own scheduler warp, loader warp, query buffers and ring
/// of key and value tiles, so that teams never wait for each other.

#include "cuda/hopper/forward_args.hpp"
#include "cuda/hopper/token_rule.cuh"
#include "cuda/hopper/wgmma.cuh"

namespace sparseattn::cuda::hopper {

template <int HeadDim_, int Block_, bool Paired_>
struct ForwardShape {
    static constexpr int head_dim = HeadDim_;
    static constexpr int block = Block_;
    static constexpr bool paired = Paired_;
    static constexpr int threads = 384;
    static constexpr int keys = tile_keys(head_dim);  // of one tile
    static constexpr int runs = keys / 64;
    static constexpr int box = block < keys ? block : keys;  // keys of one copy
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
    static constexpr int budget = 225 * 1024 / teams;  // of 227 KB: leaves room for barriers
    static constexpr int fitting = (budget - query_stages * query_bytes) / stage_bytes;
    static constexpr int stages = fitting > 8 ? 8 : fitting;
    /// Steps that a list of so many blocks takes.
    static __device__ __forceinline__ int block_steps(int blocks) {
        return block >= keys ? blocks * (block / box) : (blocks + keys / box - 1) / (keys / box);
    }
    static_assert(stages >= 2, "K of one step and V of the step before");
};

/// One (query block, unit) to compute.
struct Tile {
    std::int64_t columns;        // where its list begins
    std::int64_t keys;           // where its single keys begin
    int steps;                   // key tiles, at least 1 (of no keys, when the list is empty); -1: no more tiles
    int blocks;                  // key blocks
    int singles;                 // single keys
    int head;                    // first head of the unit
    int first;                   // first query, counted in the sequence
    int query_token, key_token;  // where the sequence begins in the packed arrays
    int query_count, key_count;  // its lengths
    Window windows[2];           // of the unit's heads
    bool closed[2];              // those of them that see no key
};

/// Where the keys of a tile stand in their sequence: runs of 64 (two, or one at d 256), or single keys from a list.
struct TileKeys {
    static constexpr int nowhere = 1 << 30;  // past every key: reads as zeros, masked
    int low, high;                           // first key of either half; low < 0: single keys, from number `high`
};

template <class Shape>
struct alignas(1024) TeamStorage {
    unsigned char query[Shape::query_stages][Shape::query_bytes];
    unsigned char ring[Shape::stages][Shape::stage_bytes];
};
template <class Shape>
struct TeamControl {
    Barrier full[Shape::stages], empty[Shape::stages];
    Barrier query_full[Shape::query_stages], query_empty[Shape::query_stages];
    Barrier tile_full[Shape::tile_slots], tile_empty[Shape::tile_slots];
    TileKeys tile_keys[Shape::stages];
    Tile tiles[Shape::tile_slots];
};
template <class Shape>
struct ForwardStorage {
    TeamStorage<Shape> data[Shape::teams];
    TeamControl<Shape> control[Shape::teams];
};

// --- Scheduler ----------------------------------------------------------------------------------------------------

template <class Shape>
__device__ __forceinline__ Tile find_tile(const ForwardArgs& args, int index) {
    const Schedule& schedule = args.schedule;
    const Layout& layout = args.layout;
    Tile tile{};
    tile.steps = -1;
    if (index >= schedule.tiles) return tile;
    const int section_tiles = schedule.section_units * schedule.rows;
    const int section = index / section_tiles;
    const int first_unit = section * schedule.section_units;
    const int place = __ldcg(schedule.order + index);
    const int row = place / schedule.section_units;
    const int unit = first_unit + place % schedule.section_units;

    tile.head = unit * schedule.heads_per_unit;
    const std::int64_t entry = static_cast<std::int64_t>(layout.head_list[tile.head]) * layout.rows + row;
    const int sequence = layout.row_sequence[row];
    tile.columns = layout.offsets[entry];
    tile.blocks = static_cast<int>(layout.offsets[entry + 1] - tile.columns);
    if (layout.key_offsets != nullptr) {
        tile.keys = layout.key_offsets[entry];
        tile.singles = static_cast<int>(layout.key_offsets[entry + 1] - tile.keys);
    }
    if (args.gate != nullptr) {
        tile.closed[0] = args.gate[tile.head] == args.closed;
        tile.closed[1] = args.gate[tile.head + schedule.heads_per_unit - 1] == args.closed;
        if (tile.closed[0] && tile.closed[1]) tile.blocks = tile.singles = 0;
    }
    const int steps = Shape::block_steps(tile.blocks) + (tile.singles + Shape::keys - 1) / Shape::keys;
    tile.steps = max(steps, 1);
    tile.first = (row - layout.row_begin[sequence]) * Shape::block;
    tile.query_token = args.batch.query_offsets[sequence];
    tile.query_count = args.batch.query_offsets[sequence + 1] - tile.query_token;
    tile.key_token = args.batch.key_offsets[sequence];
    tile.key_count = args.batch.key_offsets[sequence + 1] - tile.key_token;
    tile.windows[0] = layout.windows[tile.head];
    tile.windows[1] = layout.windows[tile.head + schedule.heads_per_unit - 1];
    return tile;
}

template <class Shape>
__device__ __forceinline__ void schedule_tiles(const ForwardArgs& args, TeamControl<Shape>& control, int team) {
    Ring<Shape::tile_slots> slot;
    const int all_teams = static_cast<int>(gridDim.x) * Shape::teams;
    int index = static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) * team;
    wait_for_previous_kernel();  // which made the order
    bool more = true;
    while (more) {
        const Tile tile = find_tile<Shape>(args, index);
        index = all_teams + atomicAdd(args.schedule.counter, 1);
        barrier_wait(&control.tile_empty[slot.stage], slot.phase ^ 1);
        control.tiles[slot.stage] = tile;
        barrier_arrive(&control.tile_full[slot.stage]);
        slot.next();
        more = tile.steps >= 0;
    }
}

// --- Loader -------------------------------------------------------------------------------------------------------

/// A tile's list read by a whole warp, 32 entries at a time, from its end.
struct ListReader {
    const std::int32_t* entries;
    int count;
    int chunk;  // number of the entries held, in units of 32
    std::int32_t held;

    __device__ __forceinline__ ListReader(const std::int32_t* list, int entry_count)
        : entries(list), count(entry_count), chunk(-1), held(0) {}
    /// Entry n from the end; n rises from call to call, and is the same in all lanes.
    __device__ __forceinline__ std::int32_t from_end(int n, int lane) {
        if (n / 32 != chunk) {
            chunk = n / 32;
            const int mine = count - 1 - (chunk * 32 + lane);
            held = mine >= 0 ? __ldg(entries + mine) : 0;
        }
        return __shfl_sync(0xffffffffu, held, n % 32);
    }
};

/// Which keys step n of a tile holds. Called by a whole warp.
template <class Shape>
__device__ __forceinline__ TileKeys step_keys(const Tile& tile, ListReader& list, int n, int lane) {
    const int block_steps = Shape::block_steps(tile.blocks);
    if (n >= block_steps) {
        if (tile.singles == 0) return {TileKeys::nowhere, TileKeys::nowhere};
        return {-1, (n - block_steps) * Shape::keys};
    }
    if constexpr (Shape::block > Shape::keys) {  // a block takes two steps
        const int low = list.from_end(n / 2, lane) * Shape::block + (1 - n % 2) * 64;
        return {low, low};
    }
    constexpr int per_step = Shape::keys / Shape::box;
    const int low = list.from_end(n * per_step, lane) * Shape::block;
    if (per_step == 1) return {low, low + (Shape::runs - 1) * 64};
    if (n * per_step + 1 >= tile.blocks) return {low, TileKeys::nowhere};
    return {low, list.from_end(n * per_step + 1, lane) * Shape::block};
}

/// Rows of single keys, copied by the lanes of one warp; keys past the end of the list become zero rows.
template <class Shape>
__device__ __forceinline__ void gather_rows(unsigned char* stage, const Heads& rows, const Tile& tile, int key_head,
                                            const std::int32_t* keys, int first, int lane) {
    constexpr int pieces = Shape::head_dim / 8;
    const auto* base = static_cast<const __nv_bfloat16*>(rows.data) + key_head * rows.head_stride;
#pragma unroll 1
    for (int group = 0; group < Shape::keys; group += 32) {
        const int number = first + group + lane;
        const int mine = number < tile.singles ? __ldg(keys + number) : -1;
#pragma unroll 1
        for (int item = lane; item < 32 * pieces; item += 32) {
            const int key = __shfl_sync(0xffffffffu, mine, item / pieces);
            const int piece = item % pieces;
            const auto* source = base + (tile.key_token + max(key, 0)) * rows.token_stride + piece * 8;
            copy_16(stage + piece / 8 * Shape::key_panel + swizzled(group + item / pieces, piece % 8), source,
                    key >= 0);
        }
    }
    copy_wait_all();
    fence_async_shared();
    __syncwarp();
}

/// Fills one stage of the ring with the keys (or values) `where` of a tile.
template <class Shape>
__device__ __forceinline__ void load_stage(const ForwardArgs& args, TeamStorage<Shape>& data,
                                           TeamControl<Shape>& control, const Tile& tile, TileKeys where, bool value,
                                           Ring<Shape::stages>& ring, int lane) {
    unsigned char* stage = data.ring[ring.stage];
    Barrier* full = &control.full[ring.stage];
    const int key_head = tile.head / args.group;
    barrier_wait(&control.empty[ring.stage], ring.phase ^ 1);
    if (lane == 0 && !value) control.tile_keys[ring.stage] = where;
    if (where.low < 0) {
        gather_rows<Shape>(stage, value ? args.value_rows : args.key_rows, tile, key_head, args.layout.keys + tile.keys,
                           where.high, lane);
        if (lane == 0) barrier_arrive(full);
    } else if (lane == 0) {
        const CUtensorMap* map = value ? &args.value : &args.key;
        barrier_expect(full, Shape::stage_bytes);
#pragma unroll
        for (int panel = 0; panel < Shape::panels; ++panel) {
            unsigned char* to = stage + panel * Shape::key_panel;
            tensor_load(to, map, full, panel * 64, key_head, tile.key_token + where.low);
            if constexpr (Shape::box < Shape::keys) {
                tensor_load(to + 64 * swizzle_row, map, full, panel * 64, key_head, tile.key_token + where.high);
            }
        }
    }
    __syncwarp();
    ring.next();
}

/// Loads in the order of use: K0, K1, V0, K2, V1, ..., V of the last step.
template <class Shape>
__device__ __forceinline__ void load_tiles(const ForwardArgs& args, TeamStorage<Shape>& data,
                                           TeamControl<Shape>& control, int lane) {
    Ring<Shape::stages> ring;
    for (int count = 0;; ++count) {
        const auto slot = Ring<Shape::tile_slots>::at(count);
        const auto query = Ring<Shape::query_stages>::at(count);
        barrier_wait(&control.tile_full[slot.stage], slot.phase);
        const Tile& tile = control.tiles[slot.stage];
        const int steps = tile.steps;
        if (steps < 0) break;
        barrier_wait(&control.query_empty[query.stage], query.phase ^ 1);
        if (lane == 0) {
            Barrier* full = &control.query_full[query.stage];
            barrier_expect(full, Shape::query_bytes);
            const bool folded = args.schedule.heads_per_unit == 2;
            for (int half = 0; half < Shape::warpgroups; ++half) {
                const int head = tile.head + (folded ? half : 0);
                const int token = tile.query_token + tile.first + (folded ? 0 : half * 64);
#pragma unroll
                for (int panel = 0; panel < Shape::panels; ++panel) {
                    tensor_load(data.query[query.stage] + panel * Shape::query_panel + half * 64 * swizzle_row,
                                &args.query, full, panel * 64, head, token);
                }
            }
        }
        __syncwarp();
        ListReader list(args.layout.columns + tile.columns, tile.blocks);
        TileKeys before{}, now{};
#pragma unroll 1
        for (int item = 0; item < 2 * steps; ++item) {
            const bool value = item > 0 && (item % 2 == 0 || item + 1 == 2 * steps);
            const bool last = item + 1 == 2 * steps;
            if (!value) {
                before = now;
                now = step_keys<Shape>(tile, list, (item + 1) / 2, lane);
            }
            load_stage<Shape>(args, data, control, tile, value && !last ? before : now, value, ring, lane);
        }
        barrier_arrive(&control.tile_empty[slot.stage]);
    }
}

// --- Compute ------------------------------------------------------------------------------------------------------

/// Running softmax of the two rows that a thread shares with the three other lanes of its quad.
struct RowState {
    float maximum[2];  // of the scores so far, up to the slack below; -inf: none seen
    float sum[2];      // this thread's share
};
/// A row keeps its old maximum while the new one exceeds it by less than this power of two: out and lse do not change
/// (both are relative to the maximum kept), and the accumulators need no rescaling in nearly all steps.
inline constexpr float slack_log2 = 8.0f;

/// Hides what the token rule hides in a tile of key blocks. `row` is the thread's first query, the second one is 8
/// below.
template <int Scores>
__device__ __forceinline__ void mask_blocks(float (&s)[Scores], const TokenRule& rule, TileKeys where, int row,
                                            int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int end = rule.key_end(row + 8 * half), begin = rule.local_begin(row + 8 * half);
#pragma unroll
        for (int run = 0; run < Scores / 32; ++run) {  // bounds relative to the thread's first key of the run
            const int base = (run == 0 ? where.low : where.high) + 2 * (lane % 4);
            const int run_end = end - base, run_begin = begin - base, run_sink = rule.window.sink - base;
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int key = 8 * (i / 2) + i % 2;
                float& score = s[32 * run + 4 * (i / 2) + 2 * half + i % 2];
                if (!(key < run_end && (key < run_sink || key >= run_begin))) score = -INFINITY;
            }
        }
    }
}
/// The same for single keys: `keys` are those of the tile, `count` of them.
template <int Scores>
__device__ __forceinline__ void mask_singles(float (&s)[Scores], const TokenRule& rule, const std::int32_t* keys,
                                             int count, int row, int lane) {
    const int end[2] = {rule.key_end(row), rule.key_end(row + 8)};
    const int begin[2] = {rule.local_begin(row), rule.local_begin(row + 8)};
#pragma unroll
    for (int i = 0; i < Scores / 2; ++i) {
        const int column = 8 * (i / 2) + 2 * (lane % 4) + i % 2;
        const int key = column < count ? __ldg(keys + column) : TileKeys::nowhere;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float& score = s[4 * (i / 2) + 2 * half + i % 2];
            if (!(key < end[half] && (key < rule.window.sink || key >= begin[half]))) score = -INFINITY;
        }
    }
}

/// Masks the scores of one warpgroup where needed; `first` is its first query.
template <class Shape>
__device__ __forceinline__ void mask_scores(float (&s)[Shape::scores], const TokenRule& rule, const Tile& tile,
                                            TileKeys where, const std::int32_t* single_keys, int first, int row,
                                            int lane) {
    if (where.low < 0) {
        mask_singles(s, rule, single_keys + where.high, tile.singles - where.high, row, lane);
        return;
    }
    const int last = min(first + 64, rule.queries);
    const bool whole = where.high == where.low + (Shape::runs - 1) * 64
                           ? rule.all_visible(first, last, where.low, where.low + Shape::keys)
                           : rule.all_visible(first, last, where.low, where.low + 64) &&
                                 rule.all_visible(first, last, where.high, where.high + 64);
    if (!whole) mask_blocks(s, rule, where, row, lane);
}

/// Scores to unnormalised probabilities; returns by how much what was accumulated so far must shrink.
template <int Scores>
__device__ __forceinline__ void online_softmax(float (&s)[Scores], RowState& state, float scale_log2, float slack,
                                               float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float highest = s[2 * half];
#pragma unroll
        for (int i = 0; i < Scores / 2; ++i) highest = fmaxf(highest, s[4 * (i / 2) + 2 * half + i % 2]);
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
        const float old = state.maximum[half];
        const bool raise = highest > old + slack;  // from -inf: whenever a key is seen
        shrink[half] = raise ? exp2_fast((old - highest) * scale_log2) : 1.0f;
        const float maximum = raise ? highest : old;
        state.maximum[half] = maximum;
        const float offset = maximum == -INFINITY ? 0.0f : -maximum * scale_log2;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < Scores / 2; ++i) {
            float& score = s[4 * (i / 2) + 2 * half + i % 2];
            score = exp2_fast(fmaf(score, scale_log2, offset));
            sum += score;
        }
        state.sum[half] = fmaf(state.sum[half], shrink[half], sum);
    }
}

template <int Pairs>
__device__ __forceinline__ void pack_probabilities(std::uint32_t (&p)[Pairs], const float (&s)[2 * Pairs]) {
#pragma unroll
    for (int i = 0; i < Pairs; ++i) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

/// Waits for the value product in flight and shrinks its accumulators where needed. The wait stands on either side of a
/// branch that needs the softmax: ptxas would move a wait before it, and the softmax could not run under the product.
template <int Count>
__device__ __forceinline__ void finish_and_rescale(float (&o)[Count], const float (&shrink)[2]) {
    if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
        product_wait<0>();
        pin(o);
#pragma unroll
        for (int i = 0; i < Count; ++i) o[i] *= shrink[i / 2 % 2];
    }
    product_wait<0>();
    pin(o);
}

template <class Shape>
__device__ __forceinline__ void score_product(float (&s)[Shape::scores], std::uint64_t query, std::uint64_t key) {
#pragma unroll
    for (int k = 0; k < Shape::head_dim / 16; ++k) {
        product(s, advance(query, k / 4 * Shape::query_panel + k % 4 * 32),
                advance(key, k / 4 * Shape::key_panel + k % 4 * 32), k > 0);
    }
}
template <class Shape>
__device__ __forceinline__ void value_product(float (&o)[Shape::head_dim / 2],
                                              const std::uint32_t (&p)[Shape::scores / 2], std::uint64_t value) {
#pragma unroll
    for (int k = 0; k < Shape::keys / 16; ++k) product<true>(o, p + 4 * k, advance(value, k * 2 * swizzle_atom), 1);
}

/// Exchanges a 4 x 4 matrix held by a quad of lanes (row: lane, column: register) for its transpose.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&x)[4], int lane) {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
        const bool upper = (lane & distance) != 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if ((i & distance) != 0) continue;
            const std::uint32_t mine = upper ? x[i] : x[i + distance];
            const std::uint32_t theirs = __shfl_xor_sync(0xffffffffu, mine, distance);
            if (upper)
                x[i] = theirs;
            else
                x[i + distance] = theirs;
        }
    }
}

/// Normalises and writes a warp's 16 rows, 16 bytes a lane: a quad turns its 2 x 4 channels of four groups of 8 into
/// one group each.
template <class Shape>
__device__ __forceinline__ void store_rows(const ForwardArgs& args, const Tile& tile, int head, int first,
                                           const float (&o)[Shape::head_dim / 2], const RowState& state, int warp,
                                           int lane) {
    const int rows = tile.query_count - (first + warp * 16);  // from the warp's first row on; may be <= 0
    const std::int64_t token = tile.query_token + first + warp * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + 8 * half;
        float sum = state.sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
        if (lane % 4 == 0 && row < rows) {
            args.lse.data[(token + row) * args.lse.token_stride + head * args.lse.head_stride] =
                sum > 0 ? fmaf(state.maximum[half], args.scale, logf(sum)) : -INFINITY;
        }
        auto* out = static_cast<__nv_bfloat16*>(args.out.data) + (token + row) * args.out.token_stride +
                    head * args.out.head_stride + lane % 4 * 8;
#pragma unroll
        for (int column = 0; column < Shape::head_dim; column += 32) {
            std::uint32_t x[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = column / 2 + 4 * i + 2 * half;
                x[i] = pack_bf16(o[at] * inverse, o[at + 1] * inverse);
            }
            transpose_quad(x, lane);
            if (row < rows) *reinterpret_cast<uint4*>(out + column) = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
}

/// The two warpgroups of a pair take turns in issuing products, so that one's softmax runs under the other's products.
template <class Shape>
struct Turns {
    int mine, other;
    __device__ __forceinline__ explicit Turns(int warpgroup) : mine(1 + warpgroup), other(2 - warpgroup) {
        if (Shape::paired && warpgroup == 1) named_arrive(other, 256);
    }
    __device__ __forceinline__ void begin() const {
        if (Shape::paired) named_sync(mine, 256);
    }
    __device__ __forceinline__ void end() const {
        if (Shape::paired) named_arrive(other, 256);
    }
};

/// One computing warpgroup. The first scores of a tile are issued behind the last value product of the tile before, and
/// run while that tile's result is written.
template <class Shape>
__device__ __forceinline__ void compute_tiles(const ForwardArgs& args, TeamStorage<Shape>& data,
                                              TeamControl<Shape>& control, int warpgroup, int warp, int lane) {
    const int half = Shape::paired ? warpgroup : 0;  // which 64 rows of the team's queries
    const Turns<Shape> turns(warpgroup);
    const float slack = slack_log2 / args.scale_log2;
    const bool folded = args.schedule.heads_per_unit == 2;
    const auto release = [&](Barrier* barrier) {
        if (lane == 0) barrier_arrive(barrier);
    };
    // Read by the lane that releases the stage, so that the loader cannot write before.
    const auto keys_of = [&](int stage) {
        TileKeys keys{};
        if (lane == 0) keys = control.tile_keys[stage];
        return TileKeys{__shfl_sync(0xffffffffu, keys.low, 0), __shfl_sync(0xffffffffu, keys.high, 0)};
    };
    const auto query_at = [&](int count) {
        std::uint64_t query = operand(data.query[Ring<Shape::query_stages>::at(count).stage] + half * 64 * swizzle_row);
        asm volatile("" : "+l"(query));  // else its advances are kept in registers from tile to tile
        return query;
    };
    Ring<Shape::stages> ring;
    float s[Shape::scores], o[Shape::head_dim / 2], shrink[2];
    std::uint32_t p[Shape::scores / 2];
    // Issues the first scores of tile `count` once they can be formed; returns its number of steps. After the last tile
    // the scores are of whatever is in the ring, and nobody reads them: products in flight must not depend on a branch.
    const auto begin_tile = [&](int count) {
        const auto slot = Ring<Shape::tile_slots>::at(count);
        const auto query = Ring<Shape::query_stages>::at(count);
        barrier_wait(&control.tile_full[slot.stage], slot.phase);
        const int steps = control.tiles[slot.stage].steps;
        if (steps > 0) {
            barrier_wait(&control.query_full[query.stage], query.phase);
            barrier_wait(&control.full[ring.stage], ring.phase);
        }
        pin(s);
        product_fence();
        score_product<Shape>(s, query_at(count), operand(data.ring[ring.stage]));
        product_commit();
        return steps;
    };

    int steps = begin_tile(0);
    for (int count = 0; steps >= 0; ++count) {
        const Tile& tile = control.tiles[Ring<Shape::tile_slots>::at(count).stage];
        Barrier* query_empty = &control.query_empty[Ring<Shape::query_stages>::at(count).stage];
        const int head = tile.head + (folded ? half : 0);
        const int first = tile.first + (folded ? 0 : half * 64);
        const int row = first + warp * 16 + lane / 4;
        const TokenRule rule{tile.query_count, tile.key_count, args.layout.causal, tile.windows[folded ? half : 0]};
        const std::int32_t* single_keys = args.layout.keys + tile.keys;
        const std::uint64_t query = query_at(count);
        RowState state{{-INFINITY, -INFINITY}, {0, 0}};
        product_wait<0>();
        pin(s);
        TileKeys where = keys_of(ring.stage);
        release(&control.empty[ring.stage]);
        ring.next();
        if (steps == 1) release(query_empty);
#pragma unroll
        for (int i = 0; i < Shape::head_dim / 2; ++i) o[i] = 0;
        mask_scores<Shape>(s, rule, tile, where, single_keys, first, row, lane);
        online_softmax(s, state, args.scale_log2, slack, shrink);
        pack_probabilities(p, s);
        for (int n = 1; n < steps; ++n) {
            const int key_stage = ring.stage;
            barrier_wait(&control.full[ring.stage], ring.phase);
            where = keys_of(ring.stage);
            ring.next();
            const int value_stage = ring.stage;
            turns.begin();
            pin(s);
            pin(p);
            pin(o);
            product_fence();
            score_product<Shape>(s, query, operand(data.ring[key_stage]));
            product_commit();
            barrier_wait(&control.full[ring.stage], ring.phase);
            value_product<Shape>(o, p, operand(data.ring[value_stage], Shape::key_panel));
            product_commit();
            ring.next();
            turns.end();
            product_wait<1>();
            pin(s);
            release(&control.empty[key_stage]);
            if (n + 1 == steps) release(query_empty);
            mask_scores<Shape>(s, rule, tile, where, single_keys, first, row, lane);
            online_softmax(s, state, args.scale_log2, slack, shrink);
            pin(s);
            finish_and_rescale(o, shrink);
            pin(p);
            release(&control.empty[value_stage]);
            pack_probabilities(p, s);
        }
        const int last_stage = ring.stage;
        barrier_wait(&control.full[ring.stage], ring.phase);
        turns.begin();
        pin(p);
        pin(o);
        product_fence();
        value_product<Shape>(o, p, operand(data.ring[last_stage], Shape::key_panel));
        product_commit();
        ring.next();
        const int next_steps = begin_tile(count + 1);
        turns.end();
        product_wait<1>();
        pin(o);
        pin(p);
        release(&control.empty[last_stage]);
        if (tile.closed[folded ? half : 0]) state.sum[0] = state.sum[1] = 0;
        store_rows<Shape>(args, tile, head, first, o, state, warp, lane);
        barrier_arrive(&control.tile_empty[Ring<Shape::tile_slots>::at(count).stage]);
        steps = next_steps;
    }
    product_wait<0>();
}

// --- Kernel -------------------------------------------------------------------------------------------------------

template <class Shape>
__device__ __forceinline__ void init_barriers(TeamControl<Shape>& control) {
    constexpr int consumer_warps = 4 * Shape::warpgroups;
    for (int i = 0; i < Shape::stages; ++i) {
        barrier_init(&control.full[i], 1);
        barrier_init(&control.empty[i], consumer_warps);
    }
    for (int i = 0; i < Shape::query_stages; ++i) {
        barrier_init(&control.query_full[i], 1);
        barrier_init(&control.query_empty[i], consumer_warps);
    }
    for (int i = 0; i < Shape::tile_slots; ++i) {
        barrier_init(&control.tile_full[i], 1);
        barrier_init(&control.tile_empty[i], 32 * (consumer_warps + 1));  // every reader, and the loader's
    }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1) forward_kernel(const __grid_constant__ ForwardArgs args) {
    extern __shared__ __align__(1024) unsigned char raw[];
    auto& storage = *reinterpret_cast<ForwardStorage<Shape>*>(raw);
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32 % 4, 0);
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int team = 0; team < Shape::teams; ++team) init_barriers<Shape>(storage.control[team]);
        barrier_init_fence();
        tensor_prefetch(&args.query);
        tensor_prefetch(&args.key);
        tensor_prefetch(&args.value);
    }
    __syncthreads();
    if (warpgroup == 0) {
        give_registers<56>();
        const int team = warp % 2;
        if (team < Shape::teams) {
            if (warp < 2) {
                load_tiles<Shape>(args, storage.data[team], storage.control[team], lane);
            } else if (lane == 0) {
                schedule_tiles<Shape>(args, storage.control[team], team);
            }
        }
    } else {
        take_registers<224>();
        const int team = Shape::paired ? 0 : warpgroup - 1;
        compute_tiles<Shape>(args, storage.data[team], storage.control[team], warpgroup - 1, warp, lane);
    }
}

template <int HeadDim, int Block, bool Paired>
cudaError_t launch_forward(const ForwardArgs& args, int grid, cudaStream_t stream) {
    using Shape = ForwardShape<HeadDim, Block, Paired>;
    constexpr int bytes = static_cast<int>(sizeof(ForwardStorage<Shape>));
    static_assert(bytes <= 227 * 1024, "shared memory of one multiprocessor");
    const cudaError_t error =
        cudaFuncSetAttribute(forward_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute overlap{};  // the kernel's set-up runs under the one that sorts its tiles
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(Shape::threads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, forward_kernel<Shape>, args);
}

}  // namespace sparseattn::cuda::hopper
