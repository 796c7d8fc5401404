#include "sparseattn/select/xattention.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sparseattn/core/elementary.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/select/detail/cuda.hpp"
#include "sparseattn/select/detail/cut.hpp"
#include "sparseattn/select/detail/mask.hpp"
#include "sparseattn/select/detail/pack.hpp"
#include "sparseattn/select/detail/slab.hpp"

namespace sparseattn {
namespace {

using detail::BlockMask;
using detail::RowSpan;
using detail::SequenceShape;
using detail::Slab;

int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

template <class Exec>
int chunk_rows(const XAttentionOptions& options) {
    const int wanted = options.chunk_rows > 0 ? options.chunk_rows : (host_accessible<Exec> ? 128 : 1024);
    const int step = options.block / options.stride;  // whole blocks
    return ceil_div(wanted, step) * step;
}

template <class Mem>
struct Buffers {
    Span2<float, Mem> keys;     // [strided columns, S d] of one key/value head
    Span2<float, Mem> queries;  // [chunk, S d]
    Span1<float, Mem> scores;   // [chunk, visible strided columns]
    Span2<float, Mem> sums;     // [chunk, key blocks] softmax summed over the columns of each block
    Span2<float, Mem> masses;   // [chunk's query blocks, key blocks]
    BlockMask<Mem> mask;
};

template <class Exec>
auto buffer_plan(const Sequences<typename Exec::memory_space>& sequences, int heads, int head_dim,
                 const XAttentionOptions& options) {
    using Mem = typename Exec::memory_space;
    int queries = 0, keys = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        queries = std::max(queries, sequences.query_length(s));
        keys = std::max(keys, sequences.key_length(s));
    }
    const int step = options.block / options.stride;
    const int chunk = std::min(chunk_rows<Exec>(options), ceil_div(queries, options.block) * step);
    const std::int64_t columns = ceil_div(keys, options.stride), key_blocks = ceil_div(keys, options.block);
    const std::int64_t width = static_cast<std::int64_t>(options.stride) * head_dim;
    const std::int64_t rows = detail::mask_rows(sequences, options.block);
    const std::int64_t words = detail::mask_words(sequences, options.block);
    return [=](Slab<Mem>& slab) {
        Buffers<Mem> buffers;
        buffers.keys = slab.template take<float>(columns, width);
        buffers.queries = slab.template take<float>(chunk, width);
        buffers.scores = slab.template take<float>(chunk * columns);
        buffers.sums = slab.template take<float>(chunk, key_blocks);
        buffers.masses = slab.template take<float>(chunk / step, key_blocks);
        buffers.mask = {slab.template take<std::uint32_t>(heads * rows, words), static_cast<std::int32_t>(rows)};
        return buffers;
    };
}

// A strided row: its softmax over the visible strided columns, summed over the columns of each key block.
template <class Mem>
struct StridedSoftmax {
    SequenceShape shape;
    std::int32_t stride, first_row;
    Span2<float, Mem> scores;  // [strided rows of the chunk, strided columns]
    Span2<float, Mem> sums;

    KOKKOS_INLINE_FUNCTION std::int32_t column_end(std::int32_t row) const {
        std::int32_t tokens = shape.keys;
        if (shape.causal) {
            const std::int32_t last = (row + 1) * stride;
            tokens = (last < shape.queries ? last : shape.queries) + shape.shift();
        }
        return (tokens + stride - 1) / stride;
    }
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t row = team.league_rank(), end = column_end(first_row + row);
        const std::int32_t per_block = shape.block / stride, blocks = (end + per_block - 1) / per_block;
        float* score = &scores(row, 0);
        float* sum = &sums(row, 0);
        float top;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, end),
            [=](std::int32_t j, float& partial) { partial = score[j] > partial ? score[j] : partial; },
            Kokkos::Max<float>(top));
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, end),
                             [=](std::int32_t j) { score[j] = detail::exponential(score[j] - top); });
        team.team_barrier();
        float total;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, blocks),
            [=](std::int32_t J, float& partial) {
                const std::int32_t begin = J * per_block, stop = begin + per_block < end ? begin + per_block : end;
                float block_sum = 0;
                for (std::int32_t j = begin; j < stop; ++j) block_sum += score[j];
                sum[J] = block_sum;
                partial += block_sum;
            },
            total);
        team.team_barrier();
        const float scale = 1.0F / total;
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, static_cast<std::int32_t>(sums.extent(1))),
                             [=](std::int32_t J) { sum[J] = J < blocks ? sum[J] * scale : 0.0F; });
    }
};

