#pragma once
/// \file
/// The two producer warps of a team: one takes tiles and looks up their lists, one fills the ring.

#include "cuda/hopper/forward_plan.cuh"
#include "cuda/hopper/forward_shape.cuh"

namespace sparseattn::cuda::hopper {

// --- Scheduler ----------------------------------------------------------------------------------------------------

/// Which tile a number stands for.
struct Place {
    int row, unit, part;
    int begin, steps;  // of a piece; steps 0: the whole list
    int slot;
};
__device__ __forceinline__ Place place_of(const Schedule& schedule, const ListPiece& piece) {
    const int tile = piece.place / schedule.parts;
    return {tile / schedule.units, tile % schedule.units, piece.place % schedule.parts,
            piece.begin,           piece.steps,           piece.slot};
}

/// The tiles of a team, one after the other. Used by a whole warp, the same in all lanes.
struct TileSource {
    const ForwardArgs& args;
    const int lane;
    const int team, teams;  // of the whole device
    int index;              // of the next tile
    int part = 0;           // which pass over the list of a query block in a group that is not cut

    __device__ __forceinline__ TileSource(const ForwardArgs& args_, int lane_, int team_, int teams_)
        : args(args_), lane(lane_), team(team_), teams(teams_), index(team_) {}

    /// False past the end.
    __device__ __forceinline__ bool find(Place& place) const {
        const Schedule& schedule = args.schedule;
        if (args.pieces.cut) {
            if (index >= __ldcg(args.pieces.counts)) return false;
            const int4 item = __ldcg(reinterpret_cast<const int4*>(args.pieces.items + index));
            place = place_of(schedule, {item.x, item.y, item.z, item.w});
            return true;
        }
        if (index >= schedule.tiles) return false;
        const int first_unit = index / (schedule.section_units * schedule.rows) * schedule.section_units;
        const int tile = __ldcg(schedule.order + index);
        place = {tile / schedule.section_units, first_unit + tile % schedule.section_units, part, 0, 0, -1};
        return true;
    }
    /// `last`: the tile is the last of its query block.
    __device__ __forceinline__ void next(bool last) {
        if (!last && !args.pieces.cut) {
            ++part;
            return;
        }
        part = 0;
        int taken = 0;
        if (lane == 0) taken = atomicAdd(args.schedule.counter, 1);
        index = teams + __shfl_sync(0xffffffffu, taken, 0);
    }
};
/// The same where each team plans by itself: pieces are dealt out in turns.
struct PlannedTileSource {
    const ForwardArgs& args;
    const int lane;
    const int team, teams;
    const TeamPlan plan;
    int wave = 0;

