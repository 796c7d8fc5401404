// Backward pass of the generic implementation, without atomics: one kernel over query tiles for the query gradient, one
// over key tiles (through the transposed layout) for the key and value gradients. Both recompute the scores, and both
// turn a tile of scores S and of dP = dout value^T into P and dS by the same function. In a gated head one score serves
// both branches: P = z P_full + (1 - z) P_sparse and dS likewise.
#include "sparseattn/attention/detail/device_kernels.hpp"
#include "sparseattn/attention/detail/generic.hpp"
#include "sparseattn/attention/detail/generic_gradients.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn::detail {
namespace generic {

/// delta = dout . out of every branch that has weight: one work item for each row on a CPU, one thread of a team, with
/// its vector lanes along the channels, on a device.
template <class T, class Mem>
struct DeltaKernel {
    static constexpr int team = 8, lanes = 32;
    BackwardProblem<T, Mem> problem;
    std::int64_t items;

    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t item) const {
        each_branch(item, [&](const T* dout, const T* out) {
            float sum = 0;
            for (int c = 0; c < problem.head_dim; ++c) sum += static_cast<float>(dout[c]) * static_cast<float>(out[c]);
            return sum;
        });
    }
    template <class Member>
    KOKKOS_INLINE_FUNCTION void row(const Member& member) const {
        const std::int64_t item = static_cast<std::int64_t>(member.league_rank()) * team + member.team_rank();
        if (item >= items) return;
        each_branch(item, [&](const T* dout, const T* out) {
            float sum = 0;
            Kokkos::parallel_reduce(
                Kokkos::ThreadVectorRange(member, problem.head_dim),
                [&](int c, float& local) { local += static_cast<float>(dout[c]) * static_cast<float>(out[c]); }, sum);
            return sum;
        });
    }
    template <class Dot>
    KOKKOS_INLINE_FUNCTION void each_branch(std::int64_t item, const Dot& dot) const {
        const int query = static_cast<int>(item / problem.heads), head = static_cast<int>(item % problem.heads);
        const HeadWork work = problem.work(head);
        for (int b = 0; b < (problem.gated() ? 2 : 1); ++b) {
            const bool used = b == work.outer || b == work.inner;
            problem.delta[b](query, head) =
                used ? dot(&problem.dout(query, head, 0), &problem.outputs[b].out(query, head, 0)) : 0.0F;
        }
    }
};
template <class Exec, class T>
struct DeltaRows {
    DeltaKernel<T, typename Exec::memory_space> kernel;
    KOKKOS_INLINE_FUNCTION void operator()(const typename Kokkos::TeamPolicy<Exec>::member_type& member) const {
        kernel.row(member);
    }
};
template <class Exec, class T>
void launch_delta(const Exec& exec, const BackwardProblem<T, typename Exec::memory_space>& problem, int queries) {
    using Kernel = DeltaKernel<T, typename Exec::memory_space>;
    const Kernel kernel{problem, static_cast<std::int64_t>(queries) * problem.heads};
    if (kernel.items == 0) return;
    if constexpr (on_cpu<Exec>) {
        using Rows = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
        Kokkos::parallel_for("SparseAttn::generic_delta", Rows(exec, 0, kernel.items), kernel);
    } else {
        const auto teams = static_cast<int>((kernel.items + Kernel::team - 1) / Kernel::team);
        Kokkos::parallel_for("SparseAttn::generic_delta",
                             device::light(Kokkos::TeamPolicy<Exec>(exec, teams, Kernel::team, Kernel::lanes)),
                             DeltaRows<Exec, T>{kernel});
    }
}

/// dgate = sum over rows of delta_full - delta_sparse, one team for each head.
template <class Exec, class T>
struct GateKernel {
    using Mem = typename Exec::memory_space;
    using Team = typename Kokkos::TeamPolicy<Exec>::member_type;
    BackwardProblem<T, Mem> problem;
    int queries;
    Span1<float, Mem> dgate;

    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const int head = team.league_rank();
        double sum = 0;
        if (problem.work(head).inner >= 0) {
            Kokkos::parallel_reduce(
                Kokkos::TeamThreadRange(team, queries),
                [&](int query, double& local) {
                    local += static_cast<double>(problem.delta[0](query, head)) - problem.delta[1](query, head);
                },
                sum);
        }
        Kokkos::single(Kokkos::PerTeam(team), [&]() { dgate(head) = static_cast<float>(sum); });
    }
};

