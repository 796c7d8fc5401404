#pragma once
/// \file
/// How long lists are cut where tiles are few: what a thread block that plans for all and teams that plan for
/// themselves share. A tile here is (query block, unit); its passes are those of a group.

#include "cuda/hopper/forward_lists.cuh"

namespace sparseattn::cuda::hopper {

inline constexpr int shortest_piece = 2;  // steps
inline constexpr int piece_cost = 2;      // of starting, ending and merging one, in steps

__device__ __forceinline__ int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

/// Sum over the lanes before this one.
__device__ __forceinline__ int warp_sum_before(int value, int lane) {
    int sum = value;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, distance);
        if (lane >= distance) sum += other;
    }
    return sum - value;
}
__device__ __forceinline__ unsigned long long warp_sum(unsigned long long value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

/// The length of a tile's list and how many passes over it the tile takes.
struct TileLength {
    int steps, passes;
};
__device__ __forceinline__ TileLength tile_length(const ForwardArgs& args, int tile) {
    const Schedule& schedule = args.schedule;
    const int row = tile / schedule.units, unit = tile % schedule.units;
    const ForwardBranch& branch = args.branch[unit % schedule.branches];
    const UnitList list = unit_list(branch, args.gate, unit_head(schedule, unit), schedule.heads_per_unit, row);
    int passes = 1;
    if (schedule.parts > 1) {
        const int sequence = branch.layout.row_sequence[row];
        const int first = (row - branch.layout.row_begin[sequence]) * branch.layout.block;
        const int queries = args.batch.query_offsets[sequence + 1] - args.batch.query_offsets[sequence];
        passes = ceil_div(min(branch.layout.block, queries - first), schedule.tokens);
    }
    return {max(1, list.steps(branch.layout.block, tile_keys(args.head_dim))), passes};
}

/// Over all tiles.
struct PlanTotals {
    unsigned long long steps;  // of all passes
    int passes;
    int longest;
};
/// The shortest limit on pieces that leaves at most `budget` of them; 0: impossible. `pieces(limit)`: how many there
/// are, by a whole warp.
template <class Pieces>
__device__ __forceinline__ int shortest_limit(const PlanTotals& all, int budget, const Pieces& pieces) {
    if (all.passes > budget) return 0;
    const auto per_piece = [&](int count) {
        return static_cast<int>((all.steps + static_cast<unsigned>(count) - 1) / static_cast<unsigned>(count));
    };
    int low = max(shortest_piece, per_piece(budget));
    int high = all.longest;
    if (budget > all.passes) high = min(high, per_piece(budget - all.passes));
    high = max(low, high);
    while (low < high) {
        const int middle = (low + high) / 2;
        if (pieces(middle) <= budget)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/// Of the limits for 1, 2, ... x teams pieces (0: impossible) the one that should end first. With few lists one piece
/// for each team does; where they do not divide evenly, several shorter ones.
__device__ __forceinline__ int choose_limit(const PlanTotals& all, const int (&limits)[most_waves]) {
    int limit = all.longest, cost = 0x7fffffff;
#pragma unroll
    for (int wave = 0; wave < most_waves; ++wave) {
        const int candidate = limits[wave];
        if (candidate == 0 || (wave + 1) * (candidate + piece_cost) >= cost) continue;
        cost = (wave + 1) * (candidate + piece_cost);
        limit = candidate;
    }
    return limit;
}

/// Piece `number` of a list cut evenly into `pieces`.
struct StepRange {
    int begin, steps;
};
__device__ __forceinline__ StepRange piece_steps(int steps, int pieces, int number) {
    const int begin = static_cast<int>(static_cast<std::int64_t>(steps) * number / pieces);
    const int end = static_cast<int>(static_cast<std::int64_t>(steps) * (number + 1) / pieces);
    return {begin, end - begin};
}

// --- Planned by each team -------------------------------------------------------------------------------------------

/// The same plan in every team, held by a warp, a tile a lane: no kernel of its own has to run first.
struct TeamPlan {
    int steps, passes, pieces;  // of the lane's tile; `pieces` of one pass
    int first_item;             // of the tile, in the order of the lanes' tiles
    int first_slot;
    int items;  // of all tiles

    __device__ __forceinline__ TeamPlan(const ForwardArgs& args, int lane) {
        const bool mine = lane < args.schedule.tiles;
        const TileLength length = mine ? tile_length(args, lane) : TileLength{0, 0};
        steps = length.steps;
        passes = length.passes;
        const PlanTotals all = {warp_sum(static_cast<unsigned long long>(steps) * static_cast<unsigned>(passes)),
                                __reduce_add_sync(0xffffffffu, passes), __reduce_max_sync(0xffffffffu, steps)};
        const auto count = [&](int limit) { return __reduce_add_sync(0xffffffffu, ceil_div(steps, limit) * passes); };
        int limits[most_waves];
#pragma unroll
        for (int wave = 0; wave < most_waves; ++wave) {
            limits[wave] = shortest_limit(all, (wave + 1) * args.pieces.teams, count);
        }
        pieces = ceil_div(steps, choose_limit(all, limits));
        const int own = pieces * passes;
        first_item = warp_sum_before(own, lane);
        items = __shfl_sync(0xffffffffu, first_item + own, 31);
        first_slot = warp_sum_before(pieces > 1 ? own : 0, lane);
    }
    /// Item `index` of the plan, the same in all lanes.
    __device__ __forceinline__ ListPiece item(const ForwardArgs& args, int index, int lane) const {
        const unsigned begun = __ballot_sync(0xffffffffu, first_item <= index && pieces * passes > 0);
        const int tile = 31 - __clz(static_cast<int>(begun));
        const int i = index - first_item;
        ListPiece piece{};
        if (lane == tile) {
            const StepRange range = piece_steps(steps, pieces, i % pieces);
            piece = {tile * args.schedule.parts + i / pieces, range.begin, range.steps,
                     pieces > 1 ? first_slot + i : -1};
        }
        return {__shfl_sync(0xffffffffu, piece.place, tile), __shfl_sync(0xffffffffu, piece.begin, tile),
                __shfl_sync(0xffffffffu, piece.steps, tile), __shfl_sync(0xffffffffu, piece.slot, tile)};
    }
    /// Tells the kernel that merges.
    __device__ __forceinline__ void write_merges(const ForwardArgs& args, int lane) const {
        const int own = pieces > 1 ? passes : 0;
        const int first = warp_sum_before(own, lane);
        for (int part = 0; part < own; ++part) {
            args.pieces.merges[first + part] = {lane * args.schedule.parts + part, pieces, 0,
                                                first_slot + part * pieces};
        }
        if (lane == 31) args.pieces.counts[1] = first + own;
    }
};

}  // namespace sparseattn::cuda::hopper
