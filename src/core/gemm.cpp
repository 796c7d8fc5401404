#include "sparseattn/core/gemm.hpp"

#include <KokkosBlas3_gemm.hpp>

#include "sparseattn/core/detail/gemm_shape.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"

namespace sparseattn::detail {
namespace {

// Whether KokkosBlas without an instance works on the same stream.
template <class Exec>
bool is_default([[maybe_unused]] const Exec& exec) {
#if defined(KOKKOS_ENABLE_CUDA)
    if constexpr (std::is_same_v<Exec, Kokkos::Cuda>) return exec.cuda_stream() == Exec().cuda_stream();
#endif
    return host_accessible<Exec>;
}

// KokkosBlas takes an execution-space instance from version 4 on. Before, it works on the default instance, so that
// other device instances need a fence on either side.
template <class Exec, class T, class A, class B, class C>
void call(const Exec& exec, const char* op_a, const char* op_b, T alpha, const A& a, const B& b, T beta, const C& c) {
    if constexpr (requires { KokkosBlas::gemm(exec, op_a, op_b, alpha, a, b, beta, c); }) {
        KokkosBlas::gemm(exec, op_a, op_b, alpha, a, b, beta, c);
    } else {
        const bool apart = !is_default(exec);
        if (apart) fence(exec, "SparseAttn::gemm.before");
        KokkosBlas::gemm(op_a, op_b, alpha, a, b, beta, c);
        if (apart) Kokkos::fence();
    }
}

}  // namespace

template <class Exec, class T>
void gemm(const Exec& exec, Op op_a, Op op_b, T alpha, const Span2<const T, typename Exec::memory_space>& a,
          const Span2<const T, typename Exec::memory_space>& b, T beta,
          const Span2<T, typename Exec::memory_space>& c) {
    const auto [m, n, k] = gemm_shape(op_a, op_b, a, b, c);
    if (m == 0 || n == 0) return;
    const Region region("SparseAttn::gemm");
    if (k == 0) {  // the BLAS of some versions returns early and forgets beta
        using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
        const Span1<T, typename Exec::memory_space> flat(c.data(), m * n);
        Kokkos::parallel_for(
            "SparseAttn::gemm.empty", Policy(exec, 0, static_cast<std::int64_t>(flat.extent(0))),
            KOKKOS_LAMBDA(std::int64_t i) { flat(i) = beta == T(0) ? T(0) : beta * flat(i); });
        return;
    }
    call(exec, op_a == Op::transpose ? "T" : "N", op_b == Op::transpose ? "T" : "N", alpha, a, b, beta, c);
}

#define SPARSEATTN_GEMM(EXEC, T)                                                                   \
    template void gemm(const EXEC&, Op, Op, T, const Span2<const T, typename EXEC::memory_space>&, \
                       const Span2<const T, typename EXEC::memory_space>&, T,                      \
                       const Span2<T, typename EXEC::memory_space>&);
#define SPARSEATTN_GEMM_BOTH(EXEC) SPARSEATTN_GEMM(EXEC, float) SPARSEATTN_GEMM(EXEC, double)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_GEMM_BOTH)

}  // namespace sparseattn::detail
