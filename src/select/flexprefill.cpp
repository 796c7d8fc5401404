#include "sparseattn/select/flexprefill.hpp"

#include <algorithm>
#include <cmath>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/select/detail/cuda.hpp"
#include "sparseattn/select/detail/cut.hpp"
#include "sparseattn/select/detail/long_rows.hpp"
#include "sparseattn/select/detail/mask.hpp"
#include "sparseattn/select/detail/profile.hpp"
#include "sparseattn/select/detail/row_softmax.hpp"
#include "sparseattn/select/detail/slab.hpp"

namespace sparseattn {
namespace {

using detail::BlockMask;
using detail::Cut;
using detail::RowSpan;
using detail::SequenceShape;
using detail::Slab;

int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

// What one head keeps.
struct Kept {
    Cut columns, distances, pairs;
};

template <class Mem>
struct Buffers {
    Span2<float, Mem> keys;  // [n_k, d] of one key head
    detail::TailBuffers<Mem> tail;
    Span2<float, Mem> mean_keys;      // [key blocks, d]
    Span2<float, Mem> mean_queries;   // [rows + 1, d] of one query head; the last row is the tail's mean
    Span1<float, Mem> vertical;       // [group, n_k]
    Span1<float, Mem> slash;          // [group, n_k]
    Span1<float, Mem> column_mass;    // [group, key blocks] block sums of vertical
    Span1<float, Mem> distance_mass;  // [group, key blocks] of slash
    Span1<float, Mem> pooled;         // [group, rows + 1, key blocks] block-mean scores, then their softmax
    Span1<Kept, Mem> kept;            // [group]
    BlockMask<Mem> mask;
};

template <class Mem>
auto buffer_plan(const Sequences<Mem>& sequences, int heads, int group, int head_dim,
                 const FlexPrefillOptions& options) {
    std::int64_t queries = 0, keys = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        queries = std::max<std::int64_t>(queries, sequences.query_length(s));
        keys = std::max<std::int64_t>(keys, sequences.key_length(s));
    }
    const std::int64_t rows = (queries + options.block - 1) / options.block;
    const std::int64_t key_blocks = (keys + options.block - 1) / options.block;
    const std::int64_t tail = std::min<std::int64_t>(options.block, queries);
    const std::int64_t mask_rows = detail::mask_rows(sequences, options.block);
    const std::int64_t words = detail::mask_words(sequences, options.block);
    return [=](Slab<Mem>& slab) {
        Buffers<Mem> b;
        b.keys = slab.template take<float>(keys, head_dim);
        b.tail.queries = slab.template take<float>(tail, head_dim);
        b.tail.scores = slab.template take<float>(tail * keys);
        b.mean_keys = slab.template take<float>(key_blocks, head_dim);
        b.mean_queries = slab.template take<float>(rows + 1, head_dim);
        b.vertical = slab.template take<float>(group * keys);
        b.slash = slab.template take<float>(group * keys);
        b.column_mass = slab.template take<float>(group * key_blocks);
        b.distance_mass = slab.template take<float>(group * key_blocks);
        b.pooled = slab.template take<float>(group * (rows + 1) * key_blocks);
        b.kept = slab.template take<Kept>(group);
        b.mask = {slab.template take<std::uint32_t>(heads * mask_rows, words), static_cast<std::int32_t>(mask_rows)};
        return b;
    };
}

// Softmax of the block-mean scores over the blocks that a row sees.
template <class Mem>
struct PooledSoftmax {
    SequenceShape shape;
    Span2<float, Mem> pooled;
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t row = team.league_rank();
        detail::row_softmax(team, &pooled(row, 0), shape.span(row).end, static_cast<std::int32_t>(pooled.extent(1)));
    }
};

// One head a team: pattern, budgets and cuts.
template <class Mem>
struct DecideHeads {
    SequenceShape shape;
    std::int32_t tail;  // queries that the profiles sum over
    double gamma, tau;
    std::int32_t least, most;                 // blocks
    Span2<const float, Mem> vertical, slash;  // [heads, n_k]
    Span2<float, Mem> column_mass, distance_mass;
    Span1<float, Mem> pooled;
    Span1<Kept, Mem> kept;

