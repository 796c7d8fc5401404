// Forward pass of the generic implementation. On a CPU (a device: device_forward.hpp) one team for each tile of queries
// of one head, online softmax over the key tiles that the layout lists. A gated head visits the sparse branch's keys
// first, saves that branch's result, and goes on with the remaining keys of the full branch.
#include "sparseattn/attention/detail/device_kernels.hpp"
#include "sparseattn/attention/detail/generic.hpp"
#include "sparseattn/attention/detail/generic_pairs.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn::detail {
namespace generic {

struct ForwardScratch {
    Panel queries;                    // [head_dim][queries], scaled
    Panel keys;                       // [keys][head_dim], then the values
    Panel sums;                       // [queries][head_dim]
    Panel scores;                     // [keys][queries]
    float *largest, *total, *factor;  // [queries]

    KOKKOS_INLINE_FUNCTION ForwardScratch(float* base, const TileShape& shape, int head_dim) {
        queries = {base, shape.queries};
        keys = {queries.data + head_dim * shape.queries, head_dim};
        sums = {keys.data + shape.keys * head_dim, head_dim};
        scores = {sums.data + shape.queries * head_dim, shape.queries};
        largest = scores.data + shape.keys * shape.queries;
        total = largest + shape.queries;
        factor = total + shape.queries;
    }
    static KOKKOS_INLINE_FUNCTION std::size_t floats(const TileShape& shape, int head_dim) {
        return static_cast<std::size_t>(shape.queries) * (head_dim + shape.keys) +
               static_cast<std::size_t>(shape.keys + shape.queries) * head_dim + 3 * shape.queries;
    }
};

template <class Exec, class T>
struct ForwardKernel {
    using Mem = typename Exec::memory_space;
    using Team = typename TilePolicy<Exec>::member_type;
    static constexpr int lanes = Machine::lanes;

