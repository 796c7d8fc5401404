#include "sparseattn/layout/detail/transpose.hpp"

#include <algorithm>

#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn {
namespace detail {
namespace {

template <class Exec>
using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;

// offsets(i + 1) becomes where segment i begins; offsets(0) is 0.
template <class Exec>
void scan_counts(const Exec& exec, const std::string& label, std::int64_t segments,
                 const CsrTranspose<typename Exec::memory_space>& to) {
    const auto ends = to.offsets;
    Kokkos::parallel_scan(
        label + ".scan", Policy<Exec>(exec, 0, segments), KOKKOS_LAMBDA(std::int64_t i, std::int64_t & sum, bool last) {
            const std::int64_t count = ends(i + 1);
            if (last) ends(i + 1) = sum;
            sum += count;
        });
}

template <class Exec>
void clear(const Exec& exec, const std::string& label, std::int64_t segments,
           const CsrTranspose<typename Exec::memory_space>& to) {
    const auto ends = to.offsets;
    Kokkos::parallel_for(
        label + ".zero", Policy<Exec>(exec, 0, segments + 1), KOKKOS_LAMBDA(std::int64_t i) { ends(i) = 0; });
}

// A row's entries counted in, or written to, their segments, in any order.
template <class Mem, bool fill>
struct ScatterRows {
    CsrRows<Mem> from;
    CsrTranspose<Mem> to;
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int64_t list = team.league_rank() / from.rows;
        const std::int32_t row = team.league_rank() % from.rows, s = from.row_sequence(row);
        const std::int64_t base = list * from.columns + from.column_begin(s) + 1;
        const std::int64_t begin = from.offsets(team.league_rank()), end = from.offsets(team.league_rank() + 1);
        const std::int32_t own = row - from.row_begin(s);
        auto* ends = reinterpret_cast<unsigned long long*>(to.offsets.data());
        const auto rows = to.rows;
        const auto entries = from.entries;
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, begin, end), [=](std::int64_t e) {
            const unsigned long long at = Kokkos::atomic_fetch_add(ends + base + entries(e), 1ULL);
            if (fill) rows(static_cast<std::int64_t>(at)) = own;
        });
    }
};

// A segment's rows into ascending order: each sets its bit, then the bits are read off.
template <class Mem>
struct OrderSegment {
    using Words = Span1<std::uint32_t, Mem>;
    CsrTranspose<Mem> to;
    std::int32_t word_count;
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        using Scratch = Kokkos::View<std::uint32_t*, typename Team::scratch_memory_space, Unmanaged>;
        const Scratch words(team.team_scratch(0), word_count);
        const std::int64_t begin = to.offsets(team.league_rank()), end = to.offsets(team.league_rank() + 1);
        if (end - begin < 2) return;  // the same for the whole team
        const auto rows = to.rows;
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, word_count), [=](std::int32_t w) { words(w) = 0; });
        team.team_barrier();
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, begin, end), [=](std::int64_t e) {
            const std::int32_t row = rows(e);
            Kokkos::atomic_fetch_or(&words(row / 32), 1U << (row % 32));
        });
        team.team_barrier();
        Kokkos::parallel_scan(Kokkos::TeamThreadRange(team, word_count),
                              [=](std::int32_t w, std::int64_t& before, bool last) {
                                  std::int64_t at = begin + before;
                                  std::int32_t row = w * 32;
                                  for (std::uint32_t word = words(w); word != 0; word >>= 1, ++row) {
                                      if ((word & 1U) == 0) continue;
                                      if (last) rows(at++) = row;
                                      ++before;
                                  }
                              });
    }
};

}  // namespace

template <class Exec>
void transpose_in_order(const Exec& exec, const std::string& label, const CsrRows<typename Exec::memory_space>& from,
                        const CsrTranspose<typename Exec::memory_space>& to) {
    const std::int32_t sequences = from.sequences;
    const std::int64_t items = static_cast<std::int64_t>(from.lists) * sequences;
    const std::int64_t segments = static_cast<std::int64_t>(from.lists) * from.columns;
    const auto ends = to.offsets;
    const auto transposed = to.rows;
    clear(exec, label, segments, to);
    Kokkos::parallel_for(
        label + ".count", Policy<Exec>(exec, 0, items), KOKKOS_LAMBDA(std::int64_t item) {
            const std::int64_t list = item / sequences;
            const std::int32_t s = static_cast<std::int32_t>(item % sequences);
            const std::int64_t base = list * from.columns + from.column_begin(s);
            const std::int64_t end = from.offsets(list * from.rows + from.row_begin(s + 1));
            for (std::int64_t e = from.offsets(list * from.rows + from.row_begin(s)); e < end; ++e) {
                ++ends(base + from.entries(e) + 1);
            }
        });
    scan_counts(exec, label, segments, to);
    // After this each start has moved to its segment's end.
    Kokkos::parallel_for(
        label + ".fill", Policy<Exec>(exec, 0, items), KOKKOS_LAMBDA(std::int64_t item) {
            const std::int64_t list = item / sequences;
            const std::int32_t s = static_cast<std::int32_t>(item % sequences);
            const std::int64_t base = list * from.columns + from.column_begin(s);
            for (std::int32_t row = from.row_begin(s); row < from.row_begin(s + 1); ++row) {
                const std::int64_t end = from.offsets(list * from.rows + row + 1);
                for (std::int64_t e = from.offsets(list * from.rows + row); e < end; ++e) {
                    transposed(ends(base + from.entries(e) + 1)++) = row - from.row_begin(s);
                }
            }
        });
}

