#pragma once
// Forward pass on a device: a team for 64 queries of one head, online softmax over the key tiles that the layout lists.
// A gated head visits the sparse branch's keys first, saves that branch's result, and goes on with the remaining keys
// of the full branch.

#include "sparseattn/attention/detail/device_tiles.hpp"

namespace sparseattn::detail::device {

using generic::ForwardProblem;

template <class T, class Mem, int d>
struct ForwardKernel {
    using Tile = device::Tile<d, 16>;
    static constexpr int rows = Tile::score_rows, columns = Tile::score_columns, groups = Tile::score_groups;
    using Scores = float[rows][columns];
    using Sums = float[Tile::sum_rows][Tile::sum_columns];

    static constexpr std::size_t floats = Tile::steps_floats + Tile::panel_floats + Tile::side * (groups + 2);
    struct Scratch {
        float *steps, *panel;
        float* parts;   // [queries][groups] of a maximum or sum
        float* factor;  // [queries]
        float* largest;

        KOKKOS_INLINE_FUNCTION explicit Scratch(float* base)
            : steps(base),
              panel(steps + Tile::steps_floats),
              parts(panel + Tile::panel_floats),
              factor(parts + Tile::side * groups),
              largest(factor + Tile::side) {}
    };
    /// Running maximum and a thread's share of the running sum of the weights, of the queries of its scores.
    struct Rows {
        float largest[rows], total[rows];
    };

    ForwardProblem<T, Mem> problem;

    template <class Team>
    KOKKOS_INLINE_FUNCTION void run(const Team& team, float* memory) const {
        const QueryWork work = longest_first(problem, team.league_rank());
        if (work.queries.count <= 0) return;
        const Scratch tile(memory);
        const HeadWork head = problem.work(work.head);
        Sums sums;
        clear(sums);
        Rows state;
        SPARSEATTN_UNROLL
        for (int m = 0; m < rows; ++m) {
            state.largest[m] = -Kokkos::Experimental::infinity<float>::value;
            state.total[m] = 0;
        }
        SPARSEATTN_KEEP_LOOP
        for (int pass = head.inner < 0 ? 1 : 0; pass < 2; ++pass) {
            const int branch = pass == 0 ? head.inner : head.outer;
            visit(team, tile, work, branch, pass == 0 ? -1 : head.inner, sums, state);
            store(team, tile, work, problem.outputs[branch], sums, state);
        }
        if (problem.gated()) blend(team, work, head);
    }

    /// Takes in the keys of a branch, less those that `done` (a branch, or none when negative) has taken in before.
    template <class Team>
    KOKKOS_INLINE_FUNCTION void visit(const Team& team, const Scratch& tile, const QueryWork& work, int branch,
                                      int done, Sums& sums, Rows& state) const {
        const int kv = work.head / problem.group;
        const auto queries = head_rows(problem.inputs.query, work.head);
        const auto key_rows = head_rows(problem.inputs.key, kv);
        const auto value_rows = head_rows(problem.inputs.value, kv);
        KeyTiles<Mem> tiles(problem.branch[branch], work.head, work.rows);
        SPARSEATTN_KEEP_LOOP
        for (TokenTile keys = tiles.next(Tile::side); keys.count > 0; keys = tiles.next(Tile::side)) {
            const BranchTile<Mem> wanted(problem.branch[branch], work.head, work.rows, work.queries, keys, true);
            const BranchTile<Mem> had =
                inner_tile(problem, {branch, done, 0, 0}, work.head, work.rows, work.queries, keys);
            if (wanted.share == Share::none || had.share == Share::all) continue;
            Scores score;
            scores<Tile>(team, tile.steps, queries, work.queries, key_rows, keys, score);
            if (wanted.share != Share::all || had.share != Share::none || keys.count < Tile::side) {
                mask(team.team_rank(), work.queries.first, keys, wanted, had, done, score);
            }
            softmax(team, tile, score, state);
            const auto rescale = [&] {
                const Place at = place<Tile::side / Tile::sum_rows>(team.team_rank());
                SPARSEATTN_UNROLL
                for (int m = 0; m < Tile::sum_rows; ++m) {
                    const float factor = tile.factor[sum_row<Tile>(at, m)];
                    SPARSEATTN_UNROLL
                    for (int n = 0; n < Tile::sum_columns; ++n) sums[m][n] *= factor;
                }
            };
            add_sums<Tile>(team, tile.steps, tile.panel, value_rows, keys, sums, rescale);
        }
    }
    /// -inf where a pair takes no part.
    KOKKOS_INLINE_FUNCTION void mask(int rank, std::int32_t first, const TokenTile& keys, const BranchTile<Mem>& wanted,
                                     const BranchTile<Mem>& had, int done, Scores& score) const {
        const Place at = place<Tile::side / rows>(rank);
        const std::int32_t query = first + score_row<Tile>(at, 0);
        const LaneRule<rows> see(wanted, query), seen(had, query);
        unsigned before = 0;  // of each column: the other branch has the key
        if (had.share != Share::none) {
            SPARSEATTN_KEEP_LOOP
            for (int n = 0; n < columns; ++n) {
                const int r = score_column<Tile>(at, n);
                const bool lists = r < keys.count && had.lists(problem.branch[done], keys.position(r));
                before |= static_cast<unsigned>(lists) << n;
            }
        }
        SPARSEATTN_UNROLL
        for (int n = 0; n < columns; ++n) {
            const int r = score_column<Tile>(at, n);
            const bool in = r < keys.count, done_with = (before >> n & 1) != 0;
            const std::int32_t j = in ? keys.position(r) : 0;
            SPARSEATTN_UNROLL
            for (int m = 0; m < rows; ++m) {
                const bool visible = see.visible(m, j), had_visible = seen.visible(m, j);  // both, without a branch
                const bool keep = in & visible & !(done_with & had_visible);
                score[m][n] = keep ? score[m][n] : -Kokkos::Experimental::infinity<float>::value;
            }
        }
    }
    /// Scores become weights in the panel; the running maximum and sum follow.
    template <class Team>
    KOKKOS_INLINE_FUNCTION void softmax(const Team& team, const Scratch& tile, Scores& score, Rows& state) const {
        const float none = -Kokkos::Experimental::infinity<float>::value;
        const Place at = place<Tile::side / rows>(team.team_rank());
        SPARSEATTN_UNROLL
        for (int m = 0; m < rows; ++m) {
            float most = -Kokkos::Experimental::infinity<float>::value;
            SPARSEATTN_UNROLL
            for (int n = 0; n < columns; ++n) {
                score[m][n] *= problem.scale;
                most = score[m][n] > most ? score[m][n] : most;
            }
            tile.parts[score_row<Tile>(at, m) * groups + at.column] = most;
        }
        team.team_barrier();
        SPARSEATTN_UNROLL
        for (int m = 0; m < rows; ++m) {
            const float old = state.largest[m];
            float largest = old, sum = 0;
            SPARSEATTN_UNROLL
            for (int part = 0; part < groups; part += 4) {
                const Four four = four_of(tile.parts + score_row<Tile>(at, m) * groups + part);
                SPARSEATTN_UNROLL
                for (int i = 0; i < 4; ++i) largest = four.x[i] > largest ? four.x[i] : largest;
            }
            const float base = largest == none ? 0.0F : largest;
            SPARSEATTN_UNROLL
            for (int n = 0; n < columns; ++n) {
                score[m][n] = tile_exp(score[m][n] - base);
                sum += score[m][n];
            }
            const float factor = tile_exp(old - base);
            state.total[m] = state.total[m] * factor + sum;
            state.largest[m] = largest;
            if (at.column == 0) tile.factor[score_row<Tile>(at, m)] = factor;
        }
        put<Tile>(tile.panel, at, score);
    }

