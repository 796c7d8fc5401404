#pragma once
// Which pairs of a tile take part, in which branch, and the problem that the generic kernels share.
//
// Plain attention has one branch. Gated attention has two, full (0) and sparse (1), and a head with 0 < z < 1 walks the
// keys of the full branch once: the sparse branch's pairs are among them, and a tile says which.

#include "sparseattn/attention/attention.hpp"
#include "sparseattn/attention/detail/generic_tiles.hpp"
#include "sparseattn/attention/detail/layout_view.hpp"

namespace sparseattn::detail {

/// How many pairs of a tile a branch keeps.
enum class Share { none, some, all };

/// A branch on one tile.
template <class Mem>
struct BranchTile {
    TokenRule rule;
    Share share = Share::none;
    bool listed = false;       // every key of the tile is in the branch's lists
    EntryRange columns{0, 0};  // else: the listed blocks and
    EntryRange singles{0, 0};  //       single keys to search

    /// `walked`: the tile comes from the branch's own list, so all of its keys are in it.
    KOKKOS_INLINE_FUNCTION BranchTile(const LayoutView<Mem>& view, int head, const TokenBlock& rows,
                                      const TokenTile& queries, const TokenTile& keys, bool walked)
        : rule(view.rule(head, rows.sequence)), listed(walked) {
        if (!listed) {
            columns = view.columns(head, rows.sequence, rows.number);
            singles = view.keys(head, rows.sequence, rows.number);
        }
        if (keys.list != nullptr) {
            share = Share::some;
            return;
        }
        const std::int32_t i1 = queries.first + queries.count, j0 = keys.first, j1 = j0 + keys.count;
        if (!listed) {  // the tile lies in one block
            listed = contains(view.layout.columns, columns, j0 / view.layout.grid.block);
            columns = {0, 0};
            singles = {lower_bound(view.layout.keys, singles, j0), lower_bound(view.layout.keys, singles, j1)};
        }
        if (rule.none_visible(queries.first, i1, j0, j1) || (!listed && singles.begin == singles.end)) return;
        share = listed && rule.all_visible(queries.first, i1, j0, j1) ? Share::all : Share::some;
    }

    /// Whether the branch lists key j for these rows (the token rule comes on top).
    KOKKOS_INLINE_FUNCTION bool lists(const LayoutView<Mem>& view, std::int32_t j) const {
        return listed || contains(view.layout.columns, columns, j / view.layout.grid.block) ||
               contains(view.layout.keys, singles, j);
    }
};

/// A branch's token rule for `lanes` neighbouring queries of a tile.
template <int lanes>
struct LaneRule {
    std::int32_t sink;
    bool everything;  // no pair of the tile is hidden
    std::int32_t end[lanes], local[lanes];

    template <class Mem>
    KOKKOS_INLINE_FUNCTION LaneRule(const BranchTile<Mem>& branch, std::int32_t first)
        : sink(branch.rule.window.sink), everything(branch.share == Share::all) {
        for (int n = 0; n < lanes; ++n) {
            end[n] = branch.rule.key_end(first + n);
            local[n] = branch.rule.local_begin(first + n);
        }
    }
    KOKKOS_INLINE_FUNCTION bool visible(int n, std::int32_t j) const {
        return (j < end[n]) & ((j < sink) | (j >= local[n]));
    }
};

/// What a head computes: the branch it walks and the one inside it, with their weights in the output.
struct HeadWork {
    int outer, inner;  // inner < 0: none
    float outer_weight, inner_weight;
};

template <class T, class Mem>
struct GenericProblem {
    AttentionInputs<T, Mem> inputs;
    LayoutView<Mem> branch[2];
    Span1<const float, Mem> gate;  // of extent 0: plain attention, one branch
    float scale;
    int heads, group, head_dim;
    TileShape shape;