    // Entries in the smallest prefix of `mass` that reaches gamma.
    template <class Team>
    KOKKOS_INLINE_FUNCTION std::int32_t prefix(const Team& team, const float* mass, std::int32_t count) const {
        if (gamma >= 1) return count;
        double total;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, count), [=](std::int32_t i, double& sum) { sum += mass[i]; }, total);
        const Cut cut = detail::find_cut(
            team, count, [=](std::int32_t i) { return mass[i]; },
            [=](std::int32_t i) { return static_cast<double>(mass[i]); }, gamma * total);
        std::int32_t taken;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, count),
            [=](std::int32_t i, std::int32_t& sum) { sum += cut.takes(mass[i], i) ? 1 : 0; }, taken);
        return taken;
    }
    template <class Team>
    KOKKOS_INLINE_FUNCTION static Cut largest(const Team& team, const float* mass, std::int32_t count,
                                              std::int32_t wanted) {
        return detail::find_cut(
            team, count, [=](std::int32_t i) { return mass[i]; }, [](std::int32_t) { return 1.0; }, wanted);
    }
    // Square root of the Jensen-Shannon divergence between softmax(logits) and mass / tail.
    template <class Team>
    KOKKOS_INLINE_FUNCTION double distance(const Team& team, const float* logits, const float* mass,
                                           std::int32_t count) const {
        double top, total, divergence;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, count),
            [=](std::int32_t J, double& most) { most = logits[J] > most ? static_cast<double>(logits[J]) : most; },
            Kokkos::Max<double>(top));
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, count),
            [=](std::int32_t J, double& sum) { sum += math::exp(logits[J] - top); }, total);
        const double queries = tail;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, count),
            [=](std::int32_t J, double& sum) {
                const double p = math::exp(logits[J] - top) / total, v = mass[J] / queries, m = 0.5 * (p + v);
                if (p > 0) sum += 0.5 * p * math::log(p / m);
                if (v > 0) sum += 0.5 * v * math::log(v / m);
            },
            divergence);
        return math::sqrt(divergence > 0 ? divergence : 0.0);
    }
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t h = team.league_rank(), keys = shape.keys, blocks = shape.key_blocks(), rows = shape.rows();
        const float *v = &vertical(h, 0), *s = &slash(h, 0);
        float *V = &column_mass(h, 0), *D = &distance_mass(h, 0);
        const std::int32_t block = shape.block;
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, blocks), [=](std::int32_t J) {
            const std::int32_t end = (J + 1) * block < keys ? (J + 1) * block : keys;
            float column = 0, behind = 0;
            for (std::int32_t i = J * block; i < end; ++i) {
                column += v[i];
                behind += s[i];
            }
            V[J] = column;
            D[J] = behind;
        });
        team.team_barrier();
        const float* pairs = pooled.data() + static_cast<std::int64_t>(h) * (rows + 1) * blocks;
        const bool query_aware = distance(team, pairs + static_cast<std::int64_t>(rows) * blocks, V, blocks) < tau;
        std::int32_t columns = least, distances = least;
        if (!query_aware) {
            const std::int32_t cv = (prefix(team, v, keys) + block - 1) / block;
            const std::int32_t cs = (prefix(team, s, keys) + block - 1) / block;
            columns = cv < least ? least : (cv > most ? most : cv);
            distances = cs < least ? least : (cs > most ? most : cs);
        }
        Kept result;
        result.columns = largest(team, V, blocks, columns);
        result.distances = largest(team, D, blocks, distances);
        if (query_aware) {
            result.pairs = detail::find_cut(
                team, rows * blocks, [=](std::int32_t i) { return pairs[i]; },
                [=](std::int32_t i) { return static_cast<double>(pairs[i]); },
                gamma >= 1 ? rows + 1.0 : gamma * rows);  // past their sum: all, whatever the rounding
        }
        const Span1<Kept, Mem> to = kept;
        Kokkos::single(Kokkos::PerTeam(team), [=]() { to(h) = result; });
    }
};

template <class Mem>
struct VisitRows {
    SequenceShape shape;
    std::int32_t h;  // in the group
    Span2<const float, Mem> column_mass, distance_mass;
    Span1<const float, Mem> pooled;
    Span1<const Kept, Mem> kept;
    BlockMask<Mem> mask;
    std::int64_t list;

    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t row = team.league_rank(), blocks = shape.key_blocks();
        const RowSpan span = shape.span(row);
        const Kept keep = kept(h);
        const float *V = &column_mass(h, 0), *D = &distance_mass(h, 0);
        const float* pairs = pooled.data() + static_cast<std::int64_t>(h) * (shape.rows() + 1) * blocks;
        detail::write_mask_row(team, mask.row(list, shape.row_begin + row),
                               static_cast<std::int32_t>(mask.words.extent(1)), span.end, [=](std::int32_t J) {
                                   const std::int32_t behind = span.end - 1 - J, pair = row * blocks + J;
                                   return J == 0 || J >= span.own_begin || keep.columns.takes(V[J], J) ||
                                          keep.distances.takes(D[behind], behind) ||
                                          keep.pairs.takes(pairs[pair], pair);
                               });
    }
};

