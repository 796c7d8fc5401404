// The generic selection of MInference's heads whose scores are looked at.
#include <algorithm>

#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/select/detail/cut.hpp"
#include "sparseattn/select/detail/long_rows.hpp"
#include "sparseattn/select/detail/mask.hpp"
#include "sparseattn/select/detail/minference.hpp"
#include "sparseattn/select/detail/profile.hpp"
#include "sparseattn/select/detail/slab.hpp"

namespace sparseattn::detail {
namespace {

using Type = MInferencePattern::Type;

template <class Mem>
struct Buffers {
    Span2<float, Mem> keys;  // [n_k, d] of one key head
    TailBuffers<Mem> tail;
    Span1<float, Mem> vertical, slash;        // [group, n_k]
    Span1<std::int32_t, Mem> kept_distances;  // [group, n_k + 1] how many kept distances are less than o
    Span1<KeptCounts, Mem> sizes;             // [group]
    Span1<std::int32_t, Mem> lists;           // [group]
    Span2<float, Mem> mean_keys, mean_queries;
    Span1<float, Mem> pooled;  // [rows, key blocks]
    BlockMask<Mem> mask;
    Span2<std::int32_t, Mem> columns;       // [lists * sequences, most columns]
    Span2<std::int32_t, Mem> column_count;  // [lists, sequences]
};

// `heads`: those whose scores are looked at.
template <class Mem>
auto buffer_plan(const Sequences<Mem>& sequences, const std::vector<std::int32_t>& heads, int group, int head_dim,
                 const MInferenceOptions& options) {
    std::int64_t queries = 0, keys = 0;
    bool profiles = false, pools = false;
    for (int s = 0; s < sequences.count(); ++s) {
        queries = std::max<std::int64_t>(queries, sequences.query_length(s));
        keys = std::max<std::int64_t>(keys, sequences.key_length(s));
    }
    for (const std::int32_t head : heads) {
        (pattern_of(options, head).type == Type::block_sparse ? pools : profiles) = true;
    }
    const std::int64_t most = most_kept_columns(sequences, options, heads);
    const std::int64_t tail = std::min<std::int64_t>(MInferenceOptions::last_queries, queries), lists = heads.size();
    const std::int64_t rows = (queries + options.block - 1) / options.block;
    const std::int64_t key_blocks = (keys + options.block - 1) / options.block;
    const std::int64_t all_rows = mask_rows(sequences, options.block);
    const std::int64_t words = mask_words(sequences, options.block), count = sequences.count();
    const std::int64_t n = profiles ? keys : 0, members = profiles ? group : 0;  // what is not needed takes nothing
    const std::int64_t query_means = pools ? rows : 0, key_means = pools ? key_blocks : 0;
    return [=](Slab<Mem>& slab) {
        Buffers<Mem> b;
        b.keys = slab.template take<float>(n, head_dim);
        b.tail.queries = slab.template take<float>(profiles ? tail : 0, head_dim);
        b.tail.scores = slab.template take<float>(tail * n);
        b.vertical = slab.template take<float>(members * n);
        b.slash = slab.template take<float>(members * n);
        b.kept_distances = slab.template take<std::int32_t>(members * (n + 1));
        b.sizes = slab.template take<KeptCounts>(members);
        b.lists = slab.template take<std::int32_t>(members);
        b.mean_keys = slab.template take<float>(key_means, head_dim);
        b.mean_queries = slab.template take<float>(query_means, head_dim);
        b.pooled = slab.template take<float>(query_means * key_means);
        b.mask = {slab.template take<std::uint32_t>(lists * all_rows, words), static_cast<std::int32_t>(all_rows)};
        b.columns = slab.template take<std::int32_t>(profiles ? lists * count : 0, most);
        b.column_count = slab.template take<std::int32_t>(profiles ? lists : 0, count);
        return b;
    };
}

// One head a team: which columns and distances stay.
template <class Mem>
struct KeepLargest {
    std::int32_t keys, sequence, sequences;
    Span2<const float, Mem> vertical, slash;  // [heads, n_k]
    Span1<const KeptCounts, Mem> sizes;
    Span1<const std::int32_t, Mem> lists;
    Span2<std::int32_t, Mem> kept_distances;
    Span2<std::int32_t, Mem> columns, column_count;