    __device__ __forceinline__ PlannedTileSource(const ForwardArgs& args_, int lane_, int team_, int teams_)
        : args(args_), lane(lane_), team(team_), teams(teams_), plan(args_, lane_) {
        if (team == 0) plan.write_merges(args, lane);
    }
    __device__ __forceinline__ bool find(Place& place) const {
        const int index = wave * teams + team;
        if (index >= plan.items) return false;
        place = place_of(args.schedule, plan.item(args, index, lane));
        return true;
    }
    __device__ __forceinline__ void next(bool) { ++wave; }
};

template <class Shape>
__device__ __forceinline__ void find_windows(const Schedule& schedule, const Layout& layout, Tile& tile) {
    if constexpr (!Shape::group) {
        tile.windows[0] = layout.windows[tile.head];
        tile.windows[1] = layout.windows[tile.head + schedule.heads_per_unit - 1];
    } else {
        Window& all = tile.windows[0];
        all = {Window::everything, Window::everything, Window::everything};
        for (int i = 0; i < schedule.heads_per_unit; ++i) {
            const Window window = layout.windows[tile.head + i];
            if (window.local == Window::everything) continue;  // hides nothing
            all = {min(all.sink, window.sink), min(all.local, window.local), min(all.dense_tail, window.dense_tail)};
        }
    }
}

template <class Shape, class Source>
__device__ __forceinline__ Tile find_tile(const ForwardArgs& args, const Source& source) {
    const Schedule& schedule = args.schedule;
    Tile tile{};
    tile.steps = -1;
    tile.last = true;
    Place place;
    if (!source.find(place)) return tile;

    tile.branch = place.unit % schedule.branches;
    const ForwardBranch& branch = args.branch[tile.branch];
    const Layout& layout = branch.layout;
    tile.head = unit_head(schedule, place.unit);
    const int sequence = layout.row_sequence[place.row];  // loads that wait for each other as little as can be
    find_windows<Shape>(schedule, layout, tile);
    const UnitList list = unit_list(branch, args.gate, tile.head, schedule.heads_per_unit, place.row);
    const int row_begin = layout.row_begin[sequence];
    tile.query_token = args.batch.query_offsets[sequence];
    tile.query_count = args.batch.query_offsets[sequence + 1] - tile.query_token;
    tile.key_token = args.batch.key_offsets[sequence];
    tile.key_count = args.batch.key_offsets[sequence + 1] - tile.key_token;
    tile.columns = list.columns;
    tile.keys = list.keys;
    tile.blocks = list.blocks;
    tile.singles = list.singles;
    tile.begin = place.begin;
    tile.singles_from = list.block_steps(layout.block, Shape::keys) - place.begin;
    tile.steps = place.steps > 0 ? place.steps : max(list.steps(layout.block, Shape::keys), 1);
    tile.slot = place.slot;

    tile.causal = layout.causal;
    tile.first = (place.row - row_begin) * layout.block;
    tile.end = min(tile.first + layout.block, tile.query_count);
    if constexpr (Shape::group) {
        tile.first += place.part * schedule.tokens;
        tile.last = tile.first + schedule.tokens >= tile.end;
        tile.end = min(tile.first + schedule.tokens, tile.end);
    }
    const std::int64_t token = tile.query_token + static_cast<std::int64_t>(tile.first);
    const Heads& out = branch.out;
    const Rows& lse = branch.lse;
    tile.result = {static_cast<__nv_bfloat16*>(out.data) + token * out.token_stride + tile.head * out.head_stride,
                   lse.data + token * lse.token_stride + tile.head * lse.head_stride,
                   out.token_stride,
                   out.head_stride,
                   lse.token_stride,
                   lse.head_stride};
    return tile;
}

template <class Shape, class Source>
__device__ __forceinline__ void schedule_tiles_of(Source& source, TeamControl<Shape>& control) {
    Ring<Shape::tile_slots> slot;
    bool more = true;
    while (more) {
        const Tile tile = find_tile<Shape>(source.args, source);
        source.next(tile.last);
        barrier_wait<500>(&control.tile_empty[slot.stage], slot.phase ^ 1);  // some tiles ahead
        if (source.lane == 0) {
            control.tiles[slot.stage] = tile;
            barrier_arrive(&control.tile_full[slot.stage]);
        }
        __syncwarp();
        slot.next();
        more = tile.steps >= 0;
    }
}
template <class Shape>
__device__ __forceinline__ void schedule_tiles(const ForwardArgs& args, TeamControl<Shape>& control, int team,
                                               int lane) {
    const int number = static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) * team;
    const int teams = static_cast<int>(gridDim.x) * Shape::teams;
    wait_for_previous_kernel();  // which made the order, or what this call reads
    if constexpr (Shape::group) {
        if (args.pieces.cut && args.pieces.items == nullptr) {
            PlannedTileSource source(args, lane, number, teams);
            schedule_tiles_of<Shape>(source, control);
            return;
        }
    }
    TileSource source(args, lane, number, teams);
    schedule_tiles_of<Shape>(source, control);
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

/// Which keys a step of a tile holds. Called by a whole warp.
template <class Shape>
__device__ __forceinline__ TileKeys step_keys(const Tile& tile, int block, ListReader& list, int step, int lane) {
    if constexpr (Shape::with_singles) {
        if (tile.singles > 0 && step >= tile.singles_from) return {-1, (step - tile.singles_from) * Shape::keys};
    }
    const int halves = block / 128;  // log2 of the runs of 64 in a block
    const int runs = tile.blocks << halves;
    const int n = tile.begin + step;
    const auto run = [&](int number) {  // counted from the end of the list
        if (number >= runs) return TileKeys::nowhere;
        return list.from_end(number >> halves, lane) * block + (~number & halves) * 64;
    };
    const int high = run(n * Shape::runs);
    return {Shape::runs == 1 ? high : run(n * Shape::runs + 1), high};
}

/// Single key `number` of a tile; past the end of its list 0.
__device__ __forceinline__ int single_key(const Tile& tile, int number) {
    return number < tile.singles ? __ldg(tile.keys + number) : 0;
}
/// How a warp copies rows of single keys: a row by adjacent lanes, 16 bytes each, some rows with one instruction.
template <class Shape>
struct GatherMap {
    static constexpr int pieces = Shape::head_dim / 8;  // of a row
    static constexpr int row_lanes = pieces <= 4 ? 4 : pieces <= 8 ? 8 : pieces <= 16 ? 16 : 32;
    static constexpr int copy_rows = 32 / row_lanes;              // of one instruction
    static constexpr int copies = row_lanes < 8 ? row_lanes : 8;  // whose addresses are found side by side
    static constexpr int rows = copies * copy_rows;               // of these
};
/// Starts to copy the rows of single keys, `count` of them from number `first` on; those past the end of the list
/// become zero rows. Called by a warp, each lane with its `key` of the first 32. The addresses of some copies are found
/// side by side: one after the other their latencies add up.
template <class Shape>
__device__ __forceinline__ void gather_rows(unsigned char* stage, const Heads& rows, const Tile& tile, int key_head,
                                            int first, int count, int key, int lane) {
    using Map = GatherMap<Shape>;
    const int row = lane / Map::row_lanes, piece = lane % Map::row_lanes;
    const std::int64_t row_bytes = rows.token_stride * 2;
    const auto* from = static_cast<const unsigned char*>(rows.data) + tile.key_token * row_bytes +
                       (key_head * rows.head_stride + piece * 8) * 2;
    asm volatile("" : "+l"(from));  // else its terms are added anew for every row
    unsigned char* to = stage + piece / 8 * Shape::key_panel;
    int existing = tile.singles - first - row;  // from the lane's first row on
    int held = key;
#pragma unroll 1
    for (int begin = 0; begin < count; begin += Map::rows) {
        if (begin % 32 == 0) {
            held = key;
            key = single_key(tile, first + begin + 32 + lane);
        }
        unsigned keys[Map::copies];
#pragma unroll
        for (int i = 0; i < Map::copies; ++i) {
            keys[i] = __shfl_sync(0xffffffffu, held, begin % 32 + i * Map::copy_rows + row);
        }
#pragma unroll
        for (int i = 0; i < Map::copies; ++i) {
            if (piece >= Map::pieces) continue;
            copy_16(to + swizzled(i * Map::copy_rows + row, piece % 8), from + keys[i] * row_bytes,
                    i * Map::copy_rows < existing);
        }
        to += Map::rows * swizzle_row;
        existing -= Map::rows;
    }
}

/// Copies one warp's share of a stage of single keys once the stage is empty, and lets the stage's barrier wait for the
/// copies. `helper`: 0 for the loader, or 1, 2.
template <class Shape>
__device__ __forceinline__ void gather_share(const ForwardArgs& args, TeamStorage<Shape>& data,
                                             TeamControl<Shape>& control, const Gather& gather, int helper, int lane) {
    const Tile& tile = control.tiles[gather.slot];
    // Scores of keys that do not exist are masked whatever stands in their rows, but a probability of 0 times a NaN is
    // one.
    const int count = gather.value ? Shape::keys : min(tile.singles - gather.first, Shape::keys);
    constexpr int unit = GatherMap<Shape>::rows > 16 ? GatherMap<Shape>::rows : 16;
    const int units = (count + unit - 1) / unit;
    // The loader takes the least: it has other things to do.
    const int helped = Shape::helpers > 0 ? (units + 1) / (1 + Shape::helpers) : 0;
    const int loaded = units - Shape::helpers * helped;
    const int begin = unit * (helper == 0 ? 0 : loaded + (helper - 1) * helped);
    const int first = gather.first + begin;
    const int key = single_key(tile, first + lane);  // looked up while the stage is awaited
    barrier_wait(&control.empty[gather.stage], gather.phase ^ 1);
    gather_rows<Shape>(data.ring[gather.stage] + begin * swizzle_row, gather.value ? args.value_rows : args.key_rows,
                       tile, tile.head / args.group, first, unit * (helper == 0 ? loaded : helped), key, lane);
    barrier_hold_for_copies(&control.full[gather.stage]);
}

/// Fills a stage with single keys (or their values) of the tile in `slot`, together with the helpers.
template <class Shape>
__device__ __forceinline__ void gather_stage(const ForwardArgs& args, TeamStorage<Shape>& data,
                                             TeamControl<Shape>& control, int slot, TileKeys where, bool value,
                                             const Ring<Shape::stages>& ring, int lane) {
    const Gather gather{slot, where.high, ring.stage, ring.phase, value};
    if constexpr (Shape::helpers > 0) {
        if (lane == 0) control.gather = gather;
        control.gathering.sync(gather_begins);
    }
    gather_share<Shape>(args, data, control, gather, 0, lane);
    if (lane == 0 && !value) control.tile_keys[ring.stage] = where;
    // Behind the helpers: the phase would not wait for copies that they start after its last arrival.
    if constexpr (Shape::helpers > 0) control.gathering.sync(gather_ends);
    __syncwarp();
    if (Shape::filling_lanes == 32 || lane == 0) barrier_arrive(&control.full[ring.stage]);
}

/// Fills one stage of the ring with the keys (or values) `where` of the tile in `slot`.
template <class Shape>
__device__ __forceinline__ void load_stage(const ForwardArgs& args, TeamStorage<Shape>& data,
                                           TeamControl<Shape>& control, int slot, TileKeys where, bool value,
                                           Ring<Shape::stages>& ring, int lane) {
    if constexpr (Shape::with_singles) {
        if (where.low < 0) {
            gather_stage<Shape>(args, data, control, slot, where, value, ring, lane);
            ring.next();
            return;
        }
    }
    const Tile& tile = control.tiles[slot];
    unsigned char* stage = data.ring[ring.stage];
    Barrier* full = &control.full[ring.stage];
    const int key_head = tile.head / args.group;
    barrier_wait(&control.empty[ring.stage], ring.phase ^ 1);
    if (lane == 0) {
        if (!value) control.tile_keys[ring.stage] = where;
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
    } else if (Shape::filling_lanes == 32) {
        barrier_arrive(full);
    }
    __syncwarp();
    ring.next();
}

/// Loads a tile's queries. Called by one lane.
template <class Shape>
__device__ __forceinline__ void load_queries(const ForwardArgs& args, unsigned char* shared, Barrier* full,
                                             const Tile& tile) {
    const int token = tile.query_token + tile.first, heads = args.schedule.heads_per_unit;
    if constexpr (Shape::group) {
        barrier_expect(full, Shape::panels * heads * args.schedule.tokens * swizzle_row);
        for (int panel = 0; panel < Shape::panels; ++panel) {
            tensor_load(shared + panel * Shape::query_panel, &args.query, full, panel * 64, tile.head, token);
        }
        return;
    }
    barrier_expect(full, Shape::query_bytes);
    for (int half = 0; half < Shape::warpgroups; ++half) {
#pragma unroll
        for (int panel = 0; panel < Shape::panels; ++panel) {
            tensor_load(shared + panel * Shape::query_panel + half * 64 * swizzle_row, &args.query, full, panel * 64,
                        tile.head + (heads == 2 ? half : 0), token + (heads == 2 ? 0 : half * 64));
        }
    }
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
        if (lane == 0) load_queries<Shape>(args, data.query[query.stage], &control.query_full[query.stage], tile);
        __syncwarp();
        const int block = args.branch[0].layout.block;
        ListReader list(tile.columns, tile.blocks);
        TileKeys before{}, now{};
#pragma unroll 1
        for (int item = 0; item < 2 * steps; ++item) {
            const bool value = item > 0 && (item % 2 == 0 || item + 1 == 2 * steps);
            const bool last = item + 1 == 2 * steps;
            if (!value) {
                before = now;
                now = step_keys<Shape>(tile, block, list, (item + 1) / 2, lane);
            }
            load_stage<Shape>(args, data, control, slot.stage, value && !last ? before : now, value, ring, lane);
        }
        barrier_arrive(&control.tile_empty[slot.stage]);
    }
    if constexpr (Shape::helpers > 0) {
        if (lane == 0) control.gather.slot = -1;
        control.gathering.sync(gather_begins);
    }
    if constexpr (Shape::with_singles) copy_wait_all();
}

/// A warp that waits for stages of single keys and copies its share of them.
template <class Shape>
__device__ __forceinline__ void help_to_gather(const ForwardArgs& args, TeamStorage<Shape>& data,
                                               TeamControl<Shape>& control, int helper, int lane) {
    for (;;) {
        control.gathering.sync(gather_begins);
        const Gather gather = control.gather;
        if (gather.slot < 0) break;
        gather_share<Shape>(args, data, control, gather, helper, lane);
        control.gathering.arrive(gather_ends);
    }
    copy_wait_all();
}

}  // namespace sparseattn::cuda::hopper
