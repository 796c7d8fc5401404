#pragma once
/// \file
/// What happens to the scores of 16 queries: token masks and the online softmax.

#include "cuda/ampere/mma.cuh"
#include "cuda/token_rule.cuh"

namespace sparseattn::cuda::ampere {

/// Hides what the token rule hides from a thread's two queries, `row` and `row` + 8. `key_of(column)` is the key of a
/// column of the tile, in its sequence; one past every sequence hides the column.
template <int N, class Key>
__device__ __forceinline__ void mask_scores(float (&s)[N / 2], const TokenRule& rule, int row, int lane,
                                            const Key& key_of) {
    const int end[2] = {rule.key_end(row), rule.key_end(row + 8)};
    const int begin[2] = {rule.local_begin(row), rule.local_begin(row + 8)};
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
        const int key = key_of(8 * (i / 2) + 2 * (lane % 4) + i % 2);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float& score = s[4 * (i / 2) + 2 * half + i % 2];
            if (!(key < end[half] && (key < rule.window.sink || key >= begin[half]))) score = -INFINITY;
        }
    }
}

/// Running softmax of the two rows that a thread shares with the three other lanes of its quad.
struct RowState {
    float maximum[2] = {-INFINITY, -INFINITY};  // of the scores so far, up to the slack; -inf: none seen
    float sum[2] = {0, 0};                      // this thread's share
};

/// Scores to unnormalised probabilities; returns by how much what was accumulated so far must shrink.
template <int Scores>
__device__ __forceinline__ void online_softmax(float (&s)[Scores], RowState& state, float scale_log2,
                                               float (&shrink)[2]) {
    const float slack = slack_log2 / scale_log2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float highest = s[2 * half];
#pragma unroll
        for (int i = 0; i < Scores / 2; ++i) highest = fmaxf(highest, s[4 * (i / 2) + 2 * half + i % 2]);
        highest = fmaxf(highest, __shfl_xor_sync(all_lanes, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(all_lanes, highest, 2));
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

template <int Count>
__device__ __forceinline__ void rescale(float (&sums)[Count], const float (&shrink)[2]) {
    if (__any_sync(all_lanes, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < Count; ++i) sums[i] *= shrink[i / 2 % 2];
    }
}

}  // namespace sparseattn::cuda::ampere