// The estimated heads of one key head in one sequence; `members` are places in `heads`.
template <class Exec, class T>
void select_group(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                  const HeadsView<const T, typename Exec::memory_space>& key, int kv_head,
                  const std::vector<std::int32_t>& heads, const std::vector<int>& members, const SequenceShape& shape,
                  const FlexPrefillOptions& options, const Buffers<typename Exec::memory_space>& b) {
    using Mem = typename Exec::memory_space;
    using Policy = Kokkos::TeamPolicy<Exec>;
    const int n = shape.keys, blocks = shape.key_blocks(), rows = shape.rows(), d = static_cast<int>(key.extent(2));
    const int count = static_cast<int>(members.size()), tail = std::min(options.block, shape.queries);
    const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
    const detail::TokenRange key_range{shape.key_begin, n, kv_head};
    const Span2<float, Mem> keys(b.keys.data(), n, d), mean_keys(b.mean_keys.data(), blocks, d);
    const Span2<float, Mem> mean_queries(b.mean_queries.data(), rows + 1, d);
    const Span2<float, Mem> vertical(b.vertical.data(), count, n), slash(b.slash.data(), count, n);
    const Span2<float, Mem> column_mass(b.column_mass.data(), count, blocks);
    const Span2<float, Mem> distance_mass(b.distance_mass.data(), count, blocks);
    detail::pack_rows<Exec, T>(exec, key, key_range, 1, 0, false, keys);
    detail::mean_blocks<Exec, T>(exec, key, key_range, options.block, 1.0F, mean_keys);
    for (int m = 0; m < count; ++m) {
        const detail::TokenRange range{shape.query_begin, shape.queries, heads[members[m]]};
        detail::tail_profile<Exec, T>(exec, query, range, tail, keys, b.tail, detail::row_of<float, Mem>(vertical, m),
                                      detail::row_of<float, Mem>(slash, m));
        detail::mean_blocks<Exec, T>(exec, query, range, options.block, scale,
                                     Span2<float, Mem>(mean_queries.data(), rows, d));
        const detail::TokenRange last{shape.query_begin + shape.queries - tail, tail, range.head};
        detail::mean_blocks<Exec, T>(exec, query, last, tail, scale,
                                     Span2<float, Mem>(detail::row_of<float, Mem>(mean_queries, rows).data(), 1, d));
        const Span2<float, Mem> pooled(b.pooled.data() + static_cast<std::int64_t>(m) * (rows + 1) * blocks, rows + 1,
                                       blocks);
        detail::gemm<Exec, float>(exec, detail::Op::none, detail::Op::transpose, 1.0F, mean_queries, mean_keys, 0.0F,
                                  pooled);
        Kokkos::parallel_for("SparseAttn::flexprefill.softmax", Policy(exec, rows, Kokkos::AUTO),
                             PooledSoftmax<Mem>{shape, pooled});
    }
    const int most = options.max_budget ? std::min(blocks, ceil_div(*options.max_budget, options.block)) : blocks;
    const int least = std::min(most, ceil_div(options.min_budget, options.block));
    detail::for_long_rows("SparseAttn::flexprefill.decide", exec, count,
                          DecideHeads<Mem>{shape, tail, options.gamma, options.tau, least, most, vertical, slash,
                                           column_mass, distance_mass, b.pooled, b.kept});
    for (int m = 0; m < count; ++m) {
        Kokkos::parallel_for(
            "SparseAttn::flexprefill.visit", Policy(exec, rows, Kokkos::AUTO),
            VisitRows<Mem>{shape, m, column_mass, distance_mass, b.pooled, b.kept, b.mask, members[m]});
    }
}

}  // namespace

void FlexPrefillOptions::validate() const {
    require(block == 64 || block == 128, "flexprefill.block", block, "64 or 128");
    require(gamma > 0, "flexprefill.gamma", gamma, "above 0");
    require(tau >= 0, "flexprefill.tau", tau, "at least 0");
    require(min_budget >= 0, "flexprefill.min_budget", min_budget, "at least 0");
    require(!max_budget || *max_budget >= std::max(1, min_budget), "flexprefill.max_budget", max_budget.value_or(0),
            concat("at least ", std::max(1, min_budget), ", as min_budget is ", min_budget));
}

