#pragma once
/// \file
/// The library's TokenRule for CUDA sources, which see no Kokkos. tests/cuda checks it against the original.

#include <cstdint>

#include "cuda/attention.hpp"

namespace sparseattn::cuda {

/// Token visibility inside one sequence for one head: sequence end, causality (bottom-right aligned) and window.
struct TokenRule {
    std::int32_t queries;  // n_q
    std::int32_t keys;     // n_k
    bool causal;
    Window window;

    /// First key past those that query i sees (0 when it sees none).
    __host__ __device__ std::int32_t key_end(std::int32_t i) const {
        if (!causal) return keys;
        const std::int32_t end = i + (keys - queries) + 1;
        return end < 0 ? 0 : end;
    }
    /// First key of query i's local part; keys in [sink, local_begin) are hidden.
    __host__ __device__ std::int32_t local_begin(std::int32_t i) const {
        if (window.local == Window::everything || i >= queries - window.dense_tail) return 0;
        const std::int32_t begin = i + (keys - queries) - window.local + 1;
        return begin < 0 ? 0 : begin;
    }
    __host__ __device__ bool visible(std::int32_t i, std::int32_t j) const {
        return j < key_end(i) && (j < window.sink || j >= local_begin(i));
    }
    /// True only when every pair of queries [i0, i1) and keys [j0, j1) is visible: no token mask is needed there.
    __host__ __device__ bool all_visible(std::int32_t i0, std::int32_t i1, std::int32_t j0, std::int32_t j1) const {
        if (j1 > key_end(i0)) return false;
        const std::int32_t tail = queries - window.dense_tail;
        const std::int32_t last = (i1 < tail ? i1 : tail) - 1;  // local_begin rises up to here; the tail sees all
        return last < i0 || j1 <= window.sink || j0 >= local_begin(last);
    }
    /// True only when no pair of queries [i0, i1) and keys [j0, j1) is visible.
    __host__ __device__ bool none_visible(std::int32_t i0, std::int32_t i1, std::int32_t j0, std::int32_t j1) const {
        if (j0 >= key_end(i1 - 1)) return true;
        return window.local != Window::everything && i1 <= queries - window.dense_tail && j0 >= window.sink &&
               j1 <= local_begin(i0);
    }
};

}  // namespace sparseattn::cuda