struct QueryScratch {
    Panel queries;  // [head_dim][queries], scaled
    Panel douts;    // [head_dim][queries]
    Panel sums;     // [queries][head_dim]
    Panel keys;     // [keys][head_dim] values, then keys
    PairScratch pairs;

    KOKKOS_INLINE_FUNCTION QueryScratch(float* base, const TileShape& shape, int head_dim)
        : queries{base, shape.queries},
          douts{queries.data + head_dim * queries.stride, queries.stride},
          sums{douts.data + head_dim * douts.stride, head_dim},
          keys{sums.data + shape.queries * head_dim, head_dim},
          pairs(keys.data + shape.keys * head_dim, shape) {}
    static KOKKOS_INLINE_FUNCTION std::size_t floats(const TileShape& shape, int head_dim) {
        return static_cast<std::size_t>(3 * shape.queries + shape.keys) * head_dim + PairScratch::floats(shape);
    }
};

/// Gradient of one tile of queries.
template <class Exec, class T>
struct QueryKernel {
    using Mem = typename Exec::memory_space;
    using Team = typename TilePolicy<Exec>::member_type;
    BackwardProblem<T, Mem> problem;

    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const QueryWork part = query_work(problem, team.league_rank());
        if (part.queries.count <= 0) return;
        const TileShape shape = problem.shape;
        const int d = problem.head_dim;
        const QueryScratch tile(scratch<Exec>(team, QueryScratch::floats(shape, d)), shape, d);
        const HeadWork work = problem.work(part.head);
        load_columns(team, tile.queries, shape.queries, problem.inputs.query, part.head, part.queries, problem.scale);
        load_columns(team, tile.douts, shape.queries, problem.dout, part.head, part.queries, 1.0F);
        load_row_terms(team, problem, tile.pairs, work, part.head, part.queries);
        clear(team, tile.sums, shape.queries, d);
        team.team_barrier();
        for_each_key_tile(problem.branch[work.outer], part.head, part.rows, shape.keys,
                          [&](const TokenTile& keys) { visit(team, tile, part, work, keys); });
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, part.queries.count), [&](int i) {
            const float* sums = tile.sums.data + i * tile.sums.stride;
            T* row = &problem.gradients.query(part.queries.origin + part.queries.first + i, part.head, 0);
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, d),
                                 [&](int c) { row[c] = T(problem.scale * sums[c]); });
        });
    }
    KOKKOS_INLINE_FUNCTION void visit(const Team& team, const QueryScratch& tile, const QueryWork& part,
                                      const HeadWork& work, const TokenTile& keys) const {
        const TileShape shape = problem.shape;
        const int d = problem.head_dim, kv = part.head / problem.group;
        const BranchTile<Mem> outer(problem.branch[work.outer], part.head, part.rows, part.queries, keys, true);
        if (outer.share == Share::none) return;
        const BranchTile<Mem> inner = inner_tile(problem, work, part.head, part.rows, part.queries, keys);
        load_rows(team, tile.keys, shape.keys, problem.inputs.value, kv, keys, 1.0F);
        team.team_barrier();
        multiply(team, {shape.keys, shape.queries, d}, as_is(tile.keys), tile.douts, tile.pairs.gradients, false);
        team.team_barrier();
        load_rows(team, tile.keys, shape.keys, problem.inputs.key, kv, keys, 1.0F);
        team.team_barrier();
        multiply(team, {shape.keys, shape.queries, d}, as_is(tile.keys), tile.queries, tile.pairs.scores, false);
        team.team_barrier();
        differentiate(team, problem, tile.pairs, work, part.queries, keys, outer, inner);
        team.team_barrier();
        multiply(team, {shape.queries, d, shape.keys}, transposed(tile.pairs.gradients), tile.keys, tile.sums, true);
        team.team_barrier();
    }
};