// A query block: masses of its key blocks and the smallest prefix that reaches the threshold.
template <class Mem>
struct ThresholdRows {
    SequenceShape shape;
    std::int32_t stride, first_row, strided_rows;  // strided_rows: of the chunk
    double threshold;
    bool keep_sink, keep_recent;
    Span2<const float, Mem> sums;
    Span2<float, Mem> masses;
    BlockMask<Mem> mask;
    std::int64_t list;

    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t local = team.league_rank(), row = first_row + local;
        const RowSpan span = shape.span(row);
        const std::int32_t per_block = shape.block / stride, begin = local * per_block;
        const std::int32_t end = begin + per_block < strided_rows ? begin + per_block : strided_rows;
        float* mass = &masses(local, 0);
        Kokkos::parallel_for(Kokkos::TeamVectorRange(team, span.end), [&](std::int32_t J) {
            float sum = 0;
            for (std::int32_t r = begin; r < end; ++r) sum += sums(r, J);
            mass[J] = sum;
        });
        team.team_barrier();
        const bool sink = keep_sink, recent = keep_recent;
        const auto forced = [=](std::int32_t J) {
            return (sink && J == 0) || (recent && J >= span.own_begin && J < span.own_end);
        };
        double total, held;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, span.end), [=](std::int32_t J, double& partial) { partial += mass[J]; },
            total);
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, span.end),
            [=](std::int32_t J, double& partial) { partial += forced(J) ? mass[J] : 0.0; }, held);
        const detail::Cut cut = detail::find_cut(
            team, span.end, [=](std::int32_t J) { return mass[J]; },
            [=](std::int32_t J) { return forced(J) ? 0.0 : static_cast<double>(mass[J]); }, threshold * total - held);
        detail::write_mask_row(team, mask.row(list, shape.row_begin + row),
                               static_cast<std::int32_t>(mask.words.extent(1)), span.end,
                               [=](std::int32_t J) { return forced(J) || cut.takes(mass[J], J); });
    }
};

// One head of one sequence, `buffers.keys` packed.
template <class Exec, class T>
void estimate_head(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query, int head,
                   double threshold, const SequenceShape& shape, const XAttentionOptions& options,
                   const Buffers<typename Exec::memory_space>& buffers, std::int64_t list) {
    using Mem = typename Exec::memory_space;
    using Policy = Kokkos::TeamPolicy<Exec>;
    const int S = options.stride, per_block = options.block / S, chunk = static_cast<int>(buffers.queries.extent(0));
    const int strided_rows = ceil_div(shape.queries, S), strided_columns = ceil_div(shape.keys, S);
    const float scale = static_cast<float>(1 / (std::sqrt(static_cast<double>(query.extent(2))) * S * options.norm));
    for (int first = 0; first < strided_rows; first += chunk) {
        const int rows = std::min(chunk, strided_rows - first), blocks = ceil_div(rows, per_block);
        const int last_key = std::min((first + rows) * S, shape.queries) + shape.shift();
        const int columns = shape.causal ? ceil_div(last_key, S) : strided_columns;
        const Span2<float, Mem> packed(buffers.queries.data(), rows, buffers.queries.extent(1));
        detail::pack_rows<Exec, T>(exec, query, {shape.query_begin, shape.queries, head}, S, first,
                                   options.mode == XAttentionOptions::Mode::antidiagonal, packed);
        const Span2<float, Mem> scores(buffers.scores.data(), rows, columns);
        const Span2<const float, Mem> keys(buffers.keys.data(), columns, buffers.keys.extent(1));
        detail::gemm<Exec, float>(exec, detail::Op::none, detail::Op::transpose, scale, packed, keys, 0.0F, scores);
        const Span2<float, Mem> sums(buffers.sums.data(), rows, ceil_div(columns, per_block));
        Kokkos::parallel_for("SparseAttn::xattention.softmax", Policy(exec, rows, Kokkos::AUTO),
                             StridedSoftmax<Mem>{shape, S, first, scores, sums});
        const Span2<float, Mem> masses(buffers.masses.data(), blocks, sums.extent(1));
        Kokkos::parallel_for("SparseAttn::xattention.threshold", Policy(exec, blocks, Kokkos::AUTO),
                             ThresholdRows<Mem>{shape, S, first / per_block, rows, threshold, options.keep_sink,
                                                options.keep_recent, sums, masses, buffers.mask, list});
    }
}

}  // namespace

void XAttentionOptions::validate() const {
    require(block == 64 || block == 128, "xattention.block", block, "64 or 128");
    require(stride >= 1 && block % stride == 0, "xattention.stride", stride, concat("a divisor of block, ", block));
    require(threshold > 0, "xattention.threshold", threshold, "above 0");
    for (std::size_t h = 0; h < thresholds.size(); ++h) {
        require(thresholds[h] > 0, concat("xattention.thresholds[", h, "]"), thresholds[h], "above 0");
    }
    require(norm > 0 && std::isfinite(norm), "xattention.norm", norm, "above 0 and finite");
    require(chunk_rows >= 0, "xattention.chunk_rows", chunk_rows, "at least 0");
}

