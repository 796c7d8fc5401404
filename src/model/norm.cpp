#include <string>

#include "sparseattn/core/profiling.hpp"
#include "sparseattn/model/detail/layers.hpp"
#include "sparseattn/model/detail/rows.hpp"

namespace sparseattn::detail {
namespace {

template <class T, class Team, class A = accumulate_t<T>>
KOKKOS_INLINE_FUNCTION A inverse_rms(const Team& team, const T* x, int n, A eps) {
    const A squares = sum_columns<A>(team, n, [=](int i) { return A(x[i]) * A(x[i]); });
    return A(1) / math::sqrt(squares / A(n) + eps);
}

// One row: x, its gradients and the weight gradient's partial sums.
template <NormBackward mode, class T, class Team, class A = accumulate_t<T>>
KOKKOS_INLINE_FUNCTION void backward_row(const Team& team, const T* x, const T* weight, int n, A eps, T* gradient,
                                         T* dx, A* partial) {
    const A r = inverse_rms(team, x, n, eps);
    const A dot = sum_columns<A>(team, n, [=](int i) { return A(weight[i]) * A(gradient[i]) * A(x[i]); });
    const A along = dot * r * r * r / A(n);
    for_columns(team, n, [=](int i) {
        const A normed = A(x[i]) * r, dy = gradient[i], w = weight[i];
        const A through = r * w * dy - along * A(x[i]);
        partial[i] += dy * normed;
        if constexpr (mode == NormBackward::in_place) {
            gradient[i] = T(through);
        } else {
            gradient[i] = T(w * normed);
            dx[i] = T(mode == NormBackward::add_to_dx ? A(dx[i]) + through : through);
        }
    });
}

// Threads of a team on a device: a row's sums meet at barriers, which small teams pass while others work.
constexpr int row_threads = 128;

template <NormBackward mode, class Exec, class T>
void backward_rows(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& x,
                   const Span1<const T, typename Exec::memory_space>& weight, double eps,
                   const HeadsView<T, typename Exec::memory_space>& gradient,
                   const Span2<T, typename Exec::memory_space>& dx,
                   const Span1<accumulate_t<T>, typename Exec::memory_space>& partial) {
    using A = accumulate_t<T>;
    const std::int64_t tokens = static_cast<std::int64_t>(x.extent(0));
    const int heads = static_cast<int>(x.extent(1)), n = static_cast<int>(x.extent(2));
    for_each_row(
        exec, "SparseAttn::rms_norm_backward", norm_chunks(tokens),
        KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t chunk) {
            A* sums = partial.data() + chunk * n;
            for_columns(team, n, [=](int i) { sums[i] = A(0); });
            const std::int64_t end = (chunk + 1) * norm_chunk < tokens ? (chunk + 1) * norm_chunk : tokens;
            for (std::int64_t t = chunk * norm_chunk; t < end; ++t) {
                for (int h = 0; h < heads; ++h) {
                    T* const dx_row = mode == NormBackward::in_place ? nullptr : &dx(t, 0);
                    backward_row<mode>(team, &x(t, h, 0), weight.data(), n, static_cast<A>(eps), &gradient(t, h, 0),
                                       dx_row, sums);
                }
            }
        },
        row_threads);
}

// sums(i) += partial(chunk, i) of all chunks, in a fixed order.
template <class Exec, class A>
void add_chunks(const Exec& exec, std::int64_t chunks, const Span1<A, typename Exec::memory_space>& partial,
                const Span1<A, typename Exec::memory_space>& sums) {
    const int n = static_cast<int>(sums.extent(0));
    const std::string label = "SparseAttn::rms_norm_backward.weight";
    if constexpr (host_accessible<Exec>) {
        constexpr int width = column_block<Exec>;
        Kokkos::parallel_for(label, Kokkos::RangePolicy<Exec>(exec, 0, (n + width - 1) / width), [=](int block) {
            const int begin = block * width, end = begin + width < n ? begin + width : n;
            for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
                for (int i = begin; i < end; ++i) sums(i) += partial(chunk * n + i);
            }
        });
    } else {
        // A team has 32 columns side by side and 16 walks through the chunks.
        constexpr int columns = 32, walks = 16;
        using Policy = Kokkos::TeamPolicy<Exec>;
        Kokkos::parallel_for(
            label,
            Policy(exec, (n + columns - 1) / columns, columns * walks)
                .set_scratch_size(0, Kokkos::PerTeam(static_cast<int>(columns * walks * sizeof(A)))),
            KOKKOS_LAMBDA(const typename Policy::member_type& team) {
                A* const walked = static_cast<A*>(team.team_shmem().get_shmem(columns * walks * sizeof(A)));
                const int column = team.team_rank() % columns, walk = team.team_rank() / columns;
                const int i = team.league_rank() * columns + column;
                A sum = 0;
                for (std::int64_t chunk = walk; i < n && chunk < chunks; chunk += walks) sum += partial(chunk * n + i);
                walked[walk * columns + column] = sum;
                team.team_barrier();
                if (walk > 0 || i >= n) return;
                for (int w = 1; w < walks; ++w) sum += walked[w * columns + column];
                sums(i) += sum;
            });
    }
}

}  // namespace

