#pragma once
/// \file
/// What happens to the scores of one warpgroup: token masks and the online softmax.

#include "cuda/hopper/forward_shape.cuh"

namespace sparseattn::cuda::hopper {

/// Running softmax of the two rows that a thread shares with the three other lanes of its quad.
struct RowState {
    static constexpr float unseen = 1e38f;  // offset of a row that has seen no key: exponentials of -inf stay 0
    float offset[2];                        // minus the maximum kept, in units of log2
    float sum[2];                           // this thread's share
    // Bits of the score from which on the maximum rises. Compared as integers, which orders floats right unless both
    // are negative: then it is the least integer, and every step looks more closely.
    int limit[2];

    __device__ __forceinline__ void clear() {
        for (int half = 0; half < 2; ++half) {
            offset[half] = unseen;
            sum[half] = 0;
            limit[half] = static_cast<int>(0x80000000u);
        }
    }
    /// `unscale`: 1 / scale_log2.
    __device__ __forceinline__ void keep(int half, float new_offset, float unscale) {
        offset[half] = new_offset;
        const float score = (slack_log2 - new_offset) * unscale;
        limit[half] = score >= 0 ? __float_as_int(score) : static_cast<int>(0x80000000u);
    }
};

/// Keys that a query sees, or that all of some queries see: those below `end` that are also below `sink` or not below
/// `begin`.
struct SeenKeys {
    int end, begin, sink;
    /// True only when all of keys [j0, j1) are seen.
    __device__ __forceinline__ bool all(int j0, int j1) const { return j1 <= end && (j1 <= sink || j0 >= begin); }
};
__device__ __forceinline__ SeenKeys seen_by(const TokenRule& rule, int query) {
    return {rule.key_end(query), rule.local_begin(query), rule.window.sink};
}
__device__ __forceinline__ SeenKeys seen_by_all(const TokenRule& rule, int first, int last) {
    const int windowed = min(last, rule.queries - rule.window.dense_tail) - 1;  // begins rise up to here, then are 0
    return {rule.key_end(first), windowed < first ? 0 : rule.local_begin(windowed), rule.window.sink};
}

/// Hides what the token rule hides in a tile of key blocks. `keys_of(half)`: of the thread's first and second row.
/// `Ends`: only the ends matter, as where no window begins in the tile.
template <bool Ends, int Scores, class KeysOf>
__device__ __forceinline__ void mask_blocks(float (&s)[Scores], const KeysOf& keys_of, TileKeys where, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const SeenKeys keys = keys_of(half);
#pragma unroll
        for (int run = 0; run < Scores / 32; ++run) {  // bounds relative to the thread's first key of the run
            const int base = (run == 0 ? where.low : where.high) + 2 * (lane % 4);
            const int run_end = keys.end - base, run_begin = keys.begin - base, run_sink = keys.sink - base;
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int key = 8 * (i / 2) + i % 2;
                float& score = s[32 * run + 4 * (i / 2) + 2 * half + i % 2];
                const bool kept = key < run_end && (Ends || key < run_sink || key >= run_begin);
                if (!kept) score = -INFINITY;
            }
        }
    }
}
/// The same for single keys: `list` are those of the tile, `count` of them.
template <int Scores, class KeysOf>
__device__ __forceinline__ void mask_singles(float (&s)[Scores], const KeysOf& keys_of, const std::int32_t* list,
                                             int count, int lane) {
    const SeenKeys keys[2] = {keys_of(0), keys_of(1)};
#pragma unroll
    for (int i = 0; i < Scores / 2; ++i) {
        const int column = 8 * (i / 2) + 2 * (lane % 4) + i % 2;
        const int key = column < count ? __ldg(list + column) : TileKeys::nowhere;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float& score = s[4 * (i / 2) + 2 * half + i % 2];
            const bool kept = key < keys[half].end && (key < keys[half].sink || key >= keys[half].begin);
            if (!kept) score = -INFINITY;
        }
    }
}