template <class Exec, class T>
std::size_t xattention_bytes(const Sequences<typename Exec::memory_space>& sequences, int heads,
                             [[maybe_unused]] int kv_heads, int head_dim, const XAttentionOptions& options) {
#if defined(SPARSEATTN_CUDA_KERNELS)
    if constexpr (std::is_same_v<Exec, Kokkos::Cuda> && std::is_same_v<T, bf16>) {
        const std::vector<std::int32_t> all = detail::estimated_heads({}, heads);
        const auto call = detail::planned_call(sequences, {heads, kv_heads, head_dim}, all);
        if (const std::size_t bytes = detail::cuda_xattention_bytes(call, options); bytes > 0) return bytes;
    }
#endif
    return detail::slab_bytes<typename Exec::memory_space>(buffer_plan<Exec>(sequences, heads, head_dim, options));
}

template <class Exec, class T>
void select_xattention(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                       const HeadsView<const T, typename Exec::memory_space>& key,
                       const Sequences<typename Exec::memory_space>& sequences, const XAttentionOptions& options,
                       Workspace<typename Exec::memory_space>& workspace, const EstimatedHeads& estimate,
                       BlockLayout<typename Exec::memory_space>& layout) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::select_xattention");
    options.validate();
    const detail::SelectionShape shape = detail::check_selection<T, Mem>(query, key, sequences, options.causal);
    require(options.thresholds.empty() || static_cast<int>(options.thresholds.size()) == shape.heads,
            "xattention.thresholds.size()", options.thresholds.size(),
            concat("0 or the number of query heads, ", shape.heads));
    const std::vector<std::int32_t> heads = detail::estimated_heads(estimate, shape.heads);

#if defined(SPARSEATTN_CUDA_KERNELS)
    if constexpr (std::is_same_v<Exec, Kokkos::Cuda> && std::is_same_v<T, bf16>) {
        const detail::SelectionCall call{query, key, sequences, heads};
        if (detail::cuda_select_xattention(exec, call, options, workspace, layout)) return;
    }
#endif
    typename Workspace<Mem>::Frame frame(workspace);
    const Buffers<Mem> buffers = detail::carve<Mem>(
        frame, buffer_plan<Exec>(sequences, static_cast<int>(heads.size()), shape.head_dim, options));
    for (const SequenceShape& sequence : detail::sequence_shapes(sequences, options.block, options.causal)) {
        if (sequence.queries == 0) continue;
        int packed_head = -1;
        for (std::size_t e = 0; e < heads.size(); ++e) {
            const double threshold = options.thresholds.empty() ? options.threshold : options.thresholds[heads[e]];
            if (threshold >= 1 || sequence.keys == 0) {
                detail::visit_every_block(exec, sequence, buffers.mask, static_cast<std::int64_t>(e));
                continue;
            }
            const int kv_head = heads[e] / shape.group();
            if (kv_head != packed_head) {
                const Span2<float, Mem> keys(buffers.keys.data(), ceil_div(sequence.keys, options.stride),
                                             buffers.keys.extent(1));
                detail::pack_rows<Exec, T>(exec, key, {sequence.key_begin, sequence.keys, kv_head}, options.stride, 0,
                                           false, keys);
                packed_head = kv_head;
            }
            estimate_head<Exec, T>(exec, query, heads[e], threshold, sequence, options, buffers,
                                   static_cast<std::int64_t>(e));
        }
    }
    detail::layout_from_mask(exec, sequences, options.block, options.causal, buffers.mask,
                             detail::estimated_head_list(heads, shape.heads), {}, layout);
}

template <class Exec, class T>
BlockLayout<typename Exec::memory_space> select_xattention(const Exec& exec,
                                                           const HeadsView<const T, typename Exec::memory_space>& query,
                                                           const HeadsView<const T, typename Exec::memory_space>& key,
                                                           const Sequences<typename Exec::memory_space>& sequences,
                                                           const XAttentionOptions& options,
                                                           Workspace<typename Exec::memory_space>& workspace,
                                                           const EstimatedHeads& estimate) {
    BlockLayout<typename Exec::memory_space> layout;
    select_xattention<Exec, T>(exec, query, key, sequences, options, workspace, estimate, layout);
    return layout;
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                       \
    template void select_xattention(                                                                               \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const HeadsView<const T, EXEC::memory_space>&, \
        const Sequences<EXEC::memory_space>&, const XAttentionOptions&, Workspace<EXEC::memory_space>&,            \
        const EstimatedHeads&, BlockLayout<EXEC::memory_space>&);                                                  \
    template BlockLayout<EXEC::memory_space> select_xattention(                                                    \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const HeadsView<const T, EXEC::memory_space>&, \
        const Sequences<EXEC::memory_space>&, const XAttentionOptions&, Workspace<EXEC::memory_space>&,            \
        const EstimatedHeads&);                                                                                    \
    template std::size_t xattention_bytes<EXEC, T>(const Sequences<EXEC::memory_space>&, int, int, int,            \
                                                   const XAttentionOptions&);
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
