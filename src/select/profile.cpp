#include "sparseattn/select/detail/profile.hpp"

#include <cmath>

#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/select/detail/long_rows.hpp"
#include "sparseattn/select/detail/row_softmax.hpp"

namespace sparseattn::detail {
namespace {

template <class Mem>
struct TailSoftmax {
    Span2<float, Mem> scores;  // [rows, keys]
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t rows = static_cast<std::int32_t>(scores.extent(0));
        const std::int32_t keys = static_cast<std::int32_t>(scores.extent(1)), r = team.league_rank();
        row_softmax(team, &scores(r, 0), keys - rows + r + 1, keys);
    }
};

// Sums for `width` neighbouring columns and `width` neighbouring distances: on the host a cache line at a time.
template <class Mem, int width>
struct TailSums {
    Span2<const float, Mem> scores;
    Span1<float, Mem> vertical, slash;

    KOKKOS_INLINE_FUNCTION void operator()(std::int32_t item) const {
        const std::int32_t rows = static_cast<std::int32_t>(scores.extent(0));
        const std::int32_t keys = static_cast<std::int32_t>(scores.extent(1)), first = item * width;
        const std::int32_t count = first + width < keys ? width : keys - first;
        float column[width] = {}, diagonal[width] = {};
        for (std::int32_t r = 0; r < rows; ++r) {
            const float* score = &scores(r, 0);
            for (std::int32_t l = 0; l < count; ++l) column[l] += score[first + l];
            const std::int32_t start = keys - rows + r - first;  // column of distance `first`
            const std::int32_t reach = start + 1 < count ? start + 1 : count;
            for (std::int32_t l = 0; l < reach; ++l) diagonal[l] += score[start - l];
        }
        for (std::int32_t l = 0; l < count; ++l) {
            vertical(first + l) = column[l];
            slash(first + l) = diagonal[l];
        }
    }
};

}  // namespace

template <class Exec, class T>
void tail_profile(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                  const TokenRange& range, std::int32_t rows,
                  const Span2<const float, typename Exec::memory_space>& keys,
                  const TailBuffers<typename Exec::memory_space>& buffers,
                  const Span1<float, typename Exec::memory_space>& vertical,
                  const Span1<float, typename Exec::memory_space>& slash) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::tail_profile");
    const Span2<float, Mem> queries(buffers.queries.data(), rows, keys.extent(1));
    pack_rows<Exec, T>(exec, query, range, 1, range.tokens - rows, false, queries);
    const Span2<float, Mem> scores(buffers.scores.data(), rows, keys.extent(0));
    gemm<Exec, float>(exec, Op::none, Op::transpose,
                      static_cast<float>(1 / std::sqrt(static_cast<double>(keys.extent(1)))), queries, keys, 0.0F,
                      scores);
    for_long_rows("SparseAttn::tail_profile.softmax", exec, rows, TailSoftmax<Mem>{scores});
    constexpr int width = host_accessible<Mem> ? 16 : 1;
    const int items = (static_cast<int>(keys.extent(0)) + width - 1) / width;
    Kokkos::parallel_for("SparseAttn::tail_profile.sums",
                         Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int32_t>>(exec, 0, items),
                         TailSums<Mem, width>{scores, vertical, slash});
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                    \
    template void tail_profile(const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const TokenRange&,   \
                               std::int32_t, const Span2<const float, EXEC::memory_space>&,                     \
                               const TailBuffers<EXEC::memory_space>&, const Span1<float, EXEC::memory_space>&, \
                               const Span1<float, EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
