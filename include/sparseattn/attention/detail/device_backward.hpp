#pragma once
// Backward pass on a device, without atomics: one kernel over tiles of 64 queries for the query gradient, one over
// tiles of 64 keys (through the transposed layout) for the key and value gradients. Both recompute the scores.

#include "sparseattn/attention/detail/device_tiles.hpp"
#include "sparseattn/attention/detail/generic_gradients.hpp"

namespace sparseattn::detail::device {

using generic::BackwardProblem;
using generic::BranchLanes;

/// lse and delta of a tile's queries in scratch memory, [queries] of each branch.
struct RowTerms {
    float* base;
    int side;

    static constexpr int arrays = 4;
    [[nodiscard]] KOKKOS_INLINE_FUNCTION float* lse(int branch) const { return base + branch * side; }
    [[nodiscard]] KOKKOS_INLINE_FUNCTION float* delta(int branch) const { return base + (2 + branch) * side; }
};

/// The branches that a head computes on one tile.
template <class Mem>
struct TileBranches {
    BranchTile<Mem> outer, inner;

    template <class T>
    KOKKOS_INLINE_FUNCTION TileBranches(const BackwardProblem<T, Mem>& problem, const HeadWork& work, int head,
                                        const TokenBlock& rows, const TokenTile& queries, const TokenTile& keys,
                                        bool walked)
        : outer(problem.branch[work.outer], head, rows, queries, keys, walked),
          inner(inner_tile(problem, work, head, rows, queries, keys)) {}
    /// Every pair takes part, in the outer branch only.
    [[nodiscard]] KOKKOS_INLINE_FUNCTION bool whole() const {
        return outer.share == Share::all && inner.share == Share::none;
    }
};

/// Which branches list a key of a tile.
struct Listed {
    bool outer, inner;
};
template <class Mem, class T>
KOKKOS_INLINE_FUNCTION Listed listed(const BackwardProblem<T, Mem>& problem, const HeadWork& work,
                                     const TileBranches<Mem>& branches, const TokenTile& keys, int r) {
    if (r >= keys.count) return {false, false};
    const std::int32_t j = keys.position(r);
    return {branches.outer.lists(problem.branch[work.outer], j),
            branches.inner.share != Share::none && branches.inner.lists(problem.branch[work.inner], j)};
}

/// A key and 4 neighbouring queries from position `first` on: S becomes P, dP becomes dS, weighted over the branches.
struct PairTerms {
    BranchLanes<4> outer, inner;

    template <class Mem>
    KOKKOS_INLINE_FUNCTION PairTerms(const HeadWork& work, const TileBranches<Mem>& branches, const RowTerms& terms,
                                     std::int32_t first, int at)
        : outer{LaneRule<4>(branches.outer, first), work.outer_weight, terms.lse(work.outer) + at,
                terms.delta(work.outer) + at},
          inner{LaneRule<4>(branches.inner, first), work.inner_weight, terms.lse(1 - work.outer) + at,
                terms.delta(1 - work.outer) + at} {}
    KOKKOS_INLINE_FUNCTION void differentiate(const Listed& in, std::int32_t j, float scale, float (&score)[4],
                                              float (&gradient)[4]) const {
        float p[4] = {}, ds[4] = {};
        SPARSEATTN_UNROLL
        for (int n = 0; n < 4; ++n) score[n] *= scale;
        outer.add(score, gradient, j, in.outer, p, ds);
        if (in.inner) inner.add(score, gradient, j, true, p, ds);
        SPARSEATTN_UNROLL
        for (int n = 0; n < 4; ++n) {
            score[n] = p[n];
            gradient[n] = ds[n];
        }
    }
};

/// The same where the whole tile takes part in one branch.
KOKKOS_INLINE_FUNCTION void differentiate_whole(float scale, float weight, float lse, float delta, float& score,
                                                float& gradient) {
    score = weight * tile_exp(score * scale - lse);
    gradient = score * (gradient - delta);
}

/// Loads lse and delta of the tile's queries. A row without keys has lse -inf, a column past the tile has none: +inf
/// makes every weight of theirs 0.
template <class T, class Mem>
KOKKOS_INLINE_FUNCTION void load_row_terms(int rank, int side, const BackwardProblem<T, Mem>& problem,
                                           const RowTerms& terms, const HeadWork& work, int head,
                                           const TokenTile& queries) {
    if (rank >= side) return;
    const float infinite = Kokkos::Experimental::infinity<float>::value;
    const int query = queries.origin + queries.first + rank;
    for (int b = 0; b < 2; ++b) {
        const bool used = (b == work.outer || b == work.inner) && rank < queries.count;
        const float lse = used ? problem.outputs[b].lse(query, head) : infinite;
        terms.lse(b)[rank] = lse == -infinite ? infinite : lse;
        terms.delta(b)[rank] = used ? problem.delta[b](query, head) : 0.0F;
    }
}

/// Writes a thread's part of a gradient.
template <class Tile, class View>
KOKKOS_INLINE_FUNCTION void store_sums(int rank, const View& gradient, int head, const TokenTile& tokens, float factor,
                                       const float (&sums)[Tile::sum_rows][Tile::sum_columns]) {
    using T = typename View::non_const_value_type;
    const Place at = place<Tile::side / Tile::sum_rows>(rank);
    SPARSEATTN_UNROLL
    for (int m = 0; m < Tile::sum_rows; ++m) {
        const int i = sum_row<Tile>(at, m);
        if (i >= tokens.count) continue;
        T* const row = &gradient(tokens.origin + tokens.first + i, head, 0);
        SPARSEATTN_UNROLL
        for (int n = 0; n < Tile::sum_columns; ++n) row[sum_column<Tile>(at, n)] = T(factor * sums[m][n]);
    }
}

/// Gradient of one tile of queries.
template <class T, class Mem, int d>
struct QueryKernel {
    using Tile = device::Tile<d, 16>;
    static constexpr int rows = Tile::score_rows, columns = Tile::score_columns;
    static constexpr std::size_t floats = Tile::steps_floats + Tile::panel_floats + RowTerms::arrays * Tile::side;
    BackwardProblem<T, Mem> problem;