    ForwardProblem<T, Mem> problem;

    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const QueryWork work = query_work(problem, team.league_rank());
        if (work.queries.count <= 0) return;
        const int d = problem.head_dim;
        const ForwardScratch tile(scratch<Exec>(team, ForwardScratch::floats(problem.shape, d)), problem.shape, d);
        load_columns(team, tile.queries, problem.shape.queries, problem.inputs.query, work.head, work.queries,
                     problem.scale);
        clear(team, tile.sums, problem.shape.queries, d);
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, problem.shape.queries), [&](int i) {
            tile.largest[i] = -Kokkos::Experimental::infinity<float>::value;
            tile.total[i] = 0;
        });
        team.team_barrier();
        const HeadWork head = problem.work(work.head);
        if (head.inner >= 0) {
            visit(team, tile, work, head.inner, -1);
            store(team, tile, work, problem.outputs[head.inner]);
            team.team_barrier();
        }
        visit(team, tile, work, head.outer, head.inner);
        store(team, tile, work, problem.outputs[head.outer]);
        if (!problem.gated()) return;
        if (head.inner < 0) clear_outputs(team, work, problem.outputs[1 - head.outer]);
        team.team_barrier();
        blend(team, work, head);
    }

    /// Takes in the keys of a branch, less those that `done` (a branch, or none when negative) has taken in before.
    KOKKOS_INLINE_FUNCTION void visit(const Team& team, const ForwardScratch& tile, const QueryWork& work, int branch,
                                      int done) const {
        const LayoutView<Mem>& view = problem.branch[branch];
        for_each_key_tile(view, work.head, work.rows, problem.shape.keys, [&](const TokenTile& keys) {
            const BranchTile<Mem> wanted(view, work.head, work.rows, work.queries, keys, true);
            const BranchTile<Mem> had =
                inner_tile(problem, {branch, done, 0, 0}, work.head, work.rows, work.queries, keys);
            if (wanted.share == Share::none || had.share == Share::all) return;
            visit_tile(team, tile, work, keys, wanted, had, done);
        });
    }
    KOKKOS_INLINE_FUNCTION void visit_tile(const Team& team, const ForwardScratch& tile, const QueryWork& work,
                                           const TokenTile& keys, const BranchTile<Mem>& wanted,
                                           const BranchTile<Mem>& had, int done) const {
        const TileShape shape = problem.shape;
        const int d = problem.head_dim, kv = work.head / problem.group;
        load_rows(team, tile.keys, shape.keys, problem.inputs.key, kv, keys, 1.0F);
        team.team_barrier();
        multiply(team, {shape.keys, shape.queries, d}, as_is(tile.keys), tile.queries, tile.scores, false);
        team.team_barrier();
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, shape.queries / lanes), [&](int group) {
            if (wanted.share != Share::all || had.share != Share::none || keys.count < shape.keys) {
                mask(tile, group * lanes, work.queries.first, keys, wanted, had, done);
            }
            softmax(tile, group * lanes);
        });
        load_rows(team, tile.keys, shape.keys, problem.inputs.value, kv, keys, 1.0F);
        team.team_barrier();
        multiply(team, {shape.queries, d, shape.keys}, transposed(tile.scores), tile.keys, tile.sums, true,
                 tile.factor);
        team.team_barrier();
    }
    /// Scores of `lanes` queries from column `first`: -inf where a pair takes no part.
    KOKKOS_INLINE_FUNCTION void mask(const ForwardScratch& tile, int first, std::int32_t tile_first,
                                     const TokenTile& keys, const BranchTile<Mem>& wanted, const BranchTile<Mem>& had,
                                     int done) const {
        const float hidden = -Kokkos::Experimental::infinity<float>::value;
        const LaneRule<lanes> see(wanted, tile_first + first), seen(had, tile_first + first);
        for (int r = 0; r < problem.shape.keys; ++r) {
            float* scores = tile.scores.data + r * tile.scores.stride + first;
            const bool in = r < keys.count;
            const std::int32_t j = in ? keys.position(r) : 0;
            const bool before = in && had.share != Share::none && had.lists(problem.branch[done], j);
            for (int n = 0; n < lanes; ++n) {
                const bool visible = see.visible(n, j), done_with = seen.visible(n, j);  // both, without a branch
                const bool keep = in & visible & !(before & done_with);
                scores[n] = keep ? scores[n] : hidden;
            }
        }
    }
    /// Scores of `lanes` queries become weights; their running maximum and sum follow.
    KOKKOS_INLINE_FUNCTION void softmax(const ForwardScratch& tile, int first) const {
        const float none = -Kokkos::Experimental::infinity<float>::value;
        float largest[lanes], base[lanes], sum[lanes];
        for (int n = 0; n < lanes; ++n) {
            largest[n] = tile.largest[first + n];
            sum[n] = 0;
        }
        for (int r = 0; r < problem.shape.keys; ++r) {
            const float* scores = tile.scores.data + r * tile.scores.stride + first;
            for (int n = 0; n < lanes; ++n) largest[n] = scores[n] > largest[n] ? scores[n] : largest[n];
        }
        for (int n = 0; n < lanes; ++n) base[n] = largest[n] == none ? 0.0F : largest[n];
        for (int r = 0; r < problem.shape.keys; ++r) {
            float* scores = tile.scores.data + r * tile.scores.stride + first;
            for (int n = 0; n < lanes; ++n) {
                scores[n] = tile_exp(scores[n] - base[n]);
                sum[n] += scores[n];
            }
        }
        for (int n = 0; n < lanes; ++n) {
            const float factor = tile_exp(tile.largest[first + n] - base[n]);
            tile.factor[first + n] = factor;
            tile.total[first + n] = tile.total[first + n] * factor + sum[n];
            tile.largest[first + n] = largest[n];
        }
    }

    KOKKOS_INLINE_FUNCTION void store(const Team& team, const ForwardScratch& tile, const QueryWork& work,
                                      const AttentionOutputs<T, Mem>& result) const {
        const int query = work.queries.origin + work.queries.first;
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, work.queries.count), [&](int i) {
            const float inverse = tile.total[i] == 0 ? 0.0F : 1.0F / tile.total[i];
            const float* sums = tile.sums.data + i * tile.sums.stride;
            T* row = &result.out(query + i, work.head, 0);
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, problem.head_dim),
                                 [&](int c) { row[c] = T(sums[c] * inverse); });
        });
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, work.queries.count), [&](int i) {
            const float total = tile.total[i];
            result.lse(query + i, work.head) =
                total == 0 ? -Kokkos::Experimental::infinity<float>::value : tile.largest[i] + math::log(total);
        });
    }
    KOKKOS_INLINE_FUNCTION void clear_outputs(const Team& team, const QueryWork& work,
                                              const AttentionOutputs<T, Mem>& result) const {
        const int query = work.queries.origin + work.queries.first;
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, work.queries.count), [&](int i) {
            T* row = &result.out(query + i, work.head, 0);
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, problem.head_dim), [&](int c) { row[c] = T(0.0F); });
        });
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, work.queries.count), [&](int i) {
            result.lse(query + i, work.head) = -Kokkos::Experimental::infinity<float>::value;
        });
    }
    /// out = weighted sum of the branches' stored outputs.
    KOKKOS_INLINE_FUNCTION void blend(const Team& team, const QueryWork& work, const HeadWork& head) const {
        const int query = work.queries.origin + work.queries.first;
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, work.queries.count), [&](int i) {
            T* row = &problem.out(query + i, work.head, 0);
            const T* outer = &problem.outputs[head.outer].out(query + i, work.head, 0);
            const T* inner = &problem.outputs[1 - head.outer].out(query + i, work.head, 0);
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, problem.head_dim), [&](int c) {
                row[c] = T(head.outer_weight * static_cast<float>(outer[c]) +
                           head.inner_weight * static_cast<float>(inner[c]));
            });
        });
    }
};