    // The `wanted` largest of `mass`, the first `forced` among them.
    template <class Team>
    KOKKOS_INLINE_FUNCTION Cut largest(const Team& team, const float* mass, std::int32_t forced,
                                       std::int32_t wanted) const {
        return find_cut(
            team, keys, [=](std::int32_t i) { return mass[i]; }, [=](std::int32_t i) { return i < forced ? 0.0 : 1.0; },
            wanted - forced);
    }
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        constexpr std::int32_t first_columns = MInferenceOptions::forced_columns,
                               nearest = MInferenceOptions::forced_distances;
        const std::int32_t h = team.league_rank(), list = lists(h), n = keys;
        const float *v = &vertical(h, 0), *s = &slash(h, 0);
        const Cut column_cut = largest(team, v, first_columns, sizes(h).columns);
        const Cut distance_cut = largest(team, s, nearest, sizes(h).distances);
        std::int32_t* to = &columns(list * sequences + sequence, 0);
        std::int32_t* count = &column_count(list, sequence);
        std::int32_t* before = &kept_distances(h, 0);
        Kokkos::parallel_scan(Kokkos::TeamThreadRange(team, n), [=](std::int32_t c, std::int32_t& sum, bool last) {
            const bool take = c < first_columns || column_cut.takes(v[c], c);
            if (last && take) to[sum] = c;
            sum += take ? 1 : 0;
            if (last && c == n - 1) *count = sum;
        });
        Kokkos::parallel_scan(Kokkos::TeamThreadRange(team, n), [=](std::int32_t o, std::int32_t& sum, bool last) {
            if (last) before[o] = sum;
            sum += o < nearest || distance_cut.takes(s[o], o) ? 1 : 0;
            if (last && o == n - 1) before[n] = sum;
        });
    }
};

// The key blocks that hold a key i - o for a query i of the row and a kept distance o.
template <class Mem>
struct VisitDistances {
    SequenceShape shape;
    Span1<const std::int32_t, Mem> before;  // [n_k + 1]
    BlockMask<Mem> mask;
    std::int64_t list;
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t row = team.league_rank(), block = shape.block, keys = shape.keys;
        const std::int32_t first = row * block + shape.shift(), last = shape.row_end(row) - 1 + shape.shift();
        const std::int32_t* less = before.data();
        write_mask_row(team, mask.row(list, shape.row_begin + row), static_cast<std::int32_t>(mask.words.extent(1)),
                       shape.span(row).end, [=](std::int32_t J) {
                           const std::int32_t j0 = J * block, j1 = (j0 + block < keys ? j0 + block : keys) - 1;
                           const std::int32_t nearest = first > j1 ? first - j1 : 0, farthest = last - j0;
                           return less[farthest + 1] > less[nearest];
                       });
    }
};

// The `wanted` largest block-mean scores of a row, its own blocks among them.
template <class Mem>
struct VisitLargest {
    SequenceShape shape;
    std::int32_t wanted;
    Span2<const float, Mem> pooled;
    BlockMask<Mem> mask;
    std::int64_t list;
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t row = team.league_rank();
        const RowSpan span = shape.span(row);
        const float* score = &pooled(row, 0);
        const Cut cut = find_cut(
            team, span.end, [=](std::int32_t J) { return score[J]; },
            [=](std::int32_t J) { return J >= span.own_begin ? 0.0 : 1.0; }, wanted - (span.end - span.own_begin));
        write_mask_row(team, mask.row(list, shape.row_begin + row), static_cast<std::int32_t>(mask.words.extent(1)),
                       span.end, [=](std::int32_t J) { return J >= span.own_begin || cut.takes(score[J], J); });
    }
};

template <class Exec, class T>
struct Inputs {
    using Mem = typename Exec::memory_space;
    const HeadsView<const T, Mem>& query;
    const HeadsView<const T, Mem>& key;
    const Sequences<Mem>& sequences;
    const MInferenceOptions& options;
    const std::vector<std::int32_t>& heads;  // whose scores are looked at; a head's place is its list
    const Buffers<Mem>& buffers;
};

// The vertical_and_slash heads (places in `heads`) of one key head in one sequence.
template <class Exec, class T>
void visit_profiles(const Exec& exec, const Inputs<Exec, T>& in, int kv_head, const std::vector<int>& members,
                    const SequenceShape& shape, int sequence) {
    using Mem = typename Exec::memory_space;
    using Policy = Kokkos::TeamPolicy<Exec>;
    const Buffers<Mem>& b = in.buffers;
    const int n = shape.keys, count = static_cast<int>(members.size());
    const int tail = std::min(MInferenceOptions::last_queries, shape.queries);
    const Span2<float, Mem> keys(b.keys.data(), n, in.key.extent(2));
    const Span2<float, Mem> vertical(b.vertical.data(), count, n), slash(b.slash.data(), count, n);
    const Span2<std::int32_t, Mem> before(b.kept_distances.data(), count, n + 1);
    std::vector<KeptCounts> wanted;
    pack_rows<Exec, T>(exec, in.key, {shape.key_begin, n, kv_head}, 1, 0, false, keys);
    for (int m = 0; m < count; ++m) {
        const int list = members[m];
        tail_profile<Exec, T>(exec, in.query, {shape.query_begin, shape.queries, in.heads[list]}, tail, keys, b.tail,
                              row_of<float, Mem>(vertical, m), row_of<float, Mem>(slash, m));
        wanted.push_back(kept_counts(in.options, pattern_of(in.options, in.heads[list]), n));
    }
    put_values(exec, "SparseAttn::minference.sizes", wanted, b.sizes.data());
    put_values(exec, "SparseAttn::minference.lists", members, b.lists.data());
    for_long_rows("SparseAttn::minference.keep", exec, count,
                  KeepLargest<Mem>{n, sequence, in.sequences.count(), vertical, slash, b.sizes, b.lists, before,
                                   b.columns, b.column_count});
    for (int m = 0; m < count; ++m) {
        Kokkos::parallel_for("SparseAttn::minference.visit_distances", Policy(exec, shape.rows(), Kokkos::AUTO),
                             VisitDistances<Mem>{shape, row_of<std::int32_t, Mem>(before, m), b.mask, members[m]});
    }
}