    template <class Team>
    KOKKOS_INLINE_FUNCTION void run(const Team& team, float* memory) const {
        const QueryWork part = longest_first(problem, team.league_rank());
        if (part.queries.count <= 0) return;
        float* const panel = memory + Tile::steps_floats;
        const RowTerms terms{panel + Tile::panel_floats, Tile::side};
        const int rank = team.team_rank(), kv = part.head / problem.group;
        const HeadWork work = problem.work(part.head);
        const auto queries = head_rows(problem.inputs.query, part.head);
        const auto douts = head_rows(problem.dout, part.head);
        const auto key_rows = head_rows(problem.inputs.key, kv);
        const auto value_rows = head_rows(problem.inputs.value, kv);
        const Place at = place<Tile::side / rows>(rank);
        load_row_terms(rank, Tile::side, problem, terms, work, part.head, part.queries);
        float sums[Tile::sum_rows][Tile::sum_columns];
        clear(sums);
        KeyTiles<Mem> tiles(problem.branch[work.outer], part.head, part.rows);
        SPARSEATTN_KEEP_LOOP
        for (TokenTile keys = tiles.next(Tile::side); keys.count > 0; keys = tiles.next(Tile::side)) {
            const TileBranches<Mem> branches(problem, work, part.head, part.rows, part.queries, keys, true);
            if (branches.outer.share == Share::none) continue;
            float score[rows][columns], gradient[rows][columns];
            scores<Tile>(team, memory, douts, part.queries, value_rows, keys, gradient);
            put<Tile>(panel, at, gradient);  // out of the way of the other product
            scores<Tile>(team, memory, queries, part.queries, key_rows, keys, score);
            get<Tile>(panel, at, gradient);
            differentiate(at, terms, work, part, keys, branches, score, gradient);
            put<Tile>(panel, at, gradient);
            add_sums<Tile>(team, memory, panel, key_rows, keys, sums, [] {});
        }
        store_sums<Tile>(rank, problem.gradients.query, part.head, part.queries, problem.scale, sums);
    }
    KOKKOS_INLINE_FUNCTION void differentiate(const Place& at, const RowTerms& terms, const HeadWork& work,
                                              const QueryWork& part, const TokenTile& keys,
                                              const TileBranches<Mem>& branches, float (&score)[rows][columns],
                                              float (&gradient)[rows][columns]) const {
        const int i = score_row<Tile>(at, 0);
        if (branches.whole() && keys.count == Tile::side) {
            const Four lse = four_of(terms.lse(work.outer) + i), delta = four_of(terms.delta(work.outer) + i);
            SPARSEATTN_UNROLL
            for (int m = 0; m < rows; ++m) {
                SPARSEATTN_UNROLL
                for (int n = 0; n < columns; ++n) {
                    differentiate_whole(problem.scale, work.outer_weight, lse.x[m], delta.x[m], score[m][n],
                                        gradient[m][n]);
                }
            }
            return;
        }
        unsigned outer = 0, inner = 0;  // of each column
        SPARSEATTN_KEEP_LOOP
        for (int n = 0; n < columns; ++n) {
            const Listed in = listed(problem, work, branches, keys, score_column<Tile>(at, n));
            outer |= static_cast<unsigned>(in.outer) << n;
            inner |= static_cast<unsigned>(in.inner) << n;
        }
        const PairTerms pairs(work, branches, terms, part.queries.first + i, i);
        SPARSEATTN_UNROLL
        for (int n = 0; n < columns; ++n) {
            const int r = score_column<Tile>(at, n);
            float s[rows], g[rows];
            SPARSEATTN_UNROLL
            for (int m = 0; m < rows; ++m) {
                s[m] = score[m][n];
                g[m] = gradient[m][n];
            }
            pairs.differentiate({(outer >> n & 1) != 0, (inner >> n & 1) != 0}, r < keys.count ? keys.position(r) : 0,
                                problem.scale, s, g);
            SPARSEATTN_UNROLL
            for (int m = 0; m < rows; ++m) gradient[m][n] = g[m];
        }
    }
};

/// Gradients of one tile of keys and values of one key/value head, over the query heads of its group.
template <class T, class Mem, int d>
struct KeyKernel {
    using Tile = device::Tile<d, 8>;
    static constexpr int rows = Tile::score_rows, columns = Tile::score_columns;
    static constexpr std::size_t floats = Tile::steps_floats + 2 * Tile::panel_floats + RowTerms::arrays * Tile::side;
    using Sums = float[Tile::sum_rows][Tile::sum_columns];
    BackwardProblem<T, Mem> problem;
    TransposedLayout<Mem> transpose[2];

