#include "sparseattn/select/minference.hpp"

#include <algorithm>
#include <cmath>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/layout/combine.hpp"
#include "sparseattn/select/detail/cuda.hpp"
#include "sparseattn/select/detail/minference.hpp"

namespace sparseattn {
namespace {

using detail::pattern_of;
using Options = MInferenceOptions;
using Type = MInferencePattern::Type;

bool looks_at_scores(Type type) {
    return type == Type::vertical_and_slash || type == Type::block_sparse;
}

int scaled(int size, double ratio) {
    return static_cast<int>(std::min(std::floor(size * ratio), 1073741824.0));
}

// What heads without scores do.
HeadMode mode_of(const Options& options, const MInferencePattern& pattern) {
    if (pattern.type == Type::dense) return HeadMode::dense();
    return HeadMode::stream(scaled(pattern.first, options.size_ratio),
                            std::max(1, scaled(pattern.second, options.size_ratio)), Granularity::token,
                            pattern.type == Type::tri_shape ? options.tri_shape_tail : 0);
}

std::vector<std::int32_t> scored_heads(const Options& options, const std::vector<std::int32_t>& estimate) {
    std::vector<std::int32_t> heads;
    for (const std::int32_t head : estimate) {
        if (looks_at_scores(pattern_of(options, head).type)) heads.push_back(head);
    }
    return heads;
}

// room.scored with the modes of the heads that look at no scores.
template <class Exec>
void add_scoreless(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, const Options& options,
                   const std::vector<std::int32_t>& estimated, Workspace<typename Exec::memory_space>& workspace,
                   SelectionRoom<typename Exec::memory_space>& room, BlockLayout<typename Exec::memory_space>& layout) {
    std::vector<int> pick(room.scored.heads, 0);
    std::vector<HeadMode> modes(pick.size());
    for (const std::int32_t head : estimated) {
        const MInferencePattern pattern = pattern_of(options, head);
        if (looks_at_scores(pattern.type)) continue;
        const bool first = std::find(pick.begin(), pick.end(), 1) == pick.end();
        if (first) std::fill(modes.begin(), modes.end(), mode_of(options, pattern));  // no list more for the others
        modes[head] = mode_of(options, pattern);
        pick[head] = 1;
    }
    build_layout(exec, sequences, options.block, true, modes, room.fixed);
    combine(exec, sequences, {&room.scored, &room.fixed}, pick, workspace, layout);
}

void check_patterns(const Options& options, int heads) {
    options.validate();
    require(options.heads.empty() || static_cast<int>(options.heads.size()) == heads, "minference.heads.size()",
            options.heads.size(), concat("0 or the number of query heads, ", heads));
}

#if defined(SPARSEATTN_CUDA_KERNELS)
// What the kernels of cuda/ are told; nothing when a head is not vertical_and_slash.
std::optional<detail::ProfileSizes> profile_sizes(const Options& options, const std::vector<std::int32_t>& heads,
                                                  const Sequences<detail::CudaMem>& sequences) {
    detail::ProfileSizes result;
    if (options.adaptive_budget) {
        result.column_share = 0.2 * *options.adaptive_budget;
        result.distance_share = 0.8 * *options.adaptive_budget;
    }
    for (const std::int32_t head : heads) {
        const MInferencePattern pattern = pattern_of(options, head);
        if (pattern.type != Type::vertical_and_slash) return std::nullopt;
        result.columns.push_back(scaled(pattern.first, options.size_ratio));
        result.distances.push_back(scaled(pattern.second, options.size_ratio));
    }
    result.most_columns = detail::most_kept_columns(sequences, options, heads);
    return result;
}
#endif

// The heads whose scores are looked at.
template <class Exec, class T>
void select_scored(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                   const HeadsView<const T, typename Exec::memory_space>& key,
                   const Sequences<typename Exec::memory_space>& sequences, const detail::SelectionShape& shape,
                   const Options& options, const std::vector<std::int32_t>& heads,
                   Workspace<typename Exec::memory_space>& workspace,
                   BlockLayout<typename Exec::memory_space>& layout) {
#if defined(SPARSEATTN_CUDA_KERNELS)
    if constexpr (std::is_same_v<Exec, Kokkos::Cuda> && std::is_same_v<T, bf16>) {
        const auto wanted = profile_sizes(options, heads, sequences);
        const detail::SelectionCall call{query, key, sequences, heads};
        if (wanted && detail::cuda_select_minference(exec, call, options.block, *wanted, workspace, layout)) return;
    }
#endif
    detail::select_scored_heads<Exec, T>(exec, query, key, sequences, shape, options, heads, workspace, layout);
}

}  // namespace

namespace detail {

MInferencePattern pattern_of(const MInferenceOptions& options, int head) {
    return options.heads.empty() ? MInferencePattern{} : options.heads[head];
}

KeptCounts kept_counts(const MInferenceOptions& options, const MInferencePattern& pattern, int n) {
    int columns = scaled(pattern.first, options.size_ratio), distances = scaled(pattern.second, options.size_ratio);
    if (options.adaptive_budget) {
        columns = scaled(n, 0.2 * *options.adaptive_budget);
        distances = scaled(n, 0.8 * *options.adaptive_budget);
    }
    return {std::min(n, std::max(columns, Options::forced_columns)),
            std::min(n, std::max({distances, Options::least_distances, Options::forced_distances}))};
}

template <class Mem>
std::int64_t most_kept_columns(const Sequences<Mem>& sequences, const MInferenceOptions& options,
                               const std::vector<std::int32_t>& heads) {
    int longest = 0;
    for (int s = 0; s < sequences.count(); ++s) longest = std::max(longest, sequences.key_length(s));
    std::int64_t most = 0;
    for (const std::int32_t head : heads) {
        const MInferencePattern pattern = pattern_of(options, head);
        if (pattern.type != Type::vertical_and_slash) continue;
        most = std::max<std::int64_t>(most, kept_counts(options, pattern, longest).columns);
    }
    return most;
}

}  // namespace detail

template <class Exec, class T>
std::size_t minference_bytes(const Sequences<typename Exec::memory_space>& sequences, int heads, int kv_heads,
                             int head_dim, const MInferenceOptions& options) {
    check_patterns(options, heads);
    const std::vector<std::int32_t> scored = scored_heads(options, detail::estimated_heads({}, heads));
    const detail::SelectionShape shape{heads, kv_heads, head_dim};
#if defined(SPARSEATTN_CUDA_KERNELS)
    if constexpr (std::is_same_v<Exec, Kokkos::Cuda> && std::is_same_v<T, bf16>) {
        if (const auto wanted = profile_sizes(options, scored, sequences)) {
            const auto call = detail::planned_call(sequences, shape, scored);
            const std::size_t bytes = detail::cuda_minference_bytes(call, options.block, *wanted);
            if (bytes > 0) return bytes;
        }
    }
#endif
    return detail::scored_heads_bytes(sequences, shape, options, scored);
}

template <class Exec, class T>
void select_minference(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                       const HeadsView<const T, typename Exec::memory_space>& key,
                       const Sequences<typename Exec::memory_space>& sequences, const MInferenceOptions& options,
                       Workspace<typename Exec::memory_space>& workspace, const EstimatedHeads& estimate,
                       SelectionRoom<typename Exec::memory_space>& room,
                       BlockLayout<typename Exec::memory_space>& layout) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::select_minference");
    const detail::SelectionShape shape = detail::check_selection<T, Mem>(query, key, sequences, true);
    check_patterns(options, shape.heads);
    const std::vector<std::int32_t> estimated = detail::estimated_heads(estimate, shape.heads);
    const std::vector<std::int32_t> heads = scored_heads(options, estimated);
    const bool all_scored = heads.size() == estimated.size();
    select_scored<Exec, T>(exec, query, key, sequences, shape, options, heads, workspace,
                           all_scored ? layout : room.scored);
    if (!all_scored) add_scoreless(exec, sequences, options, estimated, workspace, room, layout);
}

