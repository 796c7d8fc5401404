#include "sparseattn/core/profiling.hpp"
#include "sparseattn/model/detail/layers.hpp"
#include "sparseattn/model/detail/rows.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
void embedding(const Exec& exec, const Span1<const std::int32_t, typename Exec::memory_space>& tokens,
               const Span2<const T, typename Exec::memory_space>& table,
               const Span2<T, typename Exec::memory_space>& x) {
    const Region region("SparseAttn::embedding");
    const int n = static_cast<int>(x.extent(1));
    const auto vocabulary = static_cast<std::int32_t>(table.extent(0));
    for_each_row(
        exec, "SparseAttn::embedding", static_cast<std::int64_t>(tokens.extent(0)),
        KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t t) {
            const std::int32_t token = tokens(t) >= 0 && tokens(t) < vocabulary ? tokens(t) : 0;
            const T* from = &table(token, 0);
            T* to = &x(t, 0);
            for_columns(team, n, [=](int i) { to[i] = from[i]; });
        });
}

// Each work item owns some columns of some of the table's rows, so that equal tokens never meet in two threads. On a
// device, where one walk over all tokens would be a chain of memory accesses, 64 of them share a column.
template <class Exec, class T>
void embedding_backward(const Exec& exec, const Span1<const std::int32_t, typename Exec::memory_space>& tokens,
                        const Span2<const T, typename Exec::memory_space>& dx,
                        const Span2<accumulate_t<T>, typename Exec::memory_space>& dtable) {
    using A = accumulate_t<T>;
    const Region region("SparseAttn::embedding_backward");
    const int n = static_cast<int>(dx.extent(1));
    const auto vocabulary = static_cast<std::int32_t>(dtable.extent(0));
    const std::int64_t count = static_cast<std::int64_t>(tokens.extent(0));
    constexpr int width = column_block<Exec>, parts = host_accessible<Exec> ? 1 : 64;
    const int blocks = (n + width - 1) / width;
    Kokkos::parallel_for(
        "SparseAttn::embedding_backward", Kokkos::RangePolicy<Exec>(exec, 0, blocks * parts), KOKKOS_LAMBDA(int item) {
            const int part = item / blocks, begin = item % blocks * width;
            const int end = begin + width < n ? begin + width : n;
            for (std::int64_t t = 0; t < count; ++t) {
                const std::int32_t token = tokens(t);
                if (token < 0 || token >= vocabulary || token % parts != part) continue;
                const T* from = &dx(t, begin);
                A* to = &dtable(token, begin);
                for (int i = 0; i < end - begin; ++i) to[i] += A(from[i]);
            }
        });
}

template <class Exec>
void check_batch(const Exec& exec, const Span1<const std::int32_t, typename Exec::memory_space>& tokens,
                 const Span1<const std::int32_t, typename Exec::memory_space>& labels, int vocab_size,
                 const Span1<std::int32_t, typename Exec::memory_space>& first_bad) {
    using Mem = typename Exec::memory_space;
    const auto count = static_cast<std::int32_t>(tokens.extent(0));
    const Kokkos::View<std::int32_t, Mem, Unmanaged> result(first_bad.data());
    Kokkos::parallel_reduce(
        "SparseAttn::check_batch", Kokkos::RangePolicy<Exec>(exec, 0, count + 1),
        KOKKOS_LAMBDA(std::int32_t t, std::int32_t & first) {
            const bool fine =
                t < count && tokens(t) >= 0 && tokens(t) < vocab_size && labels(t) >= -1 && labels(t) < vocab_size;
            if (!fine && t < first) first = t;
        },
        Kokkos::Min<std::int32_t, Mem>(result));
}

#define SPARSEATTN_EMBEDDING(EXEC, T)                                                                            \
    template void embedding(const EXEC&, const Span1<const std::int32_t, typename EXEC::memory_space>&,          \
                            const Span2<const T, typename EXEC::memory_space>&,                                  \
                            const Span2<T, typename EXEC::memory_space>&);                                       \
    template void embedding_backward(const EXEC&, const Span1<const std::int32_t, typename EXEC::memory_space>&, \
                                     const Span2<const T, typename EXEC::memory_space>&,                         \
                                     const Span2<accumulate_t<T>, typename EXEC::memory_space>&);
SPARSEATTN_EMBEDDING(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_EMBEDDING(Kokkos::DefaultExecutionSpace, bf16)
SPARSEATTN_EMBEDDING(Kokkos::DefaultExecutionSpace, double)
template void check_batch(const Kokkos::DefaultExecutionSpace&,
                          const Span1<const std::int32_t, typename Kokkos::DefaultExecutionSpace::memory_space>&,
                          const Span1<const std::int32_t, typename Kokkos::DefaultExecutionSpace::memory_space>&, int,
                          const Span1<std::int32_t, typename Kokkos::DefaultExecutionSpace::memory_space>&);

}  // namespace sparseattn::detail
