#include "sparseattn/core/gemm.hpp"

#include <KokkosBlas3_gemm.hpp>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"

namespace sparseattn::detail {
namespace {

template <class View>
std::string extents(const View& view) {
    return concat(view.extent(0), " x ", view.extent(1));
}

// KokkosBlas takes an execution-space instance from version 4 on. Before, it works on the default instance, so that
// other device instances need a fence on either side.
template <class Exec, class T, class A, class B, class C>
void call(const Exec& exec, const char* op_a, const char* op_b, T alpha, const A& a, const B& b, T beta, const C& c) {
    if constexpr (requires { KokkosBlas::gemm(exec, op_a, op_b, alpha, a, b, beta, c); }) {
        KokkosBlas::gemm(exec, op_a, op_b, alpha, a, b, beta, c);
    } else {
        constexpr bool on_host = Kokkos::SpaceAccessibility<Kokkos::HostSpace, typename Exec::memory_space>::accessible;
        if constexpr (!on_host) fence(exec, "SparseAttn::gemm.before");
        KokkosBlas::gemm(op_a, op_b, alpha, a, b, beta, c);
        if constexpr (!on_host) Kokkos::fence();
    }
}

}  // namespace

template <class Exec, class T>
void gemm(const Exec& exec, Op op_a, Op op_b, T alpha, const Span2<const T, typename Exec::memory_space>& a,
          const Span2<const T, typename Exec::memory_space>& b, T beta,
          const Span2<T, typename Exec::memory_space>& c) {
    const bool ta = op_a == Op::transpose, tb = op_b == Op::transpose;
    const auto m = a.extent(ta ? 1 : 0), k = a.extent(ta ? 0 : 1);
    const auto k_b = b.extent(tb ? 1 : 0), n = b.extent(tb ? 0 : 1);
    require(k == k_b, "inner extent of gemm's b", k_b, concat("that of a, ", k));
    require(c.extent(0) == m && c.extent(1) == n, "extents of gemm's c", extents(c), concat(m, " x ", n));
    if (m == 0 || n == 0) return;
    const Region region("SparseAttn::gemm");
    if (k == 0) {  // the BLAS of some versions returns early and forgets beta
        using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
        const Span1<T, typename Exec::memory_space> flat(c.data(), m * n);
        Kokkos::parallel_for(
            "SparseAttn::gemm.empty", Policy(exec, 0, static_cast<std::int64_t>(m * n)),
            KOKKOS_LAMBDA(std::int64_t i) { flat(i) = beta == T(0) ? T(0) : beta * flat(i); });
        return;
    }
    call(exec, ta ? "T" : "N", tb ? "T" : "N", alpha, a, b, beta, c);
}

#define SPARSEATTN_GEMM(EXEC, T)                                                                   \
    template void gemm(const EXEC&, Op, Op, T, const Span2<const T, typename EXEC::memory_space>&, \
                       const Span2<const T, typename EXEC::memory_space>&, T,                      \
                       const Span2<T, typename EXEC::memory_space>&);
#define SPARSEATTN_GEMM_BOTH(EXEC) SPARSEATTN_GEMM(EXEC, float) SPARSEATTN_GEMM(EXEC, double)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_GEMM_BOTH)

}  // namespace sparseattn::detail
