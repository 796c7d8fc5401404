#include "sparseattn/layout/builders.hpp"

#include <algorithm>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/heads.hpp"

namespace sparseattn {
namespace {

// The key blocks a row visits: [0, sink_end) and [local_begin, end), with sink_end <= local_begin.
struct RowBlocks {
    std::int32_t sink_end;
    std::int32_t local_begin;
    std::int32_t end;
    KOKKOS_INLINE_FUNCTION std::int32_t count() const { return sink_end + end - local_begin; }
};

// What a mode's row visits, from the row's number in its sequence. Plain data: copied into kernels.
struct RowRule {
    Window window;  // the token window that the blocks must cover (unbounded: dense)
    std::int32_t dense_tail = 0;
    std::int32_t sink_blocks = 0;  // block granularity when local_blocks > 0
    std::int32_t local_blocks = 0;

    KOKKOS_INLINE_FUNCTION RowBlocks operator()(std::int32_t row, std::int32_t block, std::int32_t queries,
                                                std::int32_t keys, bool causal) const {
        const TokenRule rule{queries, keys, causal, window};
        const std::int32_t first = row * block;
        const std::int32_t last = (first + block < queries ? first + block : queries) - 1;
        RowBlocks blocks{};
        blocks.end = (rule.key_end(last) + block - 1) / block;
        if (last >= queries - dense_tail) return blocks;  // [0, 0) and [0, end)
        if (local_blocks > 0) {
            blocks.local_begin = blocks.end > local_blocks ? blocks.end - local_blocks : 0;
            blocks.sink_end = sink_blocks;
        } else {
            blocks.local_begin = rule.local_begin(first) / block;
            blocks.sink_end = (window.sink + block - 1) / block;
        }
        if (blocks.local_begin > blocks.end) blocks.local_begin = blocks.end;
        if (blocks.sink_end > blocks.local_begin) blocks.sink_end = blocks.local_begin;
        return blocks;
    }
};

void check(const std::vector<HeadMode>& modes) {
    require(!modes.empty(), "modes.size()", 0, "at least 1");
    for (std::size_t h = 0; h < modes.size(); ++h) {
        if (!modes[h].streaming) continue;
        require(modes[h].local >= 1, concat("modes[", h, "].local"), modes[h].local, "at least 1");
        require(modes[h].sink >= 0, concat("modes[", h, "].sink"), modes[h].sink, "at least 0");
        require(modes[h].dense_tail >= 0, concat("modes[", h, "].dense_tail"), modes[h].dense_tail, "at least 0");
    }
}

RowRule row_rule(const HeadMode& mode, int block) {
    RowRule rule;
    if (!mode.streaming) return rule;
    rule.dense_tail = mode.dense_tail;
    if (mode.granularity == Granularity::block) {
        rule.sink_blocks = (mode.sink + block - 1) / block;
        rule.local_blocks = (mode.local + block - 1) / block;
    } else {
        rule.window = {mode.sink, mode.local, mode.dense_tail};
    }
    return rule;
}

// What a list holds, counted on the host so that nothing waits for a device's count.
template <class Mem>
std::int64_t count_entries(const RowRule& rule, const Sequences<Mem>& sequences, int block, bool causal) {
    std::int64_t entries = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        const int queries = sequences.query_length(s), keys = sequences.key_length(s);
        for (int row = 0; row * block < queries; ++row) entries += rule(row, block, queries, keys, causal).count();
    }
    return entries;
}

// The rows of one list.
template <class Mem>
struct ListRows {
    RowRule rule;
    std::int32_t block;
    bool causal;
    Array1<const std::int32_t, Mem> row_begin, row_sequence, query_offsets, key_offsets;

