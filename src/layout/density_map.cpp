#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/layout/picture.hpp"

namespace sparseattn {
namespace {

// Counts pairs per cell, one row of cells after the other. An interval of keys adds in constant time: whole cells go
// into `steps_`, differences between neighbours, until the row is done.
class CellCounts {
  public:
    CellCounts(int cell, int columns) : cell_(cell), steps_(columns + 1, 0), partial_(columns, 0) {}

    void add(std::int64_t begin, std::int64_t end) {  // keys of the batch
        if (begin >= end) return;
        const std::int64_t first = begin / cell_, last = (end - 1) / cell_;
        if (first == last) {
            partial_[first] += end - begin;
            return;
        }
        partial_[first] += (first + 1) * cell_ - begin;
        partial_[last] += end - last * cell_;
        steps_[first + 1] += cell_;
        steps_[last] -= cell_;
    }
    // The counts of the row; starts the next one.
    std::vector<std::int64_t> take() {
        std::vector<std::int64_t> counts = partial_;
        std::int64_t whole = 0;
        for (std::size_t c = 0; c < counts.size(); ++c) counts[c] += whole += steps_[c];
        std::fill(steps_.begin(), steps_.end(), 0);
        std::fill(partial_.begin(), partial_.end(), 0);
        return counts;
    }

  private:
    std::int64_t cell_;
    std::vector<std::int64_t> steps_, partial_;
};

struct Lists {
    HostLists lists;
    std::vector<std::int32_t> head_list;
    std::vector<Window> windows;
};

// The keys that query i (of its sequence) visits through the entries of its row, cut to those it sees.
void add_query(const Lists& host, std::int64_t row, int block, const TokenRule& rule, int i, std::int64_t key_begin,
               CellCounts& counts) {
    const int key_end = std::min(rule.key_end(i), rule.keys), local = rule.local_begin(i);
    const HostLists& lists = host.lists;
    const auto entries_end = lists.columns.begin() + lists.offsets[row + 1];
    for (auto entry = lists.columns.begin() + lists.offsets[row]; entry != entries_end;) {
        auto after = entry + 1;
        while (after != entries_end && *after == after[-1] + 1) ++after;
        const int begin = *entry * block, end = std::min((after[-1] + 1) * block, key_end);
        counts.add(key_begin + begin, key_begin + std::min({end, rule.window.sink, local}));
        counts.add(key_begin + std::max(begin, local), key_begin + end);
        entry = after;
    }
    if (lists.keys.empty()) return;
    for (std::int64_t e = lists.key_offsets[row]; e < lists.key_offsets[row + 1]; ++e) {
        const int key = lists.keys[e];
        if (rule.visible(i, key)) counts.add(key_begin + key, key_begin + key + 1);
    }
}

template <class Mem>
DensityMap make_map(const Sequences<Mem>& sequences, const BlockLayout<Mem>& layout, const Lists& host, int head,
                    int cell) {
    DensityMap map;
    map.head = head;
    map.cell = cell;
    map.queries = sequences.queries();
    map.keys = sequences.keys();
    map.rows = (map.queries + cell - 1) / cell;
    map.columns = (map.keys + cell - 1) / cell;
    map.share.reserve(static_cast<std::size_t>(map.rows) * map.columns);
    CellCounts kept(cell, map.columns), all(cell, map.columns);
    std::int64_t kept_pairs = 0, all_pairs = 0;
    const auto end_row = [&] {
        const auto some = kept.take(), most = all.take();
        for (std::size_t c = 0; c < most.size(); ++c) {
            map.share.push_back(most[c] == 0 ? -1 : static_cast<float>(some[c]) / static_cast<float>(most[c]));
            kept_pairs += some[c];
            all_pairs += most[c];
        }
    };
    std::int64_t row = static_cast<std::int64_t>(host.head_list[head]) * layout.grid.rows;
    for (int s = 0; s < sequences.count(); ++s) {
        const int query_begin = sequences.query_offsets()[s], key_begin = sequences.key_offsets()[s];
        if (s > 0) {
            map.query_borders.push_back(query_begin);
            map.key_borders.push_back(key_begin);
        }
        const TokenRule rule{sequences.query_length(s), sequences.key_length(s), layout.causal, host.windows[head]};
        for (int i = 0; i < rule.queries; ++i) {
            add_query(host, row + i / layout.grid.block, layout.grid.block, rule, i, key_begin, kept);
            all.add(key_begin, key_begin + std::min(rule.key_end(i), rule.keys));
            if ((query_begin + i + 1) % cell == 0 || query_begin + i + 1 == map.queries) end_row();
        }
        row += (rule.queries + layout.grid.block - 1) / layout.grid.block;
    }
    map.density = all_pairs > 0 ? static_cast<double>(kept_pairs) / static_cast<double>(all_pairs) : 0;
    return map;
}

}  // namespace

template <class Exec>
std::vector<DensityMap> density_maps(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
                                     const BlockLayout<typename Exec::memory_space>& layout,
                                     const std::vector<int>& heads, int most_cells) {
    const Region region("SparseAttn::density_maps");
    require(most_cells >= 1 && most_cells <= 1024, "most_cells", most_cells, "in [1, 1024]");
    for (const int head : heads) {
        require(head >= 0 && head < layout.heads, "head", head, concat("in [0, ", layout.heads, ")"));
    }
    std::int64_t cell = std::max(1, layout.grid.block / 16);
    while (cell * most_cells < std::max(sequences.queries(), sequences.keys())) cell *= 2;
    const Lists host{copy_lists(exec, layout), layout.host_head_list, layout.host_windows};
    std::vector<DensityMap> maps;
    for (const int head : heads) maps.push_back(make_map(sequences, layout, host, head, static_cast<int>(cell)));
    return maps;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                               \
    template std::vector<DensityMap> density_maps(const EXEC&, const Sequences<EXEC::memory_space>&,               \
                                                  const BlockLayout<EXEC::memory_space>&, const std::vector<int>&, \
                                                  int);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
