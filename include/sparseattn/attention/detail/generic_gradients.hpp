#pragma once
// What the generic backward kernels share: the problem, and the step from scores and dP to P and dS of a tile.

#include "sparseattn/attention/detail/generic_pairs.hpp"

namespace sparseattn::detail::generic {

/// What the two gradient kernels share.
template <class T, class Mem>
struct BackwardProblem : GenericProblem<T, Mem> {
    HeadsView<const T, Mem> dout;
    AttentionOutputs<const T, Mem> outputs[2];
    Span2<float, Mem> delta[2];  // [T_q, Hq] dout . out of each branch
    AttentionGradients<T, Mem> gradients;
};

/// Tiles of scores and what their queries bring along.
struct PairScratch {
    Panel scores;     // [keys][queries] S, then P
    Panel gradients;  // [keys][queries] dP, then dS
    float* lse[2];    // [queries] of each branch
    float* delta[2];  // [queries]

    KOKKOS_INLINE_FUNCTION PairScratch(float* base, const TileShape& shape) {
        scores = {base, shape.queries};
        gradients = {scores.data + shape.keys * shape.queries, shape.queries};
        lse[0] = gradients.data + shape.keys * shape.queries;
        for (int b = 0; b < 2; ++b) {
            delta[b] = lse[b] + shape.queries;
            if (b == 0) lse[1] = delta[0] + shape.queries;
        }
    }
    static KOKKOS_INLINE_FUNCTION std::size_t floats(const TileShape& shape) {
        return static_cast<std::size_t>(2 * shape.keys) * shape.queries + 4 * shape.queries;
    }
};

/// Loads the branches' lse and delta of the tile's queries. A row without keys has lse -inf, a column past the tile has
/// none: +inf makes every weight of theirs 0.
template <class Team, class T, class Mem>
KOKKOS_INLINE_FUNCTION void load_row_terms(const Team& team, const BackwardProblem<T, Mem>& problem,
                                           const PairScratch& pairs, const HeadWork& work, int head,
                                           const TokenTile& queries) {
    Kokkos::parallel_for(Kokkos::TeamVectorRange(team, problem.shape.queries), [&](int i) {
        const float infinite = Kokkos::Experimental::infinity<float>::value;
        const int query = queries.origin + queries.first + i;
        for (int b = 0; b < 2; ++b) {
            const bool used = (b == work.outer || b == work.inner) && i < queries.count;
            const float lse = used ? problem.outputs[b].lse(query, head) : infinite;
            pairs.lse[b][i] = lse == -infinite ? infinite : lse;
            pairs.delta[b][i] = used ? problem.delta[b](query, head) : 0.0F;
        }
    });
}

/// One branch's addition to the weights P and score gradients dS of `lanes` queries and key j. `listed`: the branch's
/// lists hold the key.
template <int lanes>
struct BranchLanes {
    LaneRule<lanes> rule;
    float weight;
    const float *lse, *delta;

    KOKKOS_INLINE_FUNCTION void add(const float* score, const float* dprobability, std::int32_t j, bool listed,
                                    float* p, float* ds) const {
        for (int n = 0; n < lanes; ++n) {
            const bool visible = rule.visible(n, j);
            const bool keep = listed & (rule.everything | visible);
            const float term = keep ? weight * tile_exp(score[n] - lse[n]) : 0.0F;
            p[n] += term;
            ds[n] += term * (dprobability[n] - delta[n]);
        }
    }
};

/// S and dP of a tile become P and dS, weighted over the head's branches.
template <class Team, class T, class Mem>
KOKKOS_INLINE_FUNCTION void differentiate(const Team& team, const BackwardProblem<T, Mem>& problem,
                                          const PairScratch& pairs, const HeadWork& work, const TokenTile& queries,
                                          const TokenTile& keys, const BranchTile<Mem>& outer,
                                          const BranchTile<Mem>& inner) {
    constexpr int lanes = Machine::lanes;
    Kokkos::parallel_for(Kokkos::TeamVectorRange(team, problem.shape.queries / lanes), [&](int group) {
        const int i = group * lanes;
        const int in = work.inner < 0 ? work.outer : work.inner;
        const BranchLanes<lanes> outer_lanes{LaneRule<lanes>(outer, queries.first + i), work.outer_weight,
                                             pairs.lse[work.outer] + i, pairs.delta[work.outer] + i};
        const BranchLanes<lanes> inner_lanes{LaneRule<lanes>(inner, queries.first + i), work.inner_weight,
                                             pairs.lse[in] + i, pairs.delta[in] + i};
        for (int r = 0; r < problem.shape.keys; ++r) {
            float* score = pairs.scores.data + r * pairs.scores.stride + i;
            float* gradient = pairs.gradients.data + r * pairs.gradients.stride + i;
            const bool present = r < keys.count;
            const std::int32_t j = present ? keys.position(r) : 0;
            float p[lanes] = {}, ds[lanes] = {};
            const bool listed = present && outer.lists(problem.branch[work.outer], j);
            outer_lanes.add(score, gradient, j, listed, p, ds);
            if (inner.share != Share::none) {
                const bool inside = present && inner.lists(problem.branch[in], j);
                inner_lanes.add(score, gradient, j, inside, p, ds);
            }
            for (int n = 0; n < lanes; ++n) {
                score[n] = p[n];
                gradient[n] = ds[n];
            }
        }
    });
}

}  // namespace sparseattn::detail::generic
