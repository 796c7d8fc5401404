#pragma once
// Where the last queries of a head look: their softmax summed along key columns and along diagonals.

#include "sparseattn/select/detail/pack.hpp"

namespace sparseattn::detail {

template <class Mem>
struct TailBuffers {
    Span2<float, Mem> queries;  // [rows, d]
    Span1<float, Mem> scores;   // [rows * keys]
};

// With P the causal softmax of the last `rows` queries of `range` (positions aligned at the ends) over the n keys:
// vertical(c) = sum_r P[r, c], slash(o) = sum_r P[r, n - rows + r - o] for distances o = 0..n-1 behind the query.
// `keys` is [n, d], packed; n >= range.tokens >= rows. Sums are fp32, the softmax's own denominators fp64.
template <class Exec, class T>
void tail_profile(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                  const TokenRange& range, std::int32_t rows,
                  const Span2<const float, typename Exec::memory_space>& keys,
                  const TailBuffers<typename Exec::memory_space>& buffers,
                  const Span1<float, typename Exec::memory_space>& vertical,
                  const Span1<float, typename Exec::memory_space>& slash);

}  // namespace sparseattn::detail
