#pragma once
/// \file
/// A computing warpgroup: products, softmax, epilogue.

#include "cuda/hopper/softmax.cuh"

namespace sparseattn::cuda::hopper {

/// One warpgroup's part of a tile. Kept in registers while products run; the rest is looked up when it is wanted.
struct Rows64 {
    const Tile& tile;
    int steps;
    SeenKeys common;      // by all rows
    std::uint64_t query;  // operand
    Barrier* query_empty;
};

/// Which query and head one of the thread's two rows is, counted from the tile's first. `half`: which 64 rows of the
/// team's queries the warpgroup has; `row`: the row among them.
struct RowPlace {
    int query, head;
};
template <class Shape>
__device__ __forceinline__ RowPlace row_place(const ForwardArgs& args, int half, int row) {
    const int heads = args.schedule.heads_per_unit;
    if constexpr (Shape::group) return {row / heads, row % heads};
    if (Shape::paired && heads == 1) return {half * 64 + row, 0};
    return {row, half};
}

/// One divided by the sums of exponentials of the thread's rows, and their logs; 0 and -inf for a row that sees no key.
struct RowScales {
    float inverse[2], lse[2];
};
__device__ __forceinline__ RowScales row_scales(const RowState& state, const bool (&closed)[2]) {
    constexpr float ln_2 = 0.6931471805599453f;
    float sum[2] = {state.sum[0], state.sum[1]};
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
#pragma unroll
        for (float& each : sum) each += __shfl_xor_sync(0xffffffffu, each, distance);
    }
    RowScales result;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const bool none = !(sum[half] > 0) || closed[half];
        result.inverse[half] = none ? 0.0f : __fdividef(1.0f, sum[half]);
        result.lse[half] = none ? -INFINITY : fmaf(state.offset[half], -ln_2, logf(sum[half]));
    }
    return result;
}
/// True for a row of a head that the gate closes.
__device__ __forceinline__ bool row_closed(const ForwardArgs& args, const Tile& tile, RowPlace place, bool valid) {
    return args.gate != nullptr && valid && args.gate[tile.head + place.head] == args.branch[tile.branch].closed;
}

/// Where the thread's two rows go.
struct RowPlaces {
    RowPlace place[2];
    bool valid[2], closed[2];
};
/// `first_row` is that of the thread, 0..63, the second one is 8 below.
template <class Shape>
__device__ __forceinline__ RowPlaces row_places(const ForwardArgs& args, const Tile& tile, int half_of_team,
                                                int first_row) {
    RowPlaces rows;
    const int queries = tile.end - tile.first;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        rows.place[half] = row_place<Shape>(args, half_of_team, first_row + 8 * half);
        rows.valid[half] = rows.place[half].query < queries;
        rows.closed[half] = row_closed(args, tile, rows.place[half], rows.valid[half]);
    }
    return rows;
}

/// Normalises and writes a warp's 16 rows: a quad turns its 2 x 4 channels of four groups of 8 into one group each, 16
/// bytes a lane. All of a row's exchanges are independent and stand before its stores: one after the other they took
/// four times as long.
template <class Shape>
__device__ __forceinline__ void store_rows(const ForwardArgs& args, const Tile& tile, int half_of_team,
                                           const float (&o)[Shape::head_dim / 2], const RowState& state, int first_row,
                                           int lane) {
    const TileResult result = tile.result;
    const RowPlaces rows = row_places<Shape>(args, tile, half_of_team, first_row);
    const RowScales scales = row_scales(state, rows.closed);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const RowPlace place = rows.place[half];
        std::uint32_t x[Shape::head_dim / 32][4];
#pragma unroll
        for (int column = 0; column < Shape::head_dim / 32; ++column) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = 16 * column + 4 * i + 2 * half;
                x[column][i] = pack_bf16(o[at] * scales.inverse[half], o[at + 1] * scales.inverse[half]);
            }
        }
#pragma unroll
        for (auto& each : x) transpose_quad(each, lane);
        if (!rows.valid[half]) continue;
        auto* out = static_cast<__nv_bfloat16*>(result.out) + place.query * result.out_token +
                    place.head * result.out_head + lane % 4 * 8;