template <class Exec, class T>
std::size_t flexprefill_bytes(const Sequences<typename Exec::memory_space>& sequences, int heads, int kv_heads,
                              int head_dim, const FlexPrefillOptions& options) {
#if defined(SPARSEATTN_CUDA_KERNELS)
    if constexpr (std::is_same_v<Exec, Kokkos::Cuda> && std::is_same_v<T, bf16>) {
        const std::vector<std::int32_t> all = detail::estimated_heads({}, heads);
        const auto call = detail::planned_call(sequences, {heads, kv_heads, head_dim}, all);
        if (const std::size_t bytes = detail::cuda_flexprefill_bytes(call, options); bytes > 0) return bytes;
    }
#endif
    return detail::slab_bytes<typename Exec::memory_space>(
        buffer_plan(sequences, heads, heads / kv_heads, head_dim, options));
}

template <class Exec, class T>
void select_flexprefill(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                        const HeadsView<const T, typename Exec::memory_space>& key,
                        const Sequences<typename Exec::memory_space>& sequences, const FlexPrefillOptions& options,
                        Workspace<typename Exec::memory_space>& workspace, const EstimatedHeads& estimate,
                        BlockLayout<typename Exec::memory_space>& layout) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::select_flexprefill");
    options.validate();
    const detail::SelectionShape shape = detail::check_selection<T, Mem>(query, key, sequences, true);
    const std::vector<std::int32_t> heads = detail::estimated_heads(estimate, shape.heads);
#if defined(SPARSEATTN_CUDA_KERNELS)
    if constexpr (std::is_same_v<Exec, Kokkos::Cuda> && std::is_same_v<T, bf16>) {
        const detail::SelectionCall call{query, key, sequences, heads};
        if (detail::cuda_select_flexprefill(exec, call, options, workspace, layout)) return;
    }
#endif
    std::vector<std::vector<int>> groups(shape.kv_heads);
    for (std::size_t e = 0; e < heads.size(); ++e) {
        groups[options.gqa_interleave ? heads[e] % shape.kv_heads : heads[e] / shape.group()].push_back(
            static_cast<int>(e));
    }

    typename Workspace<Mem>::Frame frame(workspace);
    const Buffers<Mem> buffers = detail::carve<Mem>(
        frame, buffer_plan(sequences, static_cast<int>(heads.size()), shape.group(), shape.head_dim, options));
    for (const SequenceShape& sequence : detail::sequence_shapes(sequences, options.block, true)) {
        if (sequence.queries == 0) continue;
        const bool dense = sequence.keys <= std::max(2 * options.block, options.min_budget) ||
                           (options.gamma >= 1 && !options.max_budget);
        for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
            if (groups[kv_head].empty()) continue;
            if (!dense) {
                select_group<Exec, T>(exec, query, key, kv_head, heads, groups[kv_head], sequence, options, buffers);
                continue;
            }
            for (const int e : groups[kv_head]) detail::visit_every_block(exec, sequence, buffers.mask, e);
        }
    }
    detail::layout_from_mask(exec, sequences, options.block, true, buffers.mask,
                             detail::estimated_head_list(heads, shape.heads), {}, layout);
}

template <class Exec, class T>
BlockLayout<typename Exec::memory_space> select_flexprefill(
    const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
    const HeadsView<const T, typename Exec::memory_space>& key, const Sequences<typename Exec::memory_space>& sequences,
    const FlexPrefillOptions& options, Workspace<typename Exec::memory_space>& workspace,
    const EstimatedHeads& estimate) {
    BlockLayout<typename Exec::memory_space> layout;
    select_flexprefill<Exec, T>(exec, query, key, sequences, options, workspace, estimate, layout);
    return layout;
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                       \
    template void select_flexprefill(                                                                              \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const HeadsView<const T, EXEC::memory_space>&, \
        const Sequences<EXEC::memory_space>&, const FlexPrefillOptions&, Workspace<EXEC::memory_space>&,           \
        const EstimatedHeads&, BlockLayout<EXEC::memory_space>&);                                                  \
    template BlockLayout<EXEC::memory_space> select_flexprefill(                                                   \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const HeadsView<const T, EXEC::memory_space>&, \
        const Sequences<EXEC::memory_space>&, const FlexPrefillOptions&, Workspace<EXEC::memory_space>&,           \
        const EstimatedHeads&);                                                                                    \
    template std::size_t flexprefill_bytes<EXEC, T>(const Sequences<EXEC::memory_space>&, int, int, int,           \
                                                    const FlexPrefillOptions&);
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
