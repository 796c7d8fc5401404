// All three operations are one: every list of the result is the union of a set of source lists.
#include "sparseattn/layout/combine.hpp"

#include <algorithm>
#include <map>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/layout/detail/csr.hpp"

namespace sparseattn {
namespace {

// One list of one layout, by pointers into it.
struct Source {
    const std::int64_t* offsets;  // of the list's first row
    const std::int32_t* columns;
    const std::int64_t* key_offsets;  // null without single keys
    const std::int32_t* keys;
};

// The first entry of [begin, end) above `after`, or `none`.
struct Ascending {
    static constexpr std::int32_t none = 0x7fffffff;
    const std::int32_t* begin;
    const std::int32_t* end;

    KOKKOS_INLINE_FUNCTION std::int32_t above(std::int32_t after) const {
        const std::int32_t* low = begin;
        for (std::int64_t count = end - begin; count > 0;) {
            const std::int64_t half = count / 2;
            if (low[half] <= after) {
                low += half + 1;
                count -= half + 1;
            } else {
                count = half;
            }
        }
        return low == end ? none : *low;
    }
};

template <class Mem>
struct UnionRows {
    Array1<const Source, Mem> sources;             // grouped by list of the result
    Array1<const std::int32_t, Mem> source_begin;  // [lists + 1]
    std::int32_t rows, block;

