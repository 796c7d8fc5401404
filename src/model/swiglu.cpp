#include "sparseattn/core/elementary.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/model/detail/layers.hpp"
#include "sparseattn/model/detail/rows.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
void swiglu(const Exec& exec, const Span2<const T, typename Exec::memory_space>& gate_up,
            const Span2<T, typename Exec::memory_space>& act) {
    using A = accumulate_t<T>;
    const Region region("SparseAttn::swiglu");
    const int n = static_cast<int>(act.extent(1));
    for_each_row(
        exec, "SparseAttn::swiglu", static_cast<std::int64_t>(act.extent(0)),
        KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t t) {
            const T* gate = &gate_up(t, 0);
            const T* up = gate + n;
            T* out = &act(t, 0);
            for_columns(team, n, [=](int i) {
                const A g = gate[i];
                out[i] = T(g / (A(1) + exponential(-g)) * A(up[i]));
            });
        });
}

template <class Exec, class T>
void swiglu_backward(const Exec& exec, const Span2<T, typename Exec::memory_space>& gate_up,
                     const Span2<T, typename Exec::memory_space>& act) {
    using A = accumulate_t<T>;
    const Region region("SparseAttn::swiglu_backward");
    const int n = static_cast<int>(act.extent(1));
    for_each_row(
        exec, "SparseAttn::swiglu_backward", static_cast<std::int64_t>(act.extent(0)),
        KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t t) {
            T* gate = &gate_up(t, 0);
            T* up = gate + n;
            T* out = &act(t, 0);
            for_columns(team, n, [=](int i) {
                const A g = gate[i], u = up[i], d = out[i];
                const A sigmoid = A(1) / (A(1) + exponential(-g));
                const A silu = g * sigmoid;
                gate[i] = T(d * u * (sigmoid + silu * (A(1) - sigmoid)));
                up[i] = T(d * silu);
                out[i] = T(silu * u);
            });
        });
}

template <class Exec>
void round_array(const Exec& exec, const Span1<const float, typename Exec::memory_space>& from,
                 const Span1<bf16, typename Exec::memory_space>& to) {
    Kokkos::parallel_for(
        "SparseAttn::round_array", Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, 0, to.extent(0)),
        KOKKOS_LAMBDA(std::int64_t i) { to(i) = bf16(from(i)); });
}

template <class Exec, class T>
void add(const Exec& exec, const Span1<const T, typename Exec::memory_space>& from,
         const Span1<T, typename Exec::memory_space>& to) {
    Kokkos::parallel_for(
        "SparseAttn::add", Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, 0, to.extent(0)),
        KOKKOS_LAMBDA(std::int64_t i) { to(i) += from(i); });
}

#define SPARSEATTN_SWIGLU(EXEC, T)                                                           \
    template void swiglu(const EXEC&, const Span2<const T, typename EXEC::memory_space>&,    \
                         const Span2<T, typename EXEC::memory_space>&);                      \
    template void swiglu_backward(const EXEC&, const Span2<T, typename EXEC::memory_space>&, \
                                  const Span2<T, typename EXEC::memory_space>&);
SPARSEATTN_SWIGLU(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_SWIGLU(Kokkos::DefaultExecutionSpace, bf16)
SPARSEATTN_SWIGLU(Kokkos::DefaultExecutionSpace, double)
template void round_array(const Kokkos::DefaultExecutionSpace&,
                          const Span1<const float, Kokkos::DefaultExecutionSpace::memory_space>&,
                          const Span1<bf16, Kokkos::DefaultExecutionSpace::memory_space>&);
template void add(const Kokkos::DefaultExecutionSpace&,
                  const Span1<const float, typename Kokkos::DefaultExecutionSpace::memory_space>&,
                  const Span1<float, typename Kokkos::DefaultExecutionSpace::memory_space>&);

}  // namespace sparseattn::detail
