// Layouts seen from the host: copies, building by hand, validation and statistics. None of it is on a hot path.
#include <algorithm>
#include <numeric>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/layout/detail/heads.hpp"

namespace sparseattn {
namespace {

// One row of one list: where it lies and what is in it.
struct HostRow {
    int list, sequence, row;  // row counts inside the sequence
    TokenRule rule;           // without window
    const std::int32_t* columns;
    std::int64_t column_count;
    const std::int32_t* keys;
    std::int64_t key_count;
    [[nodiscard]] std::string name() const {
        return concat("layout list ", list, ", sequence ", sequence, ", query block ", row);
    }
};

template <class Mem, class Visit>
void for_each_row(const Sequences<Mem>& sequences, int block, bool causal, int lists, const HostLists& host,
                  const Visit& visit) {
    std::int64_t at = 0;
    for (int list = 0; list < lists; ++list) {
        for (int s = 0; s < sequences.count(); ++s) {
            const TokenRule rule{sequences.query_length(s), sequences.key_length(s), causal, {}};
            for (int row = 0; row * block < rule.queries; ++row, ++at) {
                const bool singles = !host.keys.empty();
                visit(HostRow{list, s, row, rule, host.columns.data() + host.offsets[at],
                              host.offsets[at + 1] - host.offsets[at],
                              singles ? host.keys.data() + host.key_offsets[at] : nullptr,
                              singles ? host.key_offsets[at + 1] - host.key_offsets[at] : 0});
            }
        }
    }
}

void check_csr(const std::string& name, const std::vector<std::int64_t>& offsets, std::size_t rows,
               std::size_t entries) {
    require(offsets.size() == rows + 1, name + ".size()", offsets.size(), concat("lists * rows + 1 = ", rows + 1));
    require(offsets.front() == 0, name + "[0]", offsets.front(), "0");
    for (std::size_t i = 0; i < rows; ++i) {
        require(offsets[i] <= offsets[i + 1], concat(name, "[", i + 1, "]"), offsets[i + 1],
                concat("at least ", offsets[i]));
    }
    require(offsets.back() == static_cast<std::int64_t>(entries), name + ".back()", offsets.back(),
            concat("the number of entries, ", entries));
}

void check_row(const HostRow& row, int block) {
    const int last = std::min((row.row + 1) * block, row.rule.queries) - 1;
    const int key_end = std::min(row.rule.key_end(last), row.rule.keys);
    const int blocks = (key_end + block - 1) / block;
    for (std::int64_t e = 0; e < row.column_count; ++e) {
        const int column = row.columns[e];
        require(column >= 0 && column < blocks, concat(row.name(), ", entry ", e), column,
                concat("a visible key block, 0..", blocks - 1));
        require(e == 0 || column > row.columns[e - 1], concat(row.name(), ", entry ", e), column,
                concat("above the entry before it, ", e == 0 ? 0 : row.columns[e - 1]));
    }
    for (std::int64_t e = 0; e < row.key_count; ++e) {
        const int key = row.keys[e];
        require(key >= 0 && key < key_end, concat(row.name(), ", single key ", e), key,
                concat("a visible key, 0..", key_end - 1));
        require(e == 0 || key > row.keys[e - 1], concat(row.name(), ", single key ", e), key,
                concat("above the key before it, ", e == 0 ? 0 : row.keys[e - 1]));
        require(!std::binary_search(row.columns, row.columns + row.column_count, key / block),
                concat(row.name(), ", single key ", e), key, "outside the listed key blocks");
    }
}

template <class Mem>
void check_lists(const Sequences<Mem>& sequences, const BlockLayout<Mem>& layout, const HostLists& host) {
    const std::vector<std::int32_t>& head_list = layout.host_head_list;
    const std::size_t rows = static_cast<std::size_t>(layout.lists) * layout.grid.rows;
    require(layout.heads >= 1, "layout.heads", layout.heads, "at least 1");
    require(layout.host_windows.size() == head_list.size(), "layout.windows.size()", layout.host_windows.size(),
            concat("layout.heads = ", layout.heads));
    for (std::size_t h = 0; h < head_list.size(); ++h) {
        require(head_list[h] >= 0 && head_list[h] < layout.lists, concat("layout.head_list[", h, "]"), head_list[h],
                concat("0..", layout.lists - 1));
    }
    check_csr("layout.offsets", host.offsets, rows, host.columns.size());
    if (!host.keys.empty()) check_csr("layout.key_offsets", host.key_offsets, rows, host.keys.size());
    for_each_row(sequences, layout.grid.block, layout.causal, layout.lists, host,
                 [&](const HostRow& row) { check_row(row, layout.grid.block); });
}

// Pairs of one row that a head with `rule` keeps.
std::int64_t kept_pairs(const HostRow& row, const TokenRule& rule, int block) {
    std::int64_t kept = 0;
    const int end = std::min((row.row + 1) * block, rule.queries);
    for (int i = row.row * block; i < end; ++i) {
        const int key_end = std::min(rule.key_end(i), rule.keys);
        const int local = rule.local_begin(i);
        for (std::int64_t e = 0; e < row.column_count; ++e) {
            const int j0 = row.columns[e] * block;
            const int j1 = std::min(j0 + block, key_end);
            const int sink_end = std::min({j1, rule.window.sink, local});
            kept += std::max(0, sink_end - j0) + std::max(0, j1 - std::max(j0, local));
        }
        for (std::int64_t e = 0; e < row.key_count; ++e) kept += rule.visible(i, row.keys[e]) ? 1 : 0;
    }
    return kept;
}

}  // namespace

template <class Mem>
int heads_sharing(const BlockLayout<Mem>& layout) {
    const std::vector<std::int32_t>& lists = layout.host_head_list;
    int heads = static_cast<int>(lists.size());
    for (std::size_t h = 1; h < lists.size(); ++h) {
        if (lists[h] != lists[h - 1]) heads = std::gcd(heads, static_cast<int>(h));
    }
    return heads;
}

template <class Exec>
HostLists copy_lists(const Exec& exec, const BlockLayout<typename Exec::memory_space>& layout) {
    HostLists lists;
    const auto first = [&](const auto& all, std::int64_t count) {
        const std::int64_t room = all.extent(0);
        return detail::to_host(exec, Kokkos::subview(all, std::pair<std::int64_t, std::int64_t>(
                                                              0, count < 0 || count > room ? room : count)));
    };
    const auto entries = [&](const auto& offsets, const auto& all) {  // those that the offsets speak of
        return first(all, offsets.empty() ? 0 : offsets.back());
    };
    const std::int64_t ends = static_cast<std::int64_t>(layout.lists) * layout.grid.rows + 1;
    lists.offsets = first(layout.offsets, ends);
    lists.columns = entries(lists.offsets, layout.columns);
    if (!layout.has_single_keys()) return lists;
    lists.key_offsets = first(layout.key_offsets, ends);
    lists.keys = entries(lists.key_offsets, layout.keys);
    return lists;
}

template <class Exec>
void validate(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
              const BlockLayout<typename Exec::memory_space>& layout) {
    require(static_cast<int>(layout.host_head_list.size()) == layout.heads, "layout.head_list.size()",
            layout.host_head_list.size(), concat("layout.heads = ", layout.heads));
    const auto grid = make_block_grid(exec, sequences, layout.grid.block);
    require(grid.rows == layout.grid.rows, "layout.grid.rows", layout.grid.rows,
            concat(grid.rows, ", the query blocks of the sequences"));
    require(grid.key_blocks == layout.grid.key_blocks, "layout.grid.key_blocks", layout.grid.key_blocks,
            concat(grid.key_blocks, ", the key blocks of the sequences"));
    check_lists(sequences, layout, copy_lists(exec, layout));
}

template <class Exec>
BlockLayout<typename Exec::memory_space> layout_from_lists(const Exec& exec,
                                                           const Sequences<typename Exec::memory_space>& sequences,
                                                           int block, bool causal, const HostLists& lists,
                                                           const std::vector<std::int32_t>& head_list,
                                                           const std::vector<Window>& windows) {
    BlockLayout<typename Exec::memory_space> layout;
    layout.grid = make_block_grid(exec, sequences, block);
    layout.causal = causal;
    layout.single_keys = !lists.keys.empty();
    detail::set_heads(exec, head_list, windows, layout);
    check_lists(sequences, layout, lists);
    layout.offsets = detail::to_device(exec, "SparseAttn::layout.offsets", lists.offsets);
    layout.columns = detail::to_device(exec, "SparseAttn::layout.columns", lists.columns);
    layout.key_offsets = detail::to_device(exec, "SparseAttn::layout.key_offsets", lists.key_offsets);
    layout.keys = detail::to_device(exec, "SparseAttn::layout.keys", lists.keys);
    return layout;
}

template <class Exec>
LayoutStatistics statistics(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
                            const BlockLayout<typename Exec::memory_space>& layout) {
    const Region region("SparseAttn::statistics");
    const HostLists host = copy_lists(exec, layout);
    const std::vector<std::int32_t>& head_list = layout.host_head_list;
    const std::vector<Window>& windows = layout.host_windows;

    double all = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        const TokenRule rule{sequences.query_length(s), sequences.key_length(s), layout.causal, {}};
        for (int i = 0; i < rule.queries; ++i) all += std::min(rule.key_end(i), rule.keys);
    }
    LayoutStatistics result;
    result.all_pairs = all * layout.heads;
    std::vector<double> kept(layout.heads, 0.0);
    for_each_row(sequences, layout.grid.block, layout.causal, layout.lists, host, [&](const HostRow& row) {
        // Heads that share list and window keep the same pairs: count them once.
        int counted = -1;
        std::int64_t pairs = 0;
        for (int h = 0; h < layout.heads; ++h) {
            if (head_list[h] != row.list) continue;
            if (counted < 0 || !(windows[h] == windows[counted])) {
                TokenRule rule = row.rule;
                rule.window = windows[h];
                pairs = kept_pairs(row, rule, layout.grid.block);
                counted = h;
            }
            kept[h] += static_cast<double>(pairs);
            result.visited_blocks += row.column_count;
            result.single_keys += row.key_count;
        }
    });
    for (int h = 0; h < layout.heads; ++h) {
        result.kept_pairs += kept[h];
        result.head_density.push_back(all > 0 ? kept[h] / all : 0.0);
    }
    return result;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                                   \
    template HostLists copy_lists(const EXEC&, const BlockLayout<EXEC::memory_space>&);                                \
    template void validate(const EXEC&, const Sequences<EXEC::memory_space>&, const BlockLayout<EXEC::memory_space>&); \
    template LayoutStatistics statistics(const EXEC&, const Sequences<EXEC::memory_space>&,                            \
                                         const BlockLayout<EXEC::memory_space>&);                                      \
    template BlockLayout<EXEC::memory_space> layout_from_lists(                                                        \
        const EXEC&, const Sequences<EXEC::memory_space>&, int, bool, const HostLists&,                                \
        const std::vector<std::int32_t>&, const std::vector<Window>&);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)
#define SPARSEATTN_INSTANTIATE_MEMORY(MEM) template int heads_sharing(const BlockLayout<MEM>&);
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE_MEMORY)

}  // namespace sparseattn
