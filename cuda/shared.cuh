#pragma once
/// \file
/// What the kernels of every architecture share.

#include <cstdint>

#include "cuda/attention.hpp"

namespace sparseattn::cuda {

/// Two floats as packed bf16, `low` in the lower half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
    std::uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
/// 2^x, relative error 2^-22; 0 for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// A row keeps its old maximum while the new one exceeds it by less than this power of two: out and lse do not change
/// (both are relative to the maximum kept), and the accumulators need no rescaling in nearly all steps.
inline constexpr float slack_log2 = 8.0f;

/// The sequence that a row or key block lies in.
struct SequenceSpan {
    int query_begin, queries, key_begin, keys;

    __device__ __forceinline__ SequenceSpan(const Batch& batch, int sequence) {
        query_begin = batch.query_offsets[sequence];
        queries = batch.query_offsets[sequence + 1] - query_begin;
        key_begin = batch.key_offsets[sequence];
        keys = batch.key_offsets[sequence + 1] - key_begin;
    }
};

}  // namespace sparseattn::cuda