template <class Exec, class T>
BlockLayout<typename Exec::memory_space> select_minference(const Exec& exec,
                                                           const HeadsView<const T, typename Exec::memory_space>& query,
                                                           const HeadsView<const T, typename Exec::memory_space>& key,
                                                           const Sequences<typename Exec::memory_space>& sequences,
                                                           const MInferenceOptions& options,
                                                           Workspace<typename Exec::memory_space>& workspace,
                                                           const EstimatedHeads& estimate) {
    BlockLayout<typename Exec::memory_space> layout;
    SelectionRoom<typename Exec::memory_space> room;
    select_minference<Exec, T>(exec, query, key, sequences, options, workspace, estimate, room, layout);
    return layout;
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                       \
    template void select_minference(                                                                               \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const HeadsView<const T, EXEC::memory_space>&, \
        const Sequences<EXEC::memory_space>&, const MInferenceOptions&, Workspace<EXEC::memory_space>&,            \
        const EstimatedHeads&, SelectionRoom<EXEC::memory_space>&, BlockLayout<EXEC::memory_space>&);              \
    template BlockLayout<EXEC::memory_space> select_minference(                                                    \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const HeadsView<const T, EXEC::memory_space>&, \
        const Sequences<EXEC::memory_space>&, const MInferenceOptions&, Workspace<EXEC::memory_space>&,            \
        const EstimatedHeads&);                                                                                    \
    template std::size_t minference_bytes<EXEC, T>(const Sequences<EXEC::memory_space>&, int, int, int,            \
                                                   const MInferenceOptions&);
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
#define SPARSEATTN_INSTANTIATE_MEMORY(MEM)                                                           \
    template std::int64_t detail::most_kept_columns(const Sequences<MEM>&, const MInferenceOptions&, \
                                                    const std::vector<std::int32_t>&);
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE_MEMORY)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