#pragma unroll
        for (int column = 0; column < Shape::head_dim / 32; ++column) {
            const auto& piece = x[column];
            *reinterpret_cast<uint4*>(out + 32 * column) = make_uint4(piece[0], piece[1], piece[2], piece[3]);
        }
        if (lane % 4 == 0) {
            result.lse[place.query * result.lse_token + place.head * result.lse_head] = scales.lse[half];
        }
    }
}
/// The same for a piece of a list: floats, to its partial result.
template <class Shape>
__device__ __forceinline__ void store_piece(const ForwardArgs& args, const Tile& tile, int half_of_team,
                                            const float (&o)[Shape::head_dim / 2], const RowState& state, int first_row,
                                            int lane) {
    const ListPieces& pieces = args.pieces;
    const RowPlaces rows = row_places<Shape>(args, tile, half_of_team, first_row);
    const RowScales scales = row_scales(state, rows.closed);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (!rows.valid[half]) continue;
        const int row = half_of_team * 64 + first_row + 8 * half;
        const std::int64_t slot_row = static_cast<std::int64_t>(tile.slot) * pieces.slot_rows + row;
        if (lane % 4 == 0) pieces.lse[slot_row] = scales.lse[half];
        float* out = pieces.out + slot_row * Shape::head_dim + lane % 4 * 2;
#pragma unroll
        for (int column = 0; column < Shape::head_dim; column += 8) {
            const int at = column / 2 + 2 * half;
            *reinterpret_cast<float2*>(out + column) =
                make_float2(o[at] * scales.inverse[half], o[at + 1] * scales.inverse[half]);
        }
    }
}