struct KeyScratch {
    Panel keys, values;    // [keys][head_dim]
    Panel dkeys, dvalues;  // [keys][head_dim]
    Panel columns;         // [head_dim][queries] dout, then scaled query; and as
    Panel rows;            // [queries][head_dim] the same once more
    PairScratch pairs;

    KOKKOS_INLINE_FUNCTION KeyScratch(float* base, const TileShape& shape, int head_dim)
        : keys{base, head_dim},
          values{keys.data + shape.keys * head_dim, head_dim},
          dkeys{values.data + shape.keys * head_dim, head_dim},
          dvalues{dkeys.data + shape.keys * head_dim, head_dim},
          columns{dvalues.data + shape.keys * head_dim, shape.queries},
          rows{columns.data, head_dim},
          pairs(columns.data + head_dim * columns.stride, shape) {}
    static KOKKOS_INLINE_FUNCTION std::size_t floats(const TileShape& shape, int head_dim) {
        return static_cast<std::size_t>(4 * shape.keys + shape.queries) * head_dim + PairScratch::floats(shape);
    }
};

/// Gradients of one tile of keys and values of one key/value head, over the query heads of its group.
template <class Exec, class T>
struct KeyKernel {
    using Mem = typename Exec::memory_space;
    using Team = typename TilePolicy<Exec>::member_type;
    BackwardProblem<T, Mem> problem;
    TransposedLayout<Mem> transpose[2];

    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const auto& grid = problem.branch[0].layout.grid;
        const TileShape shape = problem.shape;
        const int parts = grid.block / shape.keys;
        const int number = team.league_rank() / parts % grid.key_blocks;
        const int kv = team.league_rank() / parts / grid.key_blocks;
        const TokenBlock block = problem.branch[0].key_block(number);
        const int first = block.begin + team.league_rank() % parts * shape.keys, left = block.end - first;
        if (left <= 0) return;
        const TokenTile keys{block.origin, first, left < shape.keys ? left : shape.keys, nullptr};

