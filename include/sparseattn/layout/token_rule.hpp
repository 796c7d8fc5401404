#pragma once
/// \file
/// Which tokens of a visited block a query sees.

#include <cstdint>
#include <limits>

#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn {

/// Per-head token window. Key j is inside for query i (both counted in their sequence, i' = i + n_k - n_q) iff
/// j < sink, or j > i' - local, or i >= n_q - dense_tail. The default window holds every key.
struct Window {
    static constexpr std::int32_t everything = std::numeric_limits<std::int32_t>::max();
    std::int32_t sink = 0;
    std::int32_t local = everything;
    std::int32_t dense_tail = 0;

    KOKKOS_INLINE_FUNCTION bool bounded() const { return local != everything; }
    friend KOKKOS_INLINE_FUNCTION bool operator==(const Window& a, const Window& b) {
        return a.sink == b.sink && a.local == b.local && a.dense_tail == b.dense_tail;
    }
};

/// Token visibility inside one sequence for one head: sequence end, causality (bottom-right aligned) and window.
struct TokenRule {
    std::int32_t queries;  // n_q
    std::int32_t keys;     // n_k
    bool causal;
    Window window;

    KOKKOS_INLINE_FUNCTION std::int32_t shift() const { return keys - queries; }
    /// First key past those that query i sees (0 when it sees none).
    KOKKOS_INLINE_FUNCTION std::int32_t key_end(std::int32_t i) const {
        if (!causal) return keys;
        const std::int32_t end = i + shift() + 1;
        return end < 0 ? 0 : end;
    }
    /// First key of query i's local part; keys in [sink, local_begin) are hidden.
    KOKKOS_INLINE_FUNCTION std::int32_t local_begin(std::int32_t i) const {
        if (!window.bounded() || i >= queries - window.dense_tail) return 0;
        const std::int32_t begin = i + shift() - window.local + 1;
        return begin < 0 ? 0 : begin;
    }
    KOKKOS_INLINE_FUNCTION bool visible(std::int32_t i, std::int32_t j) const {
        return j < key_end(i) && (j < window.sink || j >= local_begin(i));
    }
    /// True only when every pair of queries [i0, i1) and keys [j0, j1) is visible: no token mask is needed there.
    KOKKOS_INLINE_FUNCTION bool all_visible(std::int32_t i0, std::int32_t i1, std::int32_t j0, std::int32_t j1) const {
        if (j1 > key_end(i0)) return false;
        const std::int32_t tail = queries - window.dense_tail;
        const std::int32_t last = (i1 < tail ? i1 : tail) - 1;  // local_begin rises up to here; the tail sees all
        return last < i0 || j1 <= window.sink || j0 >= local_begin(last);
    }
    /// True only when no pair of queries [i0, i1) and keys [j0, j1) is visible.
    KOKKOS_INLINE_FUNCTION bool none_visible(std::int32_t i0, std::int32_t i1, std::int32_t j0, std::int32_t j1) const {
        if (j0 >= key_end(i1 - 1)) return true;
        return window.bounded() && i1 <= queries - window.dense_tail && j0 >= window.sink && j1 <= local_begin(i0);
    }
};

}  // namespace sparseattn
