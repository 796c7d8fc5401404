#include "sparseattn/core/profiling.hpp"
#include "sparseattn/model/detail/layers.hpp"
#include "sparseattn/model/detail/rows.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
void rotary_table(const Exec& exec, const Span1<const std::int32_t, typename Exec::memory_space>& positions,
                  double theta, const Span2<T, typename Exec::memory_space>& cosine,
                  const Span2<T, typename Exec::memory_space>& sine) {
    const int half = static_cast<int>(cosine.extent(1));
    const double log_theta = math::log(theta);
    for_each_row(
        exec, "SparseAttn::rotary_table", static_cast<std::int64_t>(positions.extent(0)),
        KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t t) {
            const double position = positions(t);
            T* c = &cosine(t, 0);
            T* s = &sine(t, 0);
            for_columns(team, half, [=](int i) {
                const double angle = position * math::exp(-log_theta * i / half);
                c[i] = static_cast<T>(math::cos(angle));
                s[i] = static_cast<T>(math::sin(angle));
            });
        });
}

template <class Exec, class T>
void rotary(const Exec& exec, Rotation rotation,
            const Span2<const accumulate_t<T>, typename Exec::memory_space>& cosine,
            const Span2<const accumulate_t<T>, typename Exec::memory_space>& sine,
            const HeadsView<T, typename Exec::memory_space>& values) {
    using A = accumulate_t<T>;
    const Region region("SparseAttn::rotary");
    const int heads = static_cast<int>(values.extent(1)), half = static_cast<int>(values.extent(2)) / 2;
    const A sign = rotation == Rotation::forward ? A(1) : A(-1);
    for_each_row(
        exec, "SparseAttn::rotary", static_cast<std::int64_t>(values.extent(0)),
        KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t t) {
            const A* c = &cosine(t, 0);
            const A* s = &sine(t, 0);
            for (int h = 0; h < heads; ++h) {
                T* low = &values(t, h, 0);
                T* high = low + half;
                for_columns(team, half, [=](int i) {
                    const A a = low[i], b = high[i], sine_i = sign * s[i];
                    low[i] = T(a * c[i] - b * sine_i);
                    high[i] = T(b * c[i] + a * sine_i);
                });
            }
        });
}

#define SPARSEATTN_ROTARY_TABLE(EXEC, T)                                                                           \
    template void rotary_table(const EXEC&, const Span1<const std::int32_t, typename EXEC::memory_space>&, double, \
                               const Span2<T, typename EXEC::memory_space>&,                                       \
                               const Span2<T, typename EXEC::memory_space>&);
#define SPARSEATTN_ROTARY(EXEC, T)                                                                  \
    template void rotary<EXEC, T>(const EXEC&, Rotation,                                            \
                                  const Span2<const accumulate_t<T>, typename EXEC::memory_space>&, \
                                  const Span2<const accumulate_t<T>, typename EXEC::memory_space>&, \
                                  const HeadsView<T, typename EXEC::memory_space>&);
SPARSEATTN_ROTARY_TABLE(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_ROTARY_TABLE(Kokkos::DefaultExecutionSpace, double)
SPARSEATTN_ROTARY(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_ROTARY(Kokkos::DefaultExecutionSpace, bf16)
SPARSEATTN_ROTARY(Kokkos::DefaultExecutionSpace, double)

}  // namespace sparseattn::detail