    template <class Team>
    KOKKOS_INLINE_FUNCTION void run(const Team& team, float* memory) const {
        const auto& grid = problem.branch[0].layout.grid;
        // Heads fastest: under a causal mask the first keys of all heads, whose columns are the longest, come first.
        const int parts = grid.block / Tile::side, kv_heads = problem.heads / problem.group;
        const int kv = team.league_rank() % kv_heads, part = team.league_rank() / kv_heads;
        const int number = part / parts;
        const TokenBlock block = problem.branch[0].key_block(number);
        const int first = block.begin + part % parts * Tile::side, left = block.end - first;
        if (left <= 0) return;
        const TokenTile keys{block.origin, first, left < Tile::side ? left : Tile::side, nullptr};
        Sums dkeys, dvalues;
        clear(dkeys);
        clear(dvalues);
        SPARSEATTN_KEEP_LOOP
        for (int head = kv * problem.group; head < (kv + 1) * problem.group; ++head) {
            visit_head(team, memory, head, number, block.sequence, keys, dkeys, dvalues);
        }
        store_sums<Tile>(team.team_rank(), problem.gradients.key, kv, keys, problem.scale, dkeys);
        store_sums<Tile>(team.team_rank(), problem.gradients.value, kv, keys, 1.0F, dvalues);
    }