template <class Exec, class T>
void visit_blocks(const Exec& exec, const Inputs<Exec, T>& in, int kv_head, const std::vector<int>& members,
                  const SequenceShape& shape) {
    using Mem = typename Exec::memory_space;
    const Buffers<Mem>& b = in.buffers;
    const int d = static_cast<int>(in.key.extent(2)), rows = shape.rows(), blocks = shape.key_blocks();
    const Span2<float, Mem> mean_keys(b.mean_keys.data(), blocks, d), mean_queries(b.mean_queries.data(), rows, d);
    const Span2<float, Mem> pooled(b.pooled.data(), rows, blocks);
    mean_blocks<Exec, T>(exec, in.key, {shape.key_begin, shape.keys, kv_head}, shape.block, 1.0F, mean_keys);
    for (const int list : members) {
        mean_blocks<Exec, T>(exec, in.query, {shape.query_begin, shape.queries, in.heads[list]}, shape.block, 1.0F,
                             mean_queries);
        gemm<Exec, float>(exec, Op::none, Op::transpose, 1.0F, mean_queries, mean_keys, 0.0F, pooled);
        Kokkos::parallel_for("SparseAttn::minference.visit_largest", Kokkos::TeamPolicy<Exec>(exec, rows, Kokkos::AUTO),
                             VisitLargest<Mem>{shape, in.options.block_sparse_blocks, pooled, b.mask, list});
    }
}

}  // namespace

template <class Mem>
std::size_t scored_heads_bytes(const Sequences<Mem>& sequences, const SelectionShape& shape,
                               const MInferenceOptions& options, const std::vector<std::int32_t>& heads) {
    return slab_bytes<Mem>(buffer_plan(sequences, heads, shape.group(), shape.head_dim, options));
}

template <class Exec, class T>
void select_scored_heads(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                         const HeadsView<const T, typename Exec::memory_space>& key,
                         const Sequences<typename Exec::memory_space>& sequences, const SelectionShape& shape,
                         const MInferenceOptions& options, const std::vector<std::int32_t>& heads,
                         Workspace<typename Exec::memory_space>& workspace,
                         BlockLayout<typename Exec::memory_space>& layout) {
    using Mem = typename Exec::memory_space;
    std::vector<std::vector<int>> profiled(shape.kv_heads), pooled(shape.kv_heads);
    for (std::size_t e = 0; e < heads.size(); ++e) {
        auto& groups = pattern_of(options, heads[e]).type == Type::block_sparse ? pooled : profiled;
        groups[heads[e] / shape.group()].push_back(static_cast<int>(e));
    }

    typename Workspace<Mem>::Frame frame(workspace);
    const Buffers<Mem> buffers =
        carve<Mem>(frame, buffer_plan(sequences, heads, shape.group(), shape.head_dim, options));
    std::int32_t* column_count = buffers.column_count.data();
    Kokkos::parallel_for(
        "SparseAttn::minference.clear",
        Kokkos::RangePolicy<Exec>(exec, 0, static_cast<int>(buffers.column_count.size())),
        KOKKOS_LAMBDA(int i) { column_count[i] = 0; });
    const Inputs<Exec, T> inputs{query, key, sequences, options, heads, buffers};
    const auto shapes = sequence_shapes(sequences, options.block, true);
    for (int s = 0; s < sequences.count(); ++s) {
        if (shapes[s].queries == 0) continue;
        for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
            if (!profiled[kv_head].empty()) visit_profiles(exec, inputs, kv_head, profiled[kv_head], shapes[s], s);
            if (!pooled[kv_head].empty()) visit_blocks(exec, inputs, kv_head, pooled[kv_head], shapes[s]);
        }
    }
    layout_from_mask(exec, sequences, options.block, true, buffers.mask, estimated_head_list(heads, shape.heads),
                     {buffers.columns, buffers.column_count}, layout);
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                       \
    template void select_scored_heads(                                                                             \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const HeadsView<const T, EXEC::memory_space>&, \
        const Sequences<EXEC::memory_space>&, const SelectionShape&, const MInferenceOptions&,                     \
        const std::vector<std::int32_t>&, Workspace<EXEC::memory_space>&, BlockLayout<EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
#define SPARSEATTN_INSTANTIATE_MEMORY(MEM)                                                                          \
    template std::size_t scored_heads_bytes(const Sequences<MEM>&, const SelectionShape&, const MInferenceOptions&, \
                                            const std::vector<std::int32_t>&);
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE_MEMORY)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