template <class Exec, class T>
void launch_forward(const Exec& exec, ForwardProblem<T, typename Exec::memory_space> problem,
                    const Sequences<typename Exec::memory_space>& sequences) {
    if constexpr (!on_cpu<Exec>) {
        device::launch_forward(exec, problem);
    } else {
        problem.shape = fit_tile({64, 64}, sequences);
        if (query_teams(problem) == 0) return;
        Kokkos::parallel_for(
            "SparseAttn::generic_forward",
            tile_policy(exec, query_teams(problem), ForwardScratch::floats(problem.shape, problem.head_dim)),
            ForwardKernel<Exec, T>{problem});
    }
}

}  // namespace generic

template <class Exec, class T>
void generic_attention(const Exec& exec, const ForwardArguments<T, typename Exec::memory_space>& arguments,
                       Workspace<typename Exec::memory_space>&) {
    generic::ForwardProblem<T, typename Exec::memory_space> problem{
        make_generic_problem(arguments, arguments.inputs), {}, {}};
    problem.branch[0] = {arguments.layout, arguments.sequences};
    problem.outputs[0] = arguments.outputs;
    generic::launch_forward<Exec, T>(exec, problem, arguments.sequences);
}

template <class Exec, class T>
void generic_attention(const Exec& exec, const GatedForwardArguments<T, typename Exec::memory_space>& arguments,
                       Workspace<typename Exec::memory_space>&) {
    generic::ForwardProblem<T, typename Exec::memory_space> problem{
        make_generic_problem(arguments, arguments.inputs), {}, {}};
    problem.branch[0] = {arguments.full, arguments.sequences};
    problem.branch[1] = {arguments.sparse, arguments.sequences};
    problem.gate = arguments.gate;
    problem.outputs[0] = arguments.full_outputs;
    problem.outputs[1] = arguments.sparse_outputs;
    problem.out = arguments.out;
    generic::launch_forward<Exec, T>(exec, problem, arguments.sequences);
}

#define SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, ARGUMENTS, T)                              \
    template void generic_attention(const EXEC&, const ARGUMENTS<T, EXEC::memory_space>&, \
                                    Workspace<EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC)                                     \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, ForwardArguments, float)      \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, ForwardArguments, bf16)       \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, GatedForwardArguments, float) \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, GatedForwardArguments, bf16)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