template <class Exec, class T>
void rms_norm(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& x,
              const Span1<const T, typename Exec::memory_space>& weight, double eps,
              const HeadsView<T, typename Exec::memory_space>& y, const Span2<T, typename Exec::memory_space>& copy) {
    using A = accumulate_t<T>;
    const Region region("SparseAttn::rms_norm");
    const std::int64_t tokens = static_cast<std::int64_t>(x.extent(0));
    const int heads = static_cast<int>(x.extent(1)), n = static_cast<int>(x.extent(2));
    const bool copies = copy.extent(0) > 0;
    for_each_row(
        exec, "SparseAttn::rms_norm", tokens * heads, KOKKOS_LAMBDA(const RowTeam<Exec>& team, std::int64_t row) {
            const std::int64_t t = row / heads;
            const int h = static_cast<int>(row % heads);
            const T* from = &x(t, h, 0);
            const T* scale = weight.data();
            T* to = &y(t, h, 0);
            const A r = inverse_rms(team, from, n, static_cast<A>(eps));
            if (copies) {
                T* second = &copy(t, 0);
                for_columns(team, n, [=](int i) {
                    to[i] = T(A(scale[i]) * (A(from[i]) * r));
                    second[i] = from[i];
                });
            } else {
                for_columns(team, n, [=](int i) { to[i] = T(A(scale[i]) * (A(from[i]) * r)); });
            }
        });
}

template <class Exec, class T>
void rms_norm_backward(const Exec& exec, NormBackward mode, const HeadsView<const T, typename Exec::memory_space>& x,
                       const Span1<const T, typename Exec::memory_space>& weight, double eps,
                       const HeadsView<T, typename Exec::memory_space>& gradient,
                       const Span2<T, typename Exec::memory_space>& dx,
                       const Span1<accumulate_t<T>, typename Exec::memory_space>& partial,
                       const Span1<accumulate_t<T>, typename Exec::memory_space>& dweight) {
    const Region region("SparseAttn::rms_norm_backward");
    switch (mode) {
        case NormBackward::in_place:
            backward_rows<NormBackward::in_place>(exec, x, weight, eps, gradient, dx, partial);
            break;
        case NormBackward::into_dx:
            backward_rows<NormBackward::into_dx>(exec, x, weight, eps, gradient, dx, partial);
            break;
        case NormBackward::add_to_dx:
            backward_rows<NormBackward::add_to_dx>(exec, x, weight, eps, gradient, dx, partial);
            break;
    }
    add_chunks<Exec>(exec, norm_chunks(static_cast<std::int64_t>(x.extent(0))), partial, dweight);
}

#define SPARSEATTN_NORM(EXEC, T)                                                                                      \
    template void rms_norm(const EXEC&, const HeadsView<const T, typename EXEC::memory_space>&,                       \
                           const Span1<const T, typename EXEC::memory_space>&, double,                                \
                           const HeadsView<T, typename EXEC::memory_space>&,                                          \
                           const Span2<T, typename EXEC::memory_space>&);                                             \
    template void rms_norm_backward(                                                                                  \
        const EXEC&, NormBackward, const HeadsView<const T, typename EXEC::memory_space>&,                            \
        const Span1<const T, typename EXEC::memory_space>&, double, const HeadsView<T, typename EXEC::memory_space>&, \
        const Span2<T, typename EXEC::memory_space>&, const Span1<accumulate_t<T>, typename EXEC::memory_space>&,     \
        const Span1<accumulate_t<T>, typename EXEC::memory_space>&);
SPARSEATTN_NORM(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_NORM(Kokkos::DefaultExecutionSpace, bf16)
SPARSEATTN_NORM(Kokkos::DefaultExecutionSpace, double)

}  // namespace sparseattn::detail
