#include "sparseattn/core/elementary.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/model/detail/layers.hpp"
#include "sparseattn/model/detail/rows.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
void cross_entropy(const Exec& exec, const Span2<const T, typename Exec::memory_space>& logits,
                   const Span1<const std::int32_t, typename Exec::memory_space>& labels,
                   const Span1<T, typename Exec::memory_space>& losses) {
    const Region region("SparseAttn::cross_entropy");
    const int n = static_cast<int>(logits.extent(1));
    for_each_row(
        exec, "SparseAttn::cross_entropy", static_cast<std::int64_t>(logits.extent(0)),
        KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t r) {
            const T* row = &logits(r, 0);
            const std::int32_t label = labels(r);
            T loss = 0;
            if (label >= 0 && label < n) {
                const T largest = max_columns<T>(team, n, [=](int i) { return row[i]; });
                const T sum = sum_columns<T>(team, n, [=](int i) { return exponential(row[i] - largest); });
                loss = math::log(sum) + largest - row[label];
            }
            losses(r) = loss;
        });
}

template <class Exec, class T>
void cross_entropy_and_gradient(const Exec& exec, const Span2<accumulate_t<T>, typename Exec::memory_space>& logits,
                                const Span1<const std::int32_t, typename Exec::memory_space>& labels,
                                accumulate_t<T> scale,
                                const Span1<accumulate_t<T>, typename Exec::memory_space>& losses,
                                const Span2<T, typename Exec::memory_space>& gradient) {
    using A = accumulate_t<T>;
    const Region region("SparseAttn::cross_entropy_and_gradient");
    const int n = static_cast<int>(logits.extent(1));
    for_each_row(
        exec, "SparseAttn::cross_entropy_and_gradient", static_cast<std::int64_t>(logits.extent(0)),
        KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t r) {
            A* row = &logits(r, 0);
            T* to = &gradient(r, 0);
            const std::int32_t label = labels(r);
            if (label < 0 || label >= n) {
                losses(r) = A(0);
                for_columns(team, n, [=](int i) { to[i] = T(A(0)); });
                return;
            }
            const A largest = max_columns<A>(team, n, [=](int i) { return row[i]; });
            const A wanted = row[label];
            for_columns(team, n, [=](int i) { row[i] = exponential(row[i] - largest); });
            const A sum = sum_columns<A>(team, n, [=](int i) { return row[i]; });
            losses(r) = math::log(sum) + largest - wanted;
            const A factor = scale / sum;
            for_columns(team, n, [=](int i) { to[i] = T(row[i] * factor - (i == label ? scale : A(0))); });
        });
}

template <class Exec, class T>
void sum_losses(const Exec& exec, const Span1<const T, typename Exec::memory_space>& losses,
                const Span1<double, typename Exec::memory_space>& sums) {
    const std::int64_t count = static_cast<std::int64_t>(losses.extent(0));
    Kokkos::parallel_for(
        "SparseAttn::sum_losses",
        Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, 0, loss_chunks(count)),
        KOKKOS_LAMBDA(std::int64_t chunk) {
            const std::int64_t end = (chunk + 1) * loss_chunk < count ? (chunk + 1) * loss_chunk : count;
            double sum = 0;
            for (std::int64_t i = chunk * loss_chunk; i < end; ++i) sum += static_cast<double>(losses(i));
            sums(chunk) = sum;
        });
}

#define SPARSEATTN_CROSS_ENTROPY(EXEC, A)                                                        \
    template void cross_entropy(const EXEC&, const Span2<const A, typename EXEC::memory_space>&, \
                                const Span1<const std::int32_t, typename EXEC::memory_space>&,   \
                                const Span1<A, typename EXEC::memory_space>&);                   \
    template void sum_losses(const EXEC&, const Span1<const A, typename EXEC::memory_space>&,    \
                             const Span1<double, typename EXEC::memory_space>&);
#define SPARSEATTN_CROSS_ENTROPY_GRADIENT(EXEC, T)                                      \
    template void cross_entropy_and_gradient(                                           \
        const EXEC&, const Span2<accumulate_t<T>, typename EXEC::memory_space>&,        \
        const Span1<const std::int32_t, typename EXEC::memory_space>&, accumulate_t<T>, \
        const Span1<accumulate_t<T>, typename EXEC::memory_space>&, const Span2<T, typename EXEC::memory_space>&);
SPARSEATTN_CROSS_ENTROPY(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_CROSS_ENTROPY(Kokkos::DefaultExecutionSpace, double)
SPARSEATTN_CROSS_ENTROPY_GRADIENT(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_CROSS_ENTROPY_GRADIENT(Kokkos::DefaultExecutionSpace, bf16)
SPARSEATTN_CROSS_ENTROPY_GRADIENT(Kokkos::DefaultExecutionSpace, double)

}  // namespace sparseattn::detail