    KOKKOS_INLINE_FUNCTION bool gated() const { return gate.extent(0) > 0; }
    KOKKOS_INLINE_FUNCTION HeadWork work(int head) const {
        if (!gated() || gate(head) == 1.0F) return {0, -1, 1.0F, 0.0F};
        if (gate(head) == 0.0F) return {1, -1, 1.0F, 0.0F};
        return {0, 1, gate(head), 1.0F - gate(head)};
    }
};

namespace generic {
template <class T, class Mem>
struct ForwardProblem : GenericProblem<T, Mem> {
    AttentionOutputs<T, Mem> outputs[2];
    HeadsView<T, Mem> out;  // gated: the weighted sum of the branches
};
}  // namespace generic

/// The inner branch on a tile that the outer one walks; keeps nothing when the head has none.
template <class T, class Mem>
KOKKOS_INLINE_FUNCTION BranchTile<Mem> inner_tile(const GenericProblem<T, Mem>& problem, const HeadWork& work, int head,
                                                  const TokenBlock& rows, const TokenTile& queries,
                                                  const TokenTile& keys) {
    if (work.inner >= 0) return {problem.branch[work.inner], head, rows, queries, keys, false};
    BranchTile<Mem> none(problem.branch[work.outer], head, rows, queries, keys, true);
    none.share = Share::none;
    return none;
}

template <class Arguments, class T, class Mem>
GenericProblem<T, Mem> make_generic_problem(const Arguments& arguments, const AttentionInputs<T, Mem>& inputs) {
    GenericProblem<T, Mem> problem;
    problem.inputs = inputs;
    problem.scale = arguments.scale;
    problem.heads = static_cast<int>(inputs.query.extent(1));
    problem.group = problem.heads / static_cast<int>(inputs.key.extent(1));
    problem.head_dim = static_cast<int>(inputs.query.extent(2));
    return problem;
}

/// One team's queries: a part of a query block, of one head.
struct QueryWork {
    int head;
    TokenBlock rows;
    TokenTile queries;
};
/// `queries.count` <= 0: nothing to do, the block is shorter.
template <class T, class Mem>
KOKKOS_INLINE_FUNCTION QueryWork query_part(const GenericProblem<T, Mem>& problem, int head, int row, int part) {
    QueryWork work{};
    work.head = head;
    work.rows = problem.branch[0].query_block(row);
    const int first = work.rows.begin + part * problem.shape.queries;
    const int left = work.rows.end - first;
    work.queries = {work.rows.origin, first, left < problem.shape.queries ? left : problem.shape.queries, nullptr};
    return work;
}
/// Splits a league rank: parts of a block fastest, then blocks (the last, longest under a causal mask, first), then
/// heads.
template <class T, class Mem>
KOKKOS_INLINE_FUNCTION QueryWork query_work(const GenericProblem<T, Mem>& problem, int rank) {
    const auto& grid = problem.branch[0].layout.grid;
    const int parts = grid.block / problem.shape.queries, rank_row = rank / parts;
    return query_part(problem, rank_row / grid.rows, grid.rows - 1 - rank_row % grid.rows, rank % parts);
}
template <class T, class Mem>
std::int64_t query_teams(const GenericProblem<T, Mem>& problem) {
    const auto& grid = problem.branch[0].layout.grid;
    return static_cast<std::int64_t>(problem.heads) * grid.rows * (grid.block / problem.shape.queries);
}

/// visit(tile) for all key tiles that a branch lists for the rows of a query block: blocks first, then single keys.
template <class Mem, class Visit>
KOKKOS_INLINE_FUNCTION void for_each_key_tile(const LayoutView<Mem>& view, int head, const TokenBlock& rows, int keys,
                                              const Visit& visit) {
    const std::int32_t origin = view.key_offsets(rows.sequence);
    const std::int32_t length = view.key_offsets(rows.sequence + 1) - origin, block = view.layout.grid.block;
    const EntryRange columns = view.columns(head, rows.sequence, rows.number);
    for (std::int64_t e = columns.begin; e < columns.end; ++e) {
        const std::int32_t begin = view.layout.columns(e) * block;
        const std::int32_t end = begin + block < length ? begin + block : length;
        for (std::int32_t j = begin; j < end; j += keys) {
            visit(TokenTile{origin, j, end - j < keys ? end - j : keys, nullptr});
        }
    }
    const EntryRange singles = view.keys(head, rows.sequence, rows.number);
    for (std::int64_t e = singles.begin; e < singles.end; e += keys) {
        const int count = singles.end - e < keys ? static_cast<int>(singles.end - e) : keys;
        visit(TokenTile{origin, 0, count, &view.layout.keys(e)});
    }
}

/// Tile of a kernel on a CPU: at most `most` queries, fewer when every sequence is shorter (decode).
template <class Mem>
TileShape fit_tile(const TileShape& most, const Sequences<Mem>& sequences) {
    int longest = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        longest = sequences.query_length(s) > longest ? sequences.query_length(s) : longest;
    }
    constexpr int least = Machine::lanes > Machine::rows ? Machine::lanes : Machine::rows;
    TileShape shape = most;
    while (shape.queries > least && shape.queries / 2 >= longest) shape.queries /= 2;
    return shape;
}

}  // namespace sparseattn::detail
