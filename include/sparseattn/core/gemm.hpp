#pragma once
/// \file
/// Matrix product, row-major: of float and double through KokkosBlas to the vendor's BLAS, of bf16 on CUDA through
/// cuBLASLt and on a CPU through the BLAS in float.

#include <cstddef>
#include <type_traits>

#include "sparseattn/core/types.hpp"
#include "sparseattn/core/workspace.hpp"

namespace sparseattn::detail {

enum class Op { none, transpose };

// c = alpha * op_a(a) * op_b(b) + beta * c. Extents must match; c overlaps neither a nor b. With beta = 0 the old
// content of c is not read. An empty sum (no columns in op_a(a)) leaves beta * c. T is float or double.
template <class Exec, class T>
void gemm(const Exec& exec, Op op_a, Op op_b, T alpha, const Span2<const T, typename Exec::memory_space>& a,
          const Span2<const T, typename Exec::memory_space>& b, T beta, const Span2<T, typename Exec::memory_space>& c);

// The same of bf16 factors: sums are formed in float, and each element of c, bf16 or float, is rounded when its sum is
// complete (on CUDA with beta and bf16 perhaps before and after beta c is added).
template <class Exec, class Out>
void gemm_bf16(const Exec& exec, Op op_a, Op op_b, float alpha, const Span2<const bf16, typename Exec::memory_space>& a,
               const Span2<const bf16, typename Exec::memory_space>& b, float beta,
               const Span2<Out, typename Exec::memory_space>& c, Workspace<typename Exec::memory_space>& workspace);
// Bytes that a product of bf16 factors with op_a(a) [m, k] and op_b(b) [k, n] takes from its workspace.
template <class Exec>
std::size_t gemm_bf16_workspace(std::size_t m, std::size_t n, std::size_t k);

// The product of any storage type T; `workspace` serves bf16 only.
template <class Exec, class T, class Out>
void gemm(const Exec& exec, Op op_a, Op op_b, accumulate_t<T> alpha,
          const Span2<const T, typename Exec::memory_space>& a, const Span2<const T, typename Exec::memory_space>& b,
          accumulate_t<T> beta, const Span2<Out, typename Exec::memory_space>& c,
          Workspace<typename Exec::memory_space>& workspace) {
    if constexpr (std::is_same_v<T, bf16>) {
        gemm_bf16<Exec, Out>(exec, op_a, op_b, alpha, a, b, beta, c, workspace);
    } else {
        gemm<Exec, T>(exec, op_a, op_b, alpha, a, b, beta, c);
    }
}
template <class Exec, class T>
std::size_t gemm_workspace([[maybe_unused]] std::size_t m, [[maybe_unused]] std::size_t n,
                           [[maybe_unused]] std::size_t k) {
    if constexpr (std::is_same_v<T, bf16>) return gemm_bf16_workspace<Exec>(m, n, k);
    return 0;
}

}  // namespace sparseattn::detail