        const int d = problem.head_dim;
        const KeyScratch tile(scratch<Exec>(team, KeyScratch::floats(shape, d)), shape, d);
        load_rows(team, tile.keys, shape.keys, problem.inputs.key, kv, keys, 1.0F);
        load_rows(team, tile.values, shape.keys, problem.inputs.value, kv, keys, 1.0F);
        clear(team, tile.dkeys, shape.keys, d);
        clear(team, tile.dvalues, shape.keys, d);
        team.team_barrier();
        for (int head = kv * problem.group; head < (kv + 1) * problem.group; ++head) {
            visit_head(team, tile, head, number, block.sequence, keys);
        }
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, keys.count), [&](int r) {
            const float* dkey = tile.dkeys.data + r * tile.dkeys.stride;
            const float* dvalue = tile.dvalues.data + r * tile.dvalues.stride;
            T* key_row = &problem.gradients.key(keys.origin + keys.first + r, kv, 0);
            T* value_row = &problem.gradients.value(keys.origin + keys.first + r, kv, 0);
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, d), [&](int c) {
                key_row[c] = T(dkey[c]);
                value_row[c] = T(dvalue[c]);
            });
        });
    }

    /// Query blocks that visit the whole key block, then those that visit single keys of the tile, each ascending.
    KOKKOS_INLINE_FUNCTION void visit_head(const Team& team, const KeyScratch& tile, int head, int number, int s,
                                           const TokenTile& keys) const {
        const HeadWork work = problem.work(head);
        const LayoutView<Mem>& view = problem.branch[work.outer];
        const TransposedLayout<Mem>& rows = transpose[work.outer];
        const std::int64_t list = view.layout.head_list(head);
        const std::int64_t at = list * view.layout.grid.key_blocks + number;
        for (std::int64_t e = rows.offsets(at); e < rows.offsets(at + 1); ++e) {
            visit_block(team, tile, head, work, view.query_block(view.layout.grid.row_begin(s) + rows.rows(e)), keys);
        }
        if (!view.singles) return;
        const std::int64_t first_key =
            list * view.key_offsets(view.key_offsets.extent(0) - 1) + keys.origin + keys.first;
        const int none = view.layout.grid.rows;
        for (int past = 0;;) {  // rows from here on are still to come
            int next = none;
            Kokkos::parallel_reduce(
                Kokkos::TeamThreadRange(team, keys.count),
                [&](int r, int& least) {
                    const EntryRange range{rows.key_offsets(first_key + r), rows.key_offsets(first_key + r + 1)};
                    const std::int64_t e = lower_bound(rows.key_rows, range, past);
                    if (e < range.end && rows.key_rows(e) < least) least = rows.key_rows(e);
                },
                Kokkos::Min<int>(next));
            if (next >= none) return;
            visit_block(team, tile, head, work, view.query_block(view.layout.grid.row_begin(s) + next), keys);
            past = next + 1;
        }
    }
    KOKKOS_INLINE_FUNCTION void visit_block(const Team& team, const KeyScratch& tile, int head, const HeadWork& work,
                                            const TokenBlock& rows, const TokenTile& keys) const {
        for (std::int32_t i = rows.begin; i < rows.end; i += problem.shape.queries) {
            const int left = rows.end - i;
            const TokenTile queries{rows.origin, i, left < problem.shape.queries ? left : problem.shape.queries,
                                    nullptr};
            const BranchTile<Mem> outer(problem.branch[work.outer], head, rows, queries, keys, false);
            if (outer.share == Share::none) continue;
            const BranchTile<Mem> inner = inner_tile(problem, work, head, rows, queries, keys);
            visit_tile(team, tile, head, work, queries, keys, outer, inner);
        }
    }
    KOKKOS_INLINE_FUNCTION void visit_tile(const Team& team, const KeyScratch& tile, int head, const HeadWork& work,
                                           const TokenTile& queries, const TokenTile& keys,
                                           const BranchTile<Mem>& outer, const BranchTile<Mem>& inner) const {
        const TileShape shape = problem.shape;
        const int d = problem.head_dim;
        load_columns(team, tile.columns, shape.queries, problem.dout, head, queries, 1.0F);
        load_row_terms(team, problem, tile.pairs, work, head, queries);
        team.team_barrier();
        multiply(team, {shape.keys, shape.queries, d}, as_is(tile.values), tile.columns, tile.pairs.gradients, false);
        team.team_barrier();
        load_columns(team, tile.columns, shape.queries, problem.inputs.query, head, queries, problem.scale);
        team.team_barrier();
        multiply(team, {shape.keys, shape.queries, d}, as_is(tile.keys), tile.columns, tile.pairs.scores, false);
        team.team_barrier();
        differentiate(team, problem, tile.pairs, work, queries, keys, outer, inner);
        load_rows(team, tile.rows, shape.queries, problem.dout, head, queries, 1.0F);
        team.team_barrier();
        multiply(team, {shape.keys, d, shape.queries}, as_is(tile.pairs.scores), tile.rows, tile.dvalues, true);
        team.team_barrier();
        load_rows(team, tile.rows, shape.queries, problem.inputs.query, head, queries, problem.scale);
        team.team_barrier();
        multiply(team, {shape.keys, d, shape.queries}, as_is(tile.pairs.gradients), tile.rows, tile.dkeys, true);
        team.team_barrier();
    }
};