template <class Exec>
void transpose_by_bits(const Exec& exec, const std::string& label, std::int32_t longest,
                       const CsrRows<typename Exec::memory_space>& from,
                       const CsrTranspose<typename Exec::memory_space>& to) {
    using Mem = typename Exec::memory_space;
    using Teams = Kokkos::TeamPolicy<Exec>;
    const int list_rows = from.lists * from.rows;
    const int segments = from.lists * from.columns;
    clear(exec, label, segments, to);
    if (list_rows > 0) {
        Kokkos::parallel_for(label + ".count", Teams(exec, list_rows, Kokkos::AUTO), ScatterRows<Mem, false>{from, to});
    }
    scan_counts(exec, label, segments, to);
    if (list_rows == 0 || segments == 0) return;
    Kokkos::parallel_for(label + ".fill", Teams(exec, list_rows, Kokkos::AUTO), ScatterRows<Mem, true>{from, to});
    const std::int32_t words = (longest + 31) / 32;
    const auto scratch = Kokkos::PerTeam(static_cast<int>((words + 2) * sizeof(std::uint32_t)));
    Kokkos::parallel_for(label + ".order", Teams(exec, segments, Kokkos::AUTO).set_scratch_size(0, scratch),
                         OrderSegment<Mem>{to, words});
}

}  // namespace detail

namespace {

template <class Exec>
void transpose_csr(const Exec& exec, const std::string& label, std::int32_t longest,
                   const detail::CsrRows<typename Exec::memory_space>& from,
                   Array1<std::int64_t, typename Exec::memory_space>& offsets,
                   Array1<std::int32_t, typename Exec::memory_space>& rows) {
    detail::make_room(exec, label + ".offsets", static_cast<std::int64_t>(from.lists) * from.columns + 1, offsets);
    detail::make_room(exec, label + ".rows", static_cast<std::int64_t>(from.entries.extent(0)), rows);
    const detail::CsrTranspose<typename Exec::memory_space> to{offsets, rows};
    if constexpr (host_accessible<Exec>) {
        detail::transpose_in_order(exec, label, from, to);
    } else {
        detail::transpose_by_bits(exec, label, longest, from, to);
    }
}

}  // namespace

template <class Exec>
void transpose(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
               const BlockLayout<typename Exec::memory_space>& layout,
               TransposedLayout<typename Exec::memory_space>& result) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::transpose");
    const BlockGrid<Mem>& grid = layout.grid;
    std::int32_t longest = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        longest = std::max(longest, (sequences.query_length(s) + grid.block - 1) / grid.block);
    }
    transpose_csr(exec, "SparseAttn::transpose", longest,
                  detail::CsrRows<Mem>{grid.sequences, layout.lists, grid.rows, grid.key_blocks, grid.row_begin,
                                       grid.row_sequence, grid.key_block_begin, layout.offsets, layout.columns},
                  result.offsets, result.rows);
    if (!layout.has_single_keys()) return;
    transpose_csr(
        exec, "SparseAttn::transpose_keys", longest,
        detail::CsrRows<Mem>{grid.sequences, layout.lists, grid.rows, sequences.keys(), grid.row_begin,
                             grid.row_sequence, sequences.device_key_offsets(), layout.key_offsets, layout.keys},
        result.key_offsets, result.key_rows);
}

template <class Exec>
TransposedLayout<typename Exec::memory_space> transpose(const Exec& exec,
                                                        const Sequences<typename Exec::memory_space>& sequences,
                                                        const BlockLayout<typename Exec::memory_space>& layout) {
    TransposedLayout<typename Exec::memory_space> result;
    transpose(exec, sequences, layout, result);
    return result;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                                   \
    template void detail::transpose_in_order(const EXEC&, const std::string&,                                          \
                                             const detail::CsrRows<EXEC::memory_space>&,                               \
                                             const detail::CsrTranspose<EXEC::memory_space>&);                         \
    template void detail::transpose_by_bits(const EXEC&, const std::string&, std::int32_t,                             \
                                            const detail::CsrRows<EXEC::memory_space>&,                                \
                                            const detail::CsrTranspose<EXEC::memory_space>&);                          \
    template void transpose(const EXEC&, const Sequences<EXEC::memory_space>&, const BlockLayout<EXEC::memory_space>&, \
                            TransposedLayout<EXEC::memory_space>&);                                                    \
    template TransposedLayout<EXEC::memory_space> transpose(const EXEC&, const Sequences<EXEC::memory_space>&,         \
                                                            const BlockLayout<EXEC::memory_space>&);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