    KOKKOS_INLINE_FUNCTION RowBlocks operator()(std::int32_t row) const {
        const std::int32_t s = row_sequence(row);
        return rule(row - row_begin(s), block, query_offsets(s + 1) - query_offsets(s),
                    key_offsets(s + 1) - key_offsets(s), causal);
    }
};

// Writes one list, whose entries begin at `first`, and the offsets of its rows and of what follows.
template <class Exec>
void write_list(const Exec& exec, const ListRows<typename Exec::memory_space>& visits, std::int32_t rows,
                std::int64_t first, const Span1<std::int64_t, typename Exec::memory_space>& offsets,
                const Array1<std::int32_t, typename Exec::memory_space>& columns) {
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int32_t>>;
    Kokkos::parallel_scan(
        "SparseAttn::build_layout.count", Policy(exec, 0, rows + 1),
        KOKKOS_LAMBDA(std::int32_t row, std::int64_t & sum, bool last) {
            if (last) offsets(row) = first + sum;
            if (row < rows) sum += visits(row).count();
        });
    Kokkos::parallel_for(
        "SparseAttn::build_layout.fill", Policy(exec, 0, rows), KOKKOS_LAMBDA(std::int32_t row) {
            const RowBlocks blocks = visits(row);
            std::int64_t at = offsets(row);
            for (std::int32_t j = 0; j < blocks.sink_end; ++j) columns(at++) = j;
            for (std::int32_t j = blocks.local_begin; j < blocks.end; ++j) columns(at++) = j;
        });
}

// A row is the unit of block granularity, so only a token window can end its dense tail inside a row.
Window head_window(const HeadMode& mode) {
    if (!mode.streaming || mode.granularity == Granularity::block) return {};
    return {mode.sink, mode.local, mode.dense_tail};
}

}  // namespace

template <class Exec>
void build_layout(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, int block, bool causal,
                  const std::vector<HeadMode>& modes, BlockLayout<typename Exec::memory_space>& layout) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::build_layout");
    check(modes);

    std::vector<HeadMode> distinct;
    std::vector<std::int32_t> head_list;
    std::vector<Window> windows;
    for (const HeadMode& mode : modes) {
        const auto found = std::find(distinct.begin(), distinct.end(), mode);
        head_list.push_back(static_cast<std::int32_t>(found - distinct.begin()));
        windows.push_back(head_window(mode));
        if (found == distinct.end()) distinct.push_back(mode);
    }
    make_block_grid(exec, sequences, block, layout.grid);
    layout.causal = causal;
    layout.single_keys = false;
    detail::set_heads(exec, std::move(head_list), std::move(windows), layout);

    std::vector<std::int64_t> first{0};  // entry of each list
    for (const HeadMode& mode : distinct) {
        first.push_back(first.back() + count_entries(row_rule(mode, block), sequences, block, causal));
    }
    const BlockGrid<Mem>& grid = layout.grid;
    const std::size_t rows = static_cast<std::size_t>(grid.rows);
    detail::make_room(exec, "SparseAttn::layout.offsets", static_cast<std::int64_t>(distinct.size() * rows) + 1,
                      layout.offsets);
    detail::make_room(exec, "SparseAttn::layout.columns", first.back(), layout.columns);
    for (std::size_t list = 0; list < distinct.size(); ++list) {
        const ListRows<Mem> visits{row_rule(distinct[list], block),
                                   block,
                                   causal,
                                   grid.row_begin,
                                   grid.row_sequence,
                                   grid.query_offsets,
                                   grid.key_offsets};
        write_list(exec, visits, grid.rows, first[list],
                   Span1<std::int64_t, Mem>(layout.offsets.data() + list * rows, rows + 1), layout.columns);
    }
}

template <class Exec>
BlockLayout<typename Exec::memory_space> build_layout(const Exec& exec,
                                                      const Sequences<typename Exec::memory_space>& sequences,
                                                      int block, bool causal, const std::vector<HeadMode>& modes) {
    BlockLayout<typename Exec::memory_space> layout;
    build_layout(exec, sequences, block, causal, modes, layout);
    return layout;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                              \
    template void build_layout(const EXEC&, const Sequences<EXEC::memory_space>&, int, bool,                      \
                               const std::vector<HeadMode>&, BlockLayout<EXEC::memory_space>&);                   \
    template BlockLayout<EXEC::memory_space> build_layout(const EXEC&, const Sequences<EXEC::memory_space>&, int, \
                                                          bool, const std::vector<HeadMode>&);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