    /// Query blocks that visit the whole key block, then those that visit single keys of the tile, each ascending.
    template <class Team>
    KOKKOS_INLINE_FUNCTION void visit_head(const Team& team, float* memory, int head, int number, int s,
                                           const TokenTile& keys, Sums& dkeys, Sums& dvalues) const {
        const HeadWork work = problem.work(head);
        const LayoutView<Mem>& view = problem.branch[work.outer];
        const TransposedLayout<Mem>& lists = transpose[work.outer];
        const std::int64_t list = view.layout.head_list(head);
        const std::int64_t at = list * view.layout.grid.key_blocks + number, end = lists.offsets(at + 1);
        std::int64_t e = lists.offsets(at);
        int past = 0;  // rows of single keys from here on are still to come
        for (;;) {
            int row = 0;
            if (e < end) {
                row = lists.rows(e++);
            } else {
                if (!view.singles) return;
                row = next_row(team, lists, list * view.key_offsets(view.key_offsets.extent(0) - 1), keys, past);
                if (row >= view.layout.grid.rows) return;
                past = row + 1;
            }
            const TokenBlock queries = view.query_block(view.layout.grid.row_begin(s) + row);
            SPARSEATTN_KEEP_LOOP
            for (std::int32_t i = queries.begin; i < queries.end; i += Tile::side) {
                const int left = queries.end - i;
                const TokenTile tile{queries.origin, i, left < Tile::side ? left : Tile::side, nullptr};
                const TileBranches<Mem> branches(problem, work, head, queries, tile, keys, false);
                if (branches.outer.share == Share::none) continue;
                visit_tile(team, memory, head, work, tile, keys, branches, dkeys, dvalues);
            }
        }
    }
    /// First row from `past` on that lists one of the tile's keys by itself.
    template <class Team>
    KOKKOS_INLINE_FUNCTION int next_row(const Team& team, const TransposedLayout<Mem>& lists, std::int64_t list_begin,
                                        const TokenTile& keys, int past) const {
        int next = problem.branch[0].layout.grid.rows;
        const int r = team.team_rank();
        if (r < keys.count) {
            const std::int64_t key = list_begin + keys.origin + keys.first + r;
            const EntryRange range{lists.key_offsets(key), lists.key_offsets(key + 1)};
            const std::int64_t e = lower_bound(lists.key_rows, range, past);
            if (e < range.end && lists.key_rows(e) < next) next = lists.key_rows(e);
        }
        team.team_reduce(Kokkos::Min<int>(next));
        return next;
    }
    template <class Team>
    KOKKOS_INLINE_FUNCTION void visit_tile(const Team& team, float* memory, int head, const HeadWork& work,
                                           const TokenTile& queries, const TokenTile& keys,
                                           const TileBranches<Mem>& branches, Sums& dkeys, Sums& dvalues) const {
        const int rank = team.team_rank(), kv = head / problem.group;
        float* const weights = memory + Tile::steps_floats;
        float* const gradients = weights + Tile::panel_floats;
        const RowTerms terms{gradients + Tile::panel_floats, Tile::side};
        const auto query_rows = head_rows(problem.inputs.query, head);
        const auto dout_rows = head_rows(problem.dout, head);
        const Place at = place<Tile::side / rows>(rank);
        float score[rows][columns], gradient[rows][columns];
        scores<Tile>(team, memory, head_rows(problem.inputs.value, kv), keys, dout_rows, queries, gradient);
        put<Tile>(gradients, at, gradient);  // out of the way of the other product
        load_row_terms(rank, Tile::side, problem, terms, work, head, queries);
        scores<Tile>(team, memory, head_rows(problem.inputs.key, kv), keys, query_rows, queries, score);
        get<Tile>(gradients, at, gradient);
        differentiate(at, terms, work, queries, keys, branches, score, gradient);
        put<Tile>(weights, at, score);
        put<Tile>(gradients, at, gradient);
        add_sums<Tile>(team, memory, weights, dout_rows, queries, dvalues, [] {});
        add_sums<Tile>(team, memory, gradients, query_rows, queries, dkeys, [] {});
    }
    KOKKOS_INLINE_FUNCTION void differentiate(const Place& at, const RowTerms& terms, const HeadWork& work,
                                              const TokenTile& queries, const TokenTile& keys,
                                              const TileBranches<Mem>& branches, float (&score)[rows][columns],
                                              float (&gradient)[rows][columns]) const {
        unsigned outer = 0, inner = 0;  // of each row
        SPARSEATTN_KEEP_LOOP
        for (int m = 0; m < rows && !branches.whole(); ++m) {
            const Listed in = listed(problem, work, branches, keys, score_row<Tile>(at, m));
            outer |= static_cast<unsigned>(in.outer) << m;
            inner |= static_cast<unsigned>(in.inner) << m;
        }
        SPARSEATTN_UNROLL
        for (int part = 0; part < Tile::score_parts; ++part) {
            const int i = score_column<Tile>(at, 4 * part);
            if (branches.whole()) {
                const Four lse = four_of(terms.lse(work.outer) + i), delta = four_of(terms.delta(work.outer) + i);
                SPARSEATTN_UNROLL
                for (int m = 0; m < rows; ++m) {
                    SPARSEATTN_UNROLL
                    for (int n = 0; n < 4; ++n) {
                        differentiate_whole(problem.scale, work.outer_weight, lse.x[n], delta.x[n],
                                            score[m][4 * part + n], gradient[m][4 * part + n]);
                    }
                }
                continue;
            }
            const PairTerms pairs(work, branches, terms, queries.first + i, i);
            SPARSEATTN_UNROLL
            for (int m = 0; m < rows; ++m) {
                float s[4], g[4];
                SPARSEATTN_UNROLL
                for (int n = 0; n < 4; ++n) {
                    s[n] = score[m][4 * part + n];
                    g[n] = gradient[m][4 * part + n];
                }
                pairs.differentiate({(outer >> m & 1) != 0, (inner >> m & 1) != 0}, keys.first + score_row<Tile>(at, m),
                                    problem.scale, s, g);
                SPARSEATTN_UNROLL
                for (int n = 0; n < 4; ++n) {
                    score[m][4 * part + n] = s[n];
                    gradient[m][4 * part + n] = g[n];
                }
            }
        }
    }
};

}  // namespace sparseattn::detail::device
