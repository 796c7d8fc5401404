#pragma once
/// \file
/// Matrix product: row-major, through KokkosBlas to the vendor's BLAS.

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

enum class Op { none, transpose };

// c = alpha * op_a(a) * op_b(b) + beta * c. Extents must match; c overlaps neither a nor b. With beta = 0 the old
// content of c is not read. An empty sum (no columns in op_a(a)) leaves beta * c.
template <class Exec, class T>
void gemm(const Exec& exec, Op op_a, Op op_b, T alpha, const Span2<const T, typename Exec::memory_space>& a,
          const Span2<const T, typename Exec::memory_space>& b, T beta, const Span2<T, typename Exec::memory_space>& c);

}  // namespace sparseattn::detail