    template <class Team>
    KOKKOS_INLINE_FUNCTION void store(const Team& team, const Scratch& tile, const QueryWork& work,
                                      const AttentionOutputs<T, Mem>& result, const Sums& sums,
                                      const Rows& state) const {
        const int rank = team.team_rank(), query = work.queries.origin + work.queries.first;
        const Place from = place<Tile::side / rows>(rank), at = place<Tile::side / Tile::sum_rows>(rank);
        SPARSEATTN_UNROLL
        for (int m = 0; m < rows; ++m) {
            const int i = score_row<Tile>(from, m);
            tile.parts[i * groups + from.column] = state.total[m];
            if (from.column == 0) tile.largest[i] = state.largest[m];
        }
        team.team_barrier();
        if (rank < work.queries.count) {
            float total = 0;
            for (int part = 0; part < groups; ++part) total += tile.parts[rank * groups + part];
            tile.factor[rank] = total == 0 ? 0.0F : 1.0F / total;
            result.lse(query + rank, work.head) =
                total == 0 ? -Kokkos::Experimental::infinity<float>::value : tile.largest[rank] + math::log(total);
        }
        team.team_barrier();
        SPARSEATTN_UNROLL
        for (int m = 0; m < Tile::sum_rows; ++m) {
            const int i = sum_row<Tile>(at, m);
            if (i >= work.queries.count) continue;
            T* const row = &result.out(query + i, work.head, 0);
            SPARSEATTN_UNROLL
            for (int n = 0; n < Tile::sum_columns; ++n) row[sum_column<Tile>(at, n)] = T(sums[m][n] * tile.factor[i]);
        }
    }
    /// out = weighted sum of the branches' stored outputs, each element by the thread that stored it.
    template <class Team>
    KOKKOS_INLINE_FUNCTION void blend(const Team& team, const QueryWork& work, const HeadWork& head) const {
        const Place at = place<Tile::side / Tile::sum_rows>(team.team_rank());
        const AttentionOutputs<T, Mem>&outer = problem.outputs[head.outer], &inner = problem.outputs[1 - head.outer];
        SPARSEATTN_KEEP_LOOP
        for (int m = 0; m < Tile::sum_rows; ++m) {
            const int i = sum_row<Tile>(at, m), query = work.queries.origin + work.queries.first + i;
            if (i >= work.queries.count) continue;
            for (int n = 0; n < Tile::sum_columns; ++n) {
                const int c = sum_column<Tile>(at, n);
                if (head.inner < 0) inner.out(query, work.head, c) = T(0.0F);
                problem.out(query, work.head, c) =
                    T(head.outer_weight * static_cast<float>(outer.out(query, work.head, c)) +
                      head.inner_weight * static_cast<float>(inner.out(query, work.head, c)));
            }
            if (head.inner < 0 && at.column == 0) {
                inner.lse(query, work.head) = -Kokkos::Experimental::infinity<float>::value;
            }
        }
    }
};

}  // namespace sparseattn::detail::device
