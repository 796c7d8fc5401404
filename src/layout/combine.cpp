// All three operations are one: every list of the result is the union of a set of source lists.
#include "sparseattn/layout/combine.hpp"

#include <algorithm>
#include <map>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/csr.hpp"
#include "sparseattn/layout/detail/heads.hpp"

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
    Span1<const Source, Mem> sources;             // grouped by list of the result
    Span1<const std::int32_t, Mem> source_begin;  // [lists + 1]
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
        if (source_begin(list + 1) - source_begin(list) == 1) {  // a copy
            const std::int32_t source = source_begin(list);
            const Ascending all = single ? keys(source, row) : columns(source, row);
            for (const std::int32_t* entry = all.begin; entry != all.end; ++entry) visit(*entry);
            return;
        }
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

// What the result is made of, known on the host.
struct Union {
    std::vector<std::int32_t> head_list;
    std::vector<Window> windows;
    std::vector<std::vector<std::pair<int, int>>> lists;  // (layout, list) of each source
};

// Head h of the result is the union of the heads picks[h].
template <class Mem>
Union plan_union(const LayoutList<Mem>& layouts, const std::vector<std::vector<Pick>>& picks) {
    Union plan;
    std::map<std::vector<std::pair<int, int>>, std::int32_t> numbers;  // sources -> list of the result
    for (const std::vector<Pick>& heads : picks) {
        std::vector<std::pair<int, int>> set;
        Window window = layouts[heads[0].layout]->host_windows[heads[0].head];
        for (const Pick& pick : heads) {
            set.emplace_back(pick.layout, layouts[pick.layout]->host_head_list[pick.head]);
            if (!(layouts[pick.layout]->host_windows[pick.head] == window)) window = {};
        }
        std::sort(set.begin(), set.end());
        set.erase(std::unique(set.begin(), set.end()), set.end());
        const auto [place, fresh] = numbers.try_emplace(set, static_cast<std::int32_t>(numbers.size()));
        plan.head_list.push_back(place->second);
        plan.windows.push_back(window);
        if (fresh) plan.lists.push_back(std::move(set));
    }
    return plan;
}

// Room of the sources' arrays, each counted as often as the most used of its lists is.
template <class Mem>
struct Room {
    std::int64_t columns = 0, keys = 0;

    Room(const LayoutList<Mem>& layouts, const Union& plan) {
        for (std::size_t i = 0; i < layouts.size(); ++i) {
            std::vector<std::int64_t> uses(static_cast<std::size_t>(layouts[i]->lists) + 1, 0);  // never empty
            for (const auto& list : plan.lists) {
                for (const auto& [layout, number] : list) {
                    if (layout == static_cast<int>(i)) ++uses[number];
                }
            }
            const std::int64_t most = *std::max_element(uses.begin(), uses.end());
            columns += most * static_cast<std::int64_t>(layouts[i]->columns.extent(0));
            if (layouts[i]->has_single_keys()) keys += most * static_cast<std::int64_t>(layouts[i]->keys.extent(0));
        }
    }
};

// Blocks that a list may visit at most.
template <class Mem>
std::int64_t most_blocks(const Sequences<Mem>& sequences, int block, bool causal) {
    std::int64_t blocks = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        const TokenRule rule{sequences.query_length(s), sequences.key_length(s), causal, {}};
        for (int first = 0; first < rule.queries; first += block) {
            blocks += (rule.key_end(std::min(first + block, rule.queries) - 1) + block - 1) / block;
        }
    }
    return blocks;
}

template <class Exec>
void build_union(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
                 const LayoutList<typename Exec::memory_space>& layouts, const std::vector<std::vector<Pick>>& picks,
                 Workspace<typename Exec::memory_space>& workspace, BlockLayout<typename Exec::memory_space>& result) {
    using Mem = typename Exec::memory_space;
    make_block_grid(exec, sequences, layouts[0]->grid.block, result.grid);
    check(layouts, result.grid);
    const Union plan = plan_union(layouts, picks);
    result.causal = layouts[0]->causal;
    detail::set_heads(exec, plan.head_list, plan.windows, result);

    std::vector<Source> sources;
    std::vector<std::int32_t> source_begin{0};
    result.single_keys = false;
    for (const auto& list : plan.lists) {
        for (const auto& [layout, number] : list) {
            const BlockLayout<Mem>& from = *layouts[layout];
            const std::int64_t first = static_cast<std::int64_t>(number) * result.grid.rows;
            const bool keys = from.has_single_keys();
            sources.push_back({from.offsets.data() + first, from.columns.data(),
                               keys ? from.key_offsets.data() + first : nullptr, keys ? from.keys.data() : nullptr});
            result.single_keys = result.single_keys || keys;
        }
        source_begin.push_back(static_cast<std::int32_t>(sources.size()));
    }
    typename Workspace<Mem>::Frame frame(workspace);
    const auto device_sources = frame.template take<Source>(sources.size());
    const auto device_begin = frame.template take<std::int32_t>(source_begin.size());
    detail::put_values(exec, "SparseAttn::combine.sources", sources, device_sources.data());
    detail::put_values(exec, "SparseAttn::combine.source_begin", source_begin, device_begin.data());

    const UnionRows<Mem> rows{device_sources, device_begin, result.grid.rows, result.grid.block};
    const std::int64_t list_rows = static_cast<std::int64_t>(result.lists) * result.grid.rows;
    const Room<Mem> room(layouts, plan);
    const std::int64_t all = result.lists * most_blocks(sequences, result.grid.block, result.causal);
    detail::build_csr(exec, "SparseAttn::layout.columns", list_rows, UnionBlocks<Mem>{rows},
                      std::min(room.columns, all), result.offsets, result.columns);
    if (result.single_keys) {
        detail::build_csr(exec, "SparseAttn::layout.keys", list_rows, UnionKeys<Mem>{rows}, room.keys,
                          result.key_offsets, result.keys);
    }
}