/// Rows [begin, end of the stage) become zeros, by the warpgroup that is about to multiply them: they hold values of
/// the next sequence, whose NaN or infinity would reach a result through a probability of 0. In a pair both warpgroups
/// do it, and neither waits for the other.
template <class Shape>
__device__ __forceinline__ void clear_rows(unsigned char* stage, int begin, int warpgroup, int thread) {
#pragma unroll 1
    for (int panel = 0; panel < Shape::panels; ++panel) {
#pragma unroll 1
        for (int i = begin * 8 + thread; i < Shape::keys * 8; i += 128) {
            *reinterpret_cast<uint4*>(stage + panel * Shape::key_panel + i * 16) = make_uint4(0, 0, 0, 0);
        }
    }
    fence_async_shared();
    named_sync(3 + warpgroup, 128);
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

/// One computing warpgroup. The first scores of a tile are issued behind the last value product of the tile before, and
/// run while that tile's result is written.
template <class Shape>
struct Consumer {
    const ForwardArgs& args;
    TeamStorage<Shape>& data;
    TeamControl<Shape>& control;
    const int warpgroup;
    const int half;  // which 64 rows of the team's queries
    const int lane;
    const float unscale;
    bool raised;   // a maximum, in the step before
    int own_keys;  // of the step whose values come next, those that stand in the sequence
    Ring<Shape::stages> ring;
    RowState state;
    float s[Shape::scores], o[Shape::head_dim / 2], shrink[2];
    std::uint32_t p[Shape::scores / 2];

    __device__ __forceinline__ Consumer(const ForwardArgs& args_, TeamStorage<Shape>& data_,
                                        TeamControl<Shape>& control_, int warpgroup_, int lane_)
        : args(args_),
          data(data_),
          control(control_),
          warpgroup(warpgroup_),
          half(Shape::paired ? warpgroup : 0),
          lane(lane_),
          unscale(1.0f / args_.scale_log2) {}

    /// Of the warpgroup's 64 rows, the thread's first one; the second one is 8 below.
    __device__ __forceinline__ int first_row() const { return static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4; }
    __device__ __forceinline__ void release(Barrier* barrier) const {
        if (releasing_lanes == 32 || lane == 0) barrier_arrive(barrier);
    }
    /// Before `whole`, in which the lanes meet: the lane that releases the stage does so behind it.
    __device__ __forceinline__ TileKeys keys_of(int stage) const { return control.tile_keys[stage]; }
    __device__ __forceinline__ std::uint64_t query_at(int count) const {
        std::uint64_t query = operand(data.query[Ring<Shape::query_stages>::at(count).stage] + half * 64 * swizzle_row);
        asm volatile("" : "+l"(query));  // else its advances are kept in registers from tile to tile
        return query;
    }
    __device__ __forceinline__ Rows64 rows_of(int count, int steps) const {
        const Tile& tile = control.tiles[Ring<Shape::tile_slots>::at(count).stage];
        const int first = tile.first + (Shape::paired && !folded() ? half * 64 : 0);
        return {tile, steps, seen_by_all(rule_of(tile, window_of(tile)), first, min(first + 64, tile.end)),
                query_at(count), &control.query_empty[Ring<Shape::query_stages>::at(count).stage]};
    }
    __device__ __forceinline__ bool folded() const { return Shape::paired && args.schedule.heads_per_unit == 2; }
    __device__ __forceinline__ const Window& window_of(const Tile& tile) const {
        return tile.windows[folded() ? half : 0];
    }
    static __device__ __forceinline__ TokenRule rule_of(const Tile& tile, const Window& window) {
        return {tile.query_count, tile.key_count, tile.causal, window};
    }
    /// Whether the scores of a step need no mask; asked while they are being formed.
    static __device__ __forceinline__ bool whole(const Rows64& rows, TileKeys where) {
        return __all_sync(0xffffffffu, needs_no_mask<Shape>(rows.common, rows.tile, where));
    }
    __device__ __forceinline__ void mask_and_exponentiate(const Rows64& rows, TileKeys where, bool unmasked) {
        const auto keys_of = [&](int row_half) {
            const Tile& tile = rows.tile;
            const RowPlace place = row_place<Shape>(args, half, first_row() + 8 * row_half);
            const int query = tile.first + place.query;
            if constexpr (Shape::group) {
                const Window* windows = args.branch[tile.branch].layout.windows;
                return seen_by(rule_of(tile, windows[tile.head + place.head]), query);
            } else {
                return seen_by(rule_of(tile, window_of(tile)), query);
            }
        };
        own_keys = Shape::keys;
        if (__builtin_expect(!unmasked, 0))
            own_keys = mask_scores<Shape>(s, keys_of, rows.common, rows.tile, where, lane);
        raised = online_softmax(s, state, args.scale_log2, unscale, shrink);
    }
    /// The first step of a tile that holds single keys. Asked ahead of `fence_singles`, behind which products wait.
    static __device__ __forceinline__ int singles_from(const Tile& tile) {
        return Shape::with_singles ? tile.singles_from : 0;
    }
    /// Before what ordinary copies brought for a step is multiplied; `from`: the first step that holds single keys.
    static __device__ __forceinline__ void fence_singles(int from, int step) {
        if constexpr (Shape::with_singles) {
            if (step >= from) fence_async_shared();
        }
    }
    /// Before the values of the step before are multiplied: clears those of the next sequence, once they have come.
    __device__ __forceinline__ void clear_foreign_values(const Ring<Shape::stages>& values) const {
        if (__builtin_expect(own_keys == Shape::keys, 1)) return;
        barrier_wait(&control.full[values.stage], values.phase);
        clear_rows<Shape>(data.ring[values.stage], own_keys, warpgroup, static_cast<int>(threadIdx.x % 128));
    }
    /// Issues the first scores of tile `count` once they can be formed; returns its number of steps. After the last
    /// tile the scores are of whatever is in the ring, and nobody reads them: products in flight must not depend on a
    /// branch.
    __device__ __forceinline__ int begin_tile(int count) {
        const auto slot = Ring<Shape::tile_slots>::at(count);
        const auto query = Ring<Shape::query_stages>::at(count);
        barrier_wait(&control.tile_full[slot.stage], slot.phase);
        const Tile& tile = control.tiles[slot.stage];
        const int steps = tile.steps;
        if (steps > 0) {
            barrier_wait(&control.query_full[query.stage], query.phase);
            barrier_wait(&control.full[ring.stage], ring.phase);
            fence_singles(singles_from(tile), 0);
        }
        std::uint64_t key = operand(data.ring[ring.stage]);
        asm volatile("" : "+l"(key));  // as in query_at
        pin(s);
        product_fence();
        score_product<Shape>(s, query_at(count), key);
        product_commit();
        return steps;
    }
    /// Takes over the first scores.
    __device__ __forceinline__ void first_step(const Rows64& rows) {
        state.clear();
        const TileKeys where = keys_of(ring.stage);
        const bool unmasked = whole(rows, where);
        product_wait<0>();
        pin(s);
        release(&control.empty[ring.stage]);
        ring.next();
        if (rows.steps == 1) release(rows.query_empty);
#pragma unroll
        for (int i = 0; i < Shape::head_dim / 2; ++i) o[i] = 0;
        mask_and_exponentiate(rows, where, unmasked);
    }
    /// Scores of step n and, meanwhile, the values of step n - 1.
    __device__ __forceinline__ void next_step(const Rows64& rows, int n) {
        const int key_stage = ring.stage;
        Ring<Shape::stages> values = ring;
        values.next();
        const int value_stage = values.stage;
        const bool keys_here = barrier_test(&control.full[ring.stage], ring.phase);  // answered while P is packed
        const bool values_here = barrier_test(&control.full[values.stage], values.phase);
        const int from = singles_from(rows.tile);
        pack_probabilities(p, s);
        if (!keys_here) barrier_wait(&control.full[ring.stage], ring.phase);
        fence_singles(from, n);
        clear_foreign_values(values);
        pin(s);
        pin(p);
        pin(o);
        product_fence();
        score_product<Shape>(s, rows.query, operand(data.ring[key_stage]));
        product_commit();
        if (!values_here) barrier_wait(&control.full[values.stage], values.phase);
        fence_singles(from, n - 1);
        value_product<Shape>(o, p, operand(data.ring[value_stage], Shape::key_panel));
        product_commit();
        values.next();
        ring = values;
        const TileKeys where = keys_of(key_stage);
        const bool unmasked = whole(rows, where);
        product_wait<1>();
        pin(s);
        release(&control.empty[key_stage]);
        if (n + 1 == rows.steps) release(rows.query_empty);
        mask_and_exponentiate(rows, where, unmasked);
        pin(s);
        stay_before(state.sum[0] + state.sum[1]);  // the softmax runs under the value product
        product_wait<0>();
        pin(o);
        pin(p);
        release(&control.empty[value_stage]);
        if (__builtin_expect(raised, 0)) rescale(o, shrink);
    }
    /// Values of the last step, first scores of the next tile, result of this one. Returns the next tile's steps.
    __device__ __forceinline__ int finish(const Rows64& rows, int count) {
        const int last_stage = ring.stage;
        const bool values_here = barrier_test(&control.full[ring.stage], ring.phase);
        const int from = singles_from(rows.tile);
        pack_probabilities(p, s);
        if (!values_here) barrier_wait(&control.full[ring.stage], ring.phase);
        fence_singles(from, rows.steps - 1);
        clear_foreign_values(ring);
        pin(p);
        pin(o);
        product_fence();
        value_product<Shape>(o, p, operand(data.ring[last_stage], Shape::key_panel));
        product_commit();
        ring.next();
        const int next_steps = begin_tile(count + 1);
        product_wait<1>();
        pin(o);
        pin(p);
        release(&control.empty[last_stage]);
        if (rows.tile.slot < 0)
            store_rows<Shape>(args, rows.tile, half, o, state, first_row(), lane);
        else
            store_piece<Shape>(args, rows.tile, half, o, state, first_row(), lane);
        barrier_arrive(&control.tile_empty[Ring<Shape::tile_slots>::at(count).stage]);
        return next_steps;
    }
    __device__ __forceinline__ void run() {
        int steps = begin_tile(0);
        for (int count = 0; steps >= 0; ++count) {
            const Rows64 rows = rows_of(count, steps);
            first_step(rows);
            for (int n = 1; n < steps; ++n) next_step(rows, n);
            steps = finish(rows, count);
        }
        product_wait<0>();
    }
};

}  // namespace sparseattn::cuda::hopper