/// Both gradient kernels on a CPU.
template <class Exec, class T>
void launch_tiles(const Exec& exec, BackwardProblem<T, typename Exec::memory_space> problem,
                  const Sequences<typename Exec::memory_space>& sequences,
                  const TransposedLayout<typename Exec::memory_space>* const (&transposes)[2]) {
    const int d = problem.head_dim;
    problem.shape = fit_tile({64, 64}, sequences);
    if (sequences.queries() > 0) {
        Kokkos::parallel_for("SparseAttn::generic_backward_queries",
                             tile_policy(exec, query_teams(problem), QueryScratch::floats(problem.shape, d)),
                             QueryKernel<Exec, T>{problem});
    }
    if (sequences.keys() > 0) {
        const auto& grid = problem.branch[0].layout.grid;
        const std::int64_t teams = static_cast<std::int64_t>(problem.heads / problem.group) * grid.key_blocks *
                                   (grid.block / problem.shape.keys);
        KeyKernel<Exec, T> kernel{problem, {}};
        for (int b = 0; b < (problem.gated() ? 2 : 1); ++b) kernel.transpose[b] = *transposes[b];
        Kokkos::parallel_for("SparseAttn::generic_backward_keys",
                             tile_policy(exec, teams, KeyScratch::floats(problem.shape, d)), kernel);
    }
}

template <class Exec, class T>
void launch_backward(const Exec& exec, BackwardProblem<T, typename Exec::memory_space> problem,
                     const Sequences<typename Exec::memory_space>& sequences,
                     const TransposedLayout<typename Exec::memory_space>* const (&transposes)[2],
                     Workspace<typename Exec::memory_space>& workspace,
                     const Span1<float, typename Exec::memory_space>& dgate) {
    using Mem = typename Exec::memory_space;
    const int queries = sequences.queries();
    typename Workspace<Mem>::Frame frame(workspace);
    for (int b = 0; b < (problem.gated() ? 2 : 1); ++b) {
        problem.delta[b] = frame.template take<float>(queries, problem.heads);
    }
    launch_delta<Exec, T>(exec, problem, queries);
    if constexpr (on_cpu<Exec>) {
        launch_tiles<Exec, T>(exec, problem, sequences, transposes);
    } else {
        device::launch_queries(exec, problem);
        device::launch_keys(exec, problem, transposes);
    }
    if (problem.gated()) {
        Kokkos::parallel_for("SparseAttn::generic_gate_gradient",
                             device::light(Kokkos::TeamPolicy<Exec>(exec, problem.heads, on_cpu<Exec> ? 1 : 128)),
                             GateKernel<Exec, T>{problem, queries, dgate});
    }
}

}  // namespace generic

template <class Exec, class T>
void generic_attention(const Exec& exec, const BackwardArguments<T, typename Exec::memory_space>& arguments,
                       Workspace<typename Exec::memory_space>& workspace) {
    using Mem = typename Exec::memory_space;
    generic::BackwardProblem<T, Mem> problem{make_generic_problem(arguments, arguments.inputs),
                                             arguments.dout,
                                             {arguments.outputs, {}},
                                             {},
                                             arguments.gradients};
    problem.branch[0] = {arguments.layout.layout, arguments.sequences};
    generic::launch_backward(exec, problem, arguments.sequences, {&arguments.layout.transposed, nullptr}, workspace,
                             Span1<float, Mem>());
}

template <class Exec, class T>
void generic_attention(const Exec& exec, const GatedBackwardArguments<T, typename Exec::memory_space>& arguments,
                       Workspace<typename Exec::memory_space>& workspace) {
    using Mem = typename Exec::memory_space;
    generic::BackwardProblem<T, Mem> problem{make_generic_problem(arguments, arguments.inputs),
                                             arguments.dout,
                                             {arguments.full_outputs, arguments.sparse_outputs},
                                             {},
                                             arguments.gradients};
    problem.branch[0] = {arguments.full.layout, arguments.sequences};
    problem.branch[1] = {arguments.sparse.layout, arguments.sequences};
    problem.gate = arguments.gate;
    generic::launch_backward(exec, problem, arguments.sequences,
                             {&arguments.full.transposed, &arguments.sparse.transposed}, workspace, arguments.dgate);
}

#define SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, ARGUMENTS, T)                              \
    template void generic_attention(const EXEC&, const ARGUMENTS<T, EXEC::memory_space>&, \
                                    Workspace<EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC)                                      \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, BackwardArguments, float)      \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, BackwardArguments, bf16)       \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, GatedBackwardArguments, float) \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, GatedBackwardArguments, bf16)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
