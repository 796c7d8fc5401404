#pragma once
/// \file
/// The two producer warps of a team: one takes tiles and looks up their lists, one fills the ring.

#include "cuda/hopper/forward_shape.cuh"

namespace sparseattn::cuda::hopper {

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

}  // namespace sparseattn::cuda::hopper
