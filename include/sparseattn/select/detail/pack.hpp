#pragma once
// Copies of one head's vectors into contiguous fp32 rows, ready for the matrix product.

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

// The tokens of one sequence and head of a packed batch.
struct TokenRange {
    std::int32_t first;   // row of the packed array
    std::int32_t tokens;  // length of the sequence
    std::int32_t head;
};

// out(i, s * d + c) = x(first + (first_row + i) * stride + t, head, c) with t = s, or stride - 1 - s when `reversed`;
// 0 for tokens past the end. out is [rows, stride * d].
template <class Exec, class T>
void pack_rows(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& x, const TokenRange& range,
               std::int32_t stride, std::int32_t first_row, bool reversed,
               const Span2<float, typename Exec::memory_space>& out);

// out(J, c) = scale * mean of x(., head, c) over the tokens [J * block, (J + 1) * block) that the range has.
template <class Exec, class T>
void mean_blocks(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& x, const TokenRange& range,
                 std::int32_t block, float scale, const Span2<float, typename Exec::memory_space>& out);

}  // namespace sparseattn::detail