/// True when all queries see all keys of a step, by those that all of them see.
template <class Shape>
__device__ __forceinline__ bool all_seen(const SeenKeys& common, const Tile& tile, TileKeys where) {
    if constexpr (Shape::with_singles) {
        if (where.low < 0) {
            const int last = min(where.high + Shape::keys, tile.singles) - 1;
            return common.all(__ldg(tile.keys + where.high), __ldg(tile.keys + last) + 1);
        }
    }
    if (where.high == where.low + (Shape::runs - 1) * 64) return common.all(where.low, where.low + Shape::keys);
    return common.all(where.low, where.low + 64) && common.all(where.high, where.high + 64);
}
/// True when all keys of a step exist and are seen.
template <class Shape>
__device__ __forceinline__ bool needs_no_mask(const SeenKeys& common, const Tile& tile, TileKeys where) {
    const bool exist = !Shape::with_singles || where.low >= 0 || where.high + Shape::keys <= tile.singles;
    return exist && all_seen<Shape>(common, tile, where);
}
/// Masks the scores. Returns how many of the step's keys stand before the end of the sequence: what was loaded behind
/// them belongs to the next one.
template <class Shape, class KeysOf>
__device__ __forceinline__ int mask_scores(float (&s)[Shape::scores], const KeysOf& keys_of, const SeenKeys& common,
                                           const Tile& tile, TileKeys where, int lane) {
    if (Shape::with_singles && where.low < 0) {
        const int count = tile.singles - where.high;
        if (__all_sync(0xffffffffu, all_seen<Shape>(common, tile, where))) {  // only places behind the list are hidden
            const auto places_of = [count](int) { return SeenKeys{count, 0, 0}; };
            mask_blocks<true>(s, places_of, TileKeys{0, 64}, lane);
        } else {
            mask_singles(s, keys_of, tile.keys + where.high, count, lane);
        }
        return Shape::keys;
    }
    const int begin = max(keys_of(0).begin, keys_of(1).begin);
    if (__all_sync(0xffffffffu, begin <= min(where.low, where.high)))
        mask_blocks<true>(s, keys_of, where, lane);
    else
        mask_blocks<false>(s, keys_of, where, lane);
    // The last block of a sequence is the last of a list, hence in the upper run.
    return max(0, min(Shape::keys, Shape::keys - 64 + tile.key_count - where.high));
}

/// Score `i` of the thread's first or second row.
template <int Scores>
__device__ __forceinline__ float& row_score(float (&s)[Scores], int half, int i) {
    return s[4 * (i / 2) + 2 * half + i % 2];
}
/// True in all lanes of a warp when a score of one of its rows is above the row's limit: a maximum over three integers
/// is one instruction, over two floats it is as slow.
template <int Scores>
__device__ __forceinline__ bool above_limits(float (&s)[Scores], const RowState& state) {
    bool above = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const auto bits = [&](int i) { return __float_as_int(row_score(s, half, i)); };
        int highest = bits(0);
#pragma unroll
        for (int i = 1; i + 1 < Scores / 2; i += 2) highest = __vimax3_s32(highest, bits(i), bits(i + 1));
        above = above || max(highest, bits(Scores / 2 - 1)) > state.limit[half];
    }
    return __any_sync(0xffffffffu, above);
}
/// Looks for new maxima; `shrink`: by how much what was accumulated so far must shrink.
template <int Scores>
__device__ __forceinline__ void raise_maxima(float (&s)[Scores], RowState& state, float scale_log2, float unscale,
                                             float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float highest = row_score(s, half, 0);
#pragma unroll
        for (int i = 1; i < Scores / 2; ++i) highest = fmaxf(highest, row_score(s, half, i));
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2)) * scale_log2;
        shrink[half] = 1.0f;
        if (highest + state.offset[half] > slack_log2) {  // of a row that has seen none: whenever a key is seen
            shrink[half] = exp2_fast(-state.offset[half] - highest);
            state.keep(half, -highest, unscale);
            state.sum[half] *= shrink[half];
        }
    }
}
/// Scores to unnormalised probabilities. Returns, the same in all lanes, whether a maximum may have risen: only then
/// `shrink` is set.
template <int Scores>
__device__ __forceinline__ bool online_softmax(float (&s)[Scores], RowState& state, float scale_log2, float unscale,
                                               float (&shrink)[2]) {
    const bool raised = above_limits(s, state);
    if (__builtin_expect(raised, 0)) raise_maxima(s, state, scale_log2, unscale, shrink);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float offset = state.offset[half];
        float sum = 0;
#pragma unroll
        for (int i = 0; i < Scores / 2; ++i) {
            float& score = row_score(s, half, i);
            score = exp2_fast(fmaf(score, scale_log2, offset));
            sum += score;
        }
        state.sum[half] += sum;
    }
    return raised;
}

template <int Pairs>
__device__ __forceinline__ void pack_probabilities(std::uint32_t (&p)[Pairs], const float (&s)[2 * Pairs]) {
#pragma unroll
    for (int i = 0; i < Pairs; ++i) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

template <int Count>
__device__ __forceinline__ void rescale(float (&o)[Count], const float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) o[i] *= shrink[i / 2 % 2];
}

}  // namespace sparseattn::cuda::hopper