// The form that returns: write(workspace, result), and waits, for the workspace goes.
template <class Exec, class Write>
BlockLayout<typename Exec::memory_space> made(const Exec& exec, const Write& write) {
    using Mem = typename Exec::memory_space;
    Workspace<Mem> workspace;
    BlockLayout<Mem> result;
    write(workspace, result);
    fence(exec, "SparseAttn::combine");
    return result;
}

}  // namespace

template <class Exec>
void combine(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
             const LayoutList<typename Exec::memory_space>& layouts, const std::vector<int>& pick,
             Workspace<typename Exec::memory_space>& workspace, BlockLayout<typename Exec::memory_space>& result) {
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
    build_union(exec, sequences, layouts, picks, workspace, result);
}

template <class Exec>
void unite(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
           const LayoutList<typename Exec::memory_space>& layouts, Workspace<typename Exec::memory_space>& workspace,
           BlockLayout<typename Exec::memory_space>& result) {
    const Region region("SparseAttn::unite");
    require(!layouts.empty(), "layouts.size()", 0, "at least 1");
    std::vector<std::vector<Pick>> picks(layouts[0]->heads);
    for (int h = 0; h < layouts[0]->heads; ++h) {
        for (std::size_t i = 0; i < layouts.size(); ++i) picks[h].push_back({static_cast<int>(i), h});
    }
    build_union(exec, sequences, layouts, picks, workspace, result);
}

template <class Exec>
void share_in_groups(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
                     const BlockLayout<typename Exec::memory_space>& layout, int group,
                     Workspace<typename Exec::memory_space>& workspace,
                     BlockLayout<typename Exec::memory_space>& result) {
    const Region region("SparseAttn::share_in_groups");
    require(group >= 1 && layout.heads % group == 0, "group", group, concat("a divisor of the heads, ", layout.heads));
    std::vector<std::vector<Pick>> picks(layout.heads);
    for (int h = 0; h < layout.heads; ++h) {
        for (int member = 0; member < group; ++member) picks[h].push_back({0, h / group * group + member});
    }
    build_union(exec, sequences, {&layout}, picks, workspace, result);
}

template <class Exec>
BlockLayout<typename Exec::memory_space> combine(const Exec& exec,
                                                 const Sequences<typename Exec::memory_space>& sequences,
                                                 const LayoutList<typename Exec::memory_space>& layouts,
                                                 const std::vector<int>& pick) {
    return made(exec,
                [&](auto& workspace, auto& result) { combine(exec, sequences, layouts, pick, workspace, result); });
}

template <class Exec>
BlockLayout<typename Exec::memory_space> unite(const Exec& exec,
                                               const Sequences<typename Exec::memory_space>& sequences,
                                               const LayoutList<typename Exec::memory_space>& layouts) {
    return made(exec, [&](auto& workspace, auto& result) { unite(exec, sequences, layouts, workspace, result); });
}

template <class Exec>
BlockLayout<typename Exec::memory_space> share_in_groups(const Exec& exec,
                                                         const Sequences<typename Exec::memory_space>& sequences,
                                                         const BlockLayout<typename Exec::memory_space>& layout,
                                                         int group) {
    return made(exec, [&](auto& workspace, auto& result) {
        share_in_groups(exec, sequences, layout, group, workspace, result);
    });
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                                  \
    template void combine(const EXEC&, const Sequences<EXEC::memory_space>&, const LayoutList<EXEC::memory_space>&,   \
                          const std::vector<int>&, Workspace<EXEC::memory_space>&, BlockLayout<EXEC::memory_space>&); \
    template void unite(const EXEC&, const Sequences<EXEC::memory_space>&, const LayoutList<EXEC::memory_space>&,     \
                        Workspace<EXEC::memory_space>&, BlockLayout<EXEC::memory_space>&);                            \
    template void share_in_groups(const EXEC&, const Sequences<EXEC::memory_space>&,                                  \
                                  const BlockLayout<EXEC::memory_space>&, int, Workspace<EXEC::memory_space>&,        \
                                  BlockLayout<EXEC::memory_space>&);                                                  \
    template BlockLayout<EXEC::memory_space> combine(const EXEC&, const Sequences<EXEC::memory_space>&,               \
                                                     const LayoutList<EXEC::memory_space>&, const std::vector<int>&); \
    template BlockLayout<EXEC::memory_space> unite(const EXEC&, const Sequences<EXEC::memory_space>&,                 \
                                                   const LayoutList<EXEC::memory_space>&);                            \
    template BlockLayout<EXEC::memory_space> share_in_groups(const EXEC&, const Sequences<EXEC::memory_space>&,       \
                                                             const BlockLayout<EXEC::memory_space>&, int);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