    KOKKOS_INLINE_FUNCTION Ascending columns(std::int32_t source, std::int32_t row) const {
        const Source& from = sources(source);
        return {from.columns + from.offsets[row], from.columns + from.offsets[row + 1]};
    }
    KOKKOS_INLINE_FUNCTION Ascending keys(std::int32_t source, std::int32_t row) const {
        const Source& from = sources(source);
        if (from.key_offsets == nullptr) return {nullptr, nullptr};
        return {from.keys + from.key_offsets[row], from.keys + from.key_offsets[row + 1]};
    }
    template <bool single>
    KOKKOS_INLINE_FUNCTION std::int32_t next(std::int32_t list, std::int32_t row, std::int32_t after) const {
        std::int32_t lowest = Ascending::none;
        for (std::int32_t source = source_begin(list); source < source_begin(list + 1); ++source) {
            const std::int32_t entry = (single ? keys(source, row) : columns(source, row)).above(after);
            lowest = entry < lowest ? entry : lowest;
        }
        return lowest;
    }
    // Calls visit for the blocks of a (list, row) of the result, or for its single keys; ascending.
    template <bool single, class Visit>
    KOKKOS_INLINE_FUNCTION void each(std::int64_t list_row, const Visit& visit) const {
        const std::int32_t list = static_cast<std::int32_t>(list_row / rows);
        const std::int32_t row = static_cast<std::int32_t>(list_row % rows);
        for (std::int32_t entry = next<single>(list, row, -1); entry != Ascending::none;
             entry = next<single>(list, row, entry)) {
            if (single && next<false>(list, row, entry / block - 1) == entry / block) continue;
            visit(entry);
        }
    }
};

template <class Mem>
struct UnionBlocks {
    UnionRows<Mem> rows;
    template <class Visit>
    KOKKOS_INLINE_FUNCTION void each(std::int64_t list_row, const Visit& visit) const {
        rows.template each<false>(list_row, visit);
    }
};
template <class Mem>
struct UnionKeys {
    UnionRows<Mem> rows;
    template <class Visit>
    KOKKOS_INLINE_FUNCTION void each(std::int64_t list_row, const Visit& visit) const {
        rows.template each<true>(list_row, visit);
    }
};

template <class Mem>
void check(const LayoutList<Mem>& layouts, const BlockGrid<Mem>& grid) {
    const BlockLayout<Mem>& first = *layouts[0];
    for (std::size_t i = 0; i < layouts.size(); ++i) {
        const std::string name = concat("layouts[", i, "]");
        const BlockLayout<Mem>& layout = *layouts[i];
        require(layout.grid.block == first.grid.block, name + ".grid.block", layout.grid.block,
                concat(first.grid.block, " as in layouts[0]"));
        require(layout.causal == first.causal, name + ".causal", layout.causal,
                concat(first.causal, " as in layouts[0]"));
        require(layout.heads == first.heads, name + ".heads", layout.heads, concat(first.heads, " as in layouts[0]"));
        require(layout.grid.rows == grid.rows, name + ".grid.rows", layout.grid.rows,
                concat(grid.rows, ", the query blocks of the sequences"));
        require(layout.grid.key_blocks == grid.key_blocks, name + ".grid.key_blocks", layout.grid.key_blocks,
                concat(grid.key_blocks, ", the key blocks of the sequences"));
    }
}

// A head of a layout, as the union's input.
struct Pick {
    int layout, head;
};

// Head h of the result is the union of the heads picks[h].
template <class Exec>
BlockLayout<typename Exec::memory_space> build_union(const Exec& exec,
                                                     const Sequences<typename Exec::memory_space>& sequences,
                                                     const LayoutList<typename Exec::memory_space>& layouts,
                                                     const std::vector<std::vector<Pick>>& picks) {
    using Mem = typename Exec::memory_space;
    BlockLayout<Mem> result;
    result.grid = make_block_grid(exec, sequences, layouts[0]->grid.block);
    check(layouts, result.grid);
    result.causal = layouts[0]->causal;
    result.heads = static_cast<int>(picks.size());

    std::vector<std::vector<std::int32_t>> head_lists;
    std::vector<std::vector<Window>> head_windows;
    for (const BlockLayout<Mem>* layout : layouts) {
        head_lists.push_back(detail::to_host(exec, layout->head_list));
        head_windows.push_back(detail::to_host(exec, layout->windows));
    }
    std::map<std::vector<std::pair<int, int>>, std::int32_t> numbers;  // set of (layout, list) -> list of the result
    std::vector<std::int32_t> head_list, source_begin{0};
    std::vector<Window> windows;
    std::vector<Source> sources;
    for (const std::vector<Pick>& heads : picks) {
        std::vector<std::pair<int, int>> set;
        Window window = head_windows[heads[0].layout][heads[0].head];
        for (const Pick& pick : heads) {
            set.emplace_back(pick.layout, head_lists[pick.layout][pick.head]);
            if (!(head_windows[pick.layout][pick.head] == window)) window = {};
        }
        std::sort(set.begin(), set.end());
        set.erase(std::unique(set.begin(), set.end()), set.end());
        const auto [place, fresh] = numbers.try_emplace(set, static_cast<std::int32_t>(numbers.size()));
        head_list.push_back(place->second);
        windows.push_back(window);
        if (!fresh) continue;
        for (const auto& [layout, list] : set) {
            const BlockLayout<Mem>& from = *layouts[layout];
            const std::int64_t first = static_cast<std::int64_t>(list) * result.grid.rows;
            sources.push_back({from.offsets.data() + first, from.columns.data(),
                               from.has_single_keys() ? from.key_offsets.data() + first : nullptr, from.keys.data()});
        }
        source_begin.push_back(static_cast<std::int32_t>(sources.size()));
    }
    result.lists = static_cast<int>(numbers.size());
    result.head_list = detail::to_device(exec, "SparseAttn::layout.head_list", head_list);
    result.windows = detail::to_device(exec, "SparseAttn::layout.windows", windows);

    const UnionRows<Mem> rows{detail::to_device(exec, "SparseAttn::combine.sources", sources),
                              detail::to_device(exec, "SparseAttn::combine.source_begin", source_begin),
                              result.grid.rows, result.grid.block};
    const std::int64_t list_rows = static_cast<std::int64_t>(result.lists) * result.grid.rows;
    detail::build_csr(exec, "SparseAttn::layout.columns", list_rows, UnionBlocks<Mem>{rows}, {}, result.offsets,
                      result.columns);
    if (std::any_of(sources.begin(), sources.end(), [](const Source& s) { return s.key_offsets != nullptr; })) {
        detail::build_csr(exec, "SparseAttn::layout.keys", list_rows, UnionKeys<Mem>{rows}, {}, result.key_offsets,
                          result.keys);
    }
    return result;
}

}  // namespace

template <class Exec>
BlockLayout<typename Exec::memory_space> combine(const Exec& exec,
                                                 const Sequences<typename Exec::memory_space>& sequences,
                                                 const LayoutList<typename Exec::memory_space>& layouts,
                                                 const std::vector<int>& pick) {
    const Region region("SparseAttn::combine");
    require(!layouts.empty(), "layouts.size()", 0, "at least 1");
    require(static_cast<int>(pick.size()) == layouts[0]->heads, "pick.size()", pick.size(),
            concat(layouts[0]->heads, ", the number of heads"));
    std::vector<std::vector<Pick>> picks;
    for (std::size_t h = 0; h < pick.size(); ++h) {
        require(pick[h] >= 0 && pick[h] < static_cast<int>(layouts.size()), concat("pick[", h, "]"), pick[h],
                concat("a layout, 0..", layouts.size() - 1));
        picks.push_back({{pick[h], static_cast<int>(h)}});
    }
    return build_union(exec, sequences, layouts, picks);
}

template <class Exec>
BlockLayout<typename Exec::memory_space> unite(const Exec& exec,
                                               const Sequences<typename Exec::memory_space>& sequences,
                                               const LayoutList<typename Exec::memory_space>& layouts) {
    const Region region("SparseAttn::unite");
    require(!layouts.empty(), "layouts.size()", 0, "at least 1");
    std::vector<std::vector<Pick>> picks(layouts[0]->heads);
    for (int h = 0; h < layouts[0]->heads; ++h) {
        for (std::size_t i = 0; i < layouts.size(); ++i) picks[h].push_back({static_cast<int>(i), h});
    }
    return build_union(exec, sequences, layouts, picks);
}

template <class Exec>
BlockLayout<typename Exec::memory_space> share_in_groups(const Exec& exec,
                                                         const Sequences<typename Exec::memory_space>& sequences,
                                                         const BlockLayout<typename Exec::memory_space>& layout,
                                                         int group) {
    const Region region("SparseAttn::share_in_groups");
    require(group >= 1 && layout.heads % group == 0, "group", group, concat("a divisor of the heads, ", layout.heads));
    std::vector<std::vector<Pick>> picks(layout.heads);
    for (int h = 0; h < layout.heads; ++h) {
        for (int member = 0; member < group; ++member) picks[h].push_back({0, h / group * group + member});
    }
    return build_union(exec, sequences, {&layout}, picks);
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                                  \
    template BlockLayout<EXEC::memory_space> combine(const EXEC&, const Sequences<EXEC::memory_space>&,               \
                                                     const LayoutList<EXEC::memory_space>&, const std::vector<int>&); \
    template BlockLayout<EXEC::memory_space> unite(const EXEC&, const Sequences<EXEC::memory_space>&,                 \
                                                   const LayoutList<EXEC::memory_space>&);                            \
    template BlockLayout<EXEC::memory_space> share_in_groups(const EXEC&, const Sequences<EXEC::memory_space>&,       \
                                                             const BlockLayout<EXEC::memory_space>&, int);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
