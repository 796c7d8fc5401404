#include "sparseattn/select/detail/pack.hpp"

#include "sparseattn/core/instantiate.hpp"

namespace sparseattn::detail {
namespace {

template <class T, class Mem>
struct PackRows {
    HeadsView<const T, Mem> x;
    TokenRange range;
    std::int32_t stride, first_row;
    bool reversed;
    std::int32_t head_dim;
    Span2<float, Mem> out;

    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t row = team.league_rank();
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, stride), [&](std::int32_t s) {
            const std::int32_t token = (first_row + row) * stride + (reversed ? stride - 1 - s : s);
            float* to = &out(row, s * head_dim);
            if (token < range.tokens) {
                const T* from = &x(range.first + token, range.head, 0);
                Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, head_dim),
                                     [=](std::int32_t c) { to[c] = static_cast<float>(from[c]); });
            } else {
                Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, head_dim), [=](std::int32_t c) { to[c] = 0; });
            }
        });
    }
};

template <class T, class Mem>
struct MeanBlocks {
    HeadsView<const T, Mem> x;
    TokenRange range;
    std::int32_t block, head_dim;
    float scale;
    Span2<float, Mem> out;

    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t J = team.league_rank(), begin = J * block;
        const std::int32_t end = begin + block < range.tokens ? begin + block : range.tokens;
        const float factor = scale / static_cast<float>(end - begin);
        float* sum = &out(J, 0);
        if constexpr (!host_accessible<Mem>) {
            // The sums of the host's loop in registers, so that the loads of many tokens are under way at once.
            const std::int64_t stride = static_cast<std::int64_t>(x.stride(0));
            const T* first = &x(range.first + begin, range.head, 0);
            Kokkos::parallel_for(Kokkos::TeamVectorRange(team, head_dim), [=](std::int32_t c) {
                float total = 0;
                for (std::int32_t t = 0; t < end - begin; ++t) total += static_cast<float>(first[t * stride + c]);
                sum[c] = total * factor;
            });
            return;
        }
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, head_dim), [=](std::int32_t c) { sum[c] = 0; });
        // Each lane keeps its own channels through all tokens, so that no barrier is needed in between.
        for (std::int32_t t = begin; t < end; ++t) {
            const T* token = &x(range.first + t, range.head, 0);
            Kokkos::parallel_for(Kokkos::TeamVectorRange(team, head_dim),
                                 [=](std::int32_t c) { sum[c] += static_cast<float>(token[c]); });
        }
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, head_dim), [=](std::int32_t c) { sum[c] *= factor; });
    }
};

}  // namespace

template <class Exec, class T>
void pack_rows(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& x, const TokenRange& range,
               std::int32_t stride, std::int32_t first_row, bool reversed,
               const Span2<float, typename Exec::memory_space>& out) {
    const PackRows<T, typename Exec::memory_space> pack{
        x, range, stride, first_row, reversed, static_cast<std::int32_t>(x.extent(2)), out};
    Kokkos::parallel_for("SparseAttn::pack_rows",
                         Kokkos::TeamPolicy<Exec>(exec, static_cast<int>(out.extent(0)), Kokkos::AUTO), pack);
}

template <class Exec, class T>
void mean_blocks(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& x, const TokenRange& range,
                 std::int32_t block, float scale, const Span2<float, typename Exec::memory_space>& out) {
    const MeanBlocks<T, typename Exec::memory_space> mean{x,     range, block, static_cast<std::int32_t>(x.extent(2)),
                                                          scale, out};
    Kokkos::parallel_for("SparseAttn::mean_blocks",
                         Kokkos::TeamPolicy<Exec>(exec, static_cast<int>(out.extent(0)), Kokkos::AUTO), mean);
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                 \
    template void pack_rows(const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const TokenRange&,   \
                            std::int32_t, std::int32_t, bool, const Span2<float, EXEC::memory_space>&);      \
    template void mean_blocks(const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const TokenRange&, \
                              std::int32_t, float, const Span2<float, EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
