#include "sparseattn/select/selector.hpp"

#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/combine.hpp"
#include "sparseattn/select/detail/mask.hpp"
#include "sparseattn/select/detail/minference.hpp"

namespace sparseattn {
namespace {

template <class Exec, class T>
void estimate(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
              const HeadsView<const T, typename Exec::memory_space>& key,
              const Sequences<typename Exec::memory_space>& sequences, const SelectorOptions& options,
              Workspace<typename Exec::memory_space>& workspace, const std::vector<std::int32_t>& heads,
              SelectionRoom<typename Exec::memory_space>& room, BlockLayout<typename Exec::memory_space>& layout) {
    if (const auto* xattention = std::get_if<XAttentionOptions>(&options)) {
        select_xattention<Exec, T>(exec, query, key, sequences, *xattention, workspace, heads, layout);
    } else if (const auto* flexprefill = std::get_if<FlexPrefillOptions>(&options)) {
        select_flexprefill<Exec, T>(exec, query, key, sequences, *flexprefill, workspace, heads, layout);
    } else {
        select_minference<Exec, T>(exec, query, key, sequences, std::get<MInferenceOptions>(options), workspace, heads,
                                   room, layout);
    }
}

}  // namespace

bool is_causal(const SelectorOptions& options) {
    return std::visit(
        [](const auto& method) {
            if constexpr (requires { method.causal; }) return method.causal;
            return true;
        },
        options);
}

std::optional<HeadMode> scoreless_mode(const SelectorOptions& options) {
    if (std::holds_alternative<FullOptions>(options)) return HeadMode::dense();
    if (const auto* streaming = std::get_if<StreamingOptions>(&options)) {
        return HeadMode::stream(streaming->sink, streaming->local, streaming->granularity, streaming->dense_tail);
    }
    return std::nullopt;
}

int block_of(const SelectorOptions& options) {
    return std::visit([](const auto& method) { return method.block; }, options);
}

template <class Exec, class T>
void select(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
            const HeadsView<const T, typename Exec::memory_space>& key,
            const Sequences<typename Exec::memory_space>& sequences, const SelectorOptions& options,
            Workspace<typename Exec::memory_space>& workspace, const HeadPlan& plan,
            SelectionRoom<typename Exec::memory_space>& room, BlockLayout<typename Exec::memory_space>& layout) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::select");
    validate(options);
    // Causal sequences with fewer keys than queries are refused by the methods that estimate.
    const detail::SelectionShape shape = detail::check_selection<T, Mem>(query, key, sequences, false);
    require(plan.fixed.empty() || static_cast<int>(plan.fixed.size()) == shape.heads, "plan.fixed.size()",
            plan.fixed.size(), concat("0 or the number of query heads, ", shape.heads));

    const std::optional<HeadMode> scoreless = scoreless_mode(options);
    std::optional<HeadMode> filler = scoreless;  // of heads whose mode is not picked: one that makes no list more
    for (const std::optional<HeadMode>& mode : plan.fixed) filler = filler ? filler : mode;
    std::vector<HeadMode> modes(shape.heads, filler.value_or(HeadMode::dense()));
    std::vector<int> pick(shape.heads, 0);  // 0: estimated, 1: by mode
    std::vector<std::int32_t> heads;
    for (int h = 0; h < shape.heads; ++h) {
        const bool fixed = !plan.fixed.empty() && plan.fixed[h].has_value();
        if (fixed) modes[h] = *plan.fixed[h];
        pick[h] = fixed || scoreless ? 1 : 0;
        if (pick[h] == 0) heads.push_back(h);
    }
    const int block = block_of(options);
    if (heads.empty()) return build_layout(exec, sequences, block, is_causal(options), modes, layout);
    const bool all = static_cast<int>(heads.size()) == shape.heads;
    BlockLayout<Mem>& estimated = all && !plan.share_groups ? layout : room.estimated;
    BlockLayout<Mem>& shared = all ? layout : room.shared;
    estimate<Exec, T>(exec, query, key, sequences, options, workspace, heads, room, estimated);
    if (plan.share_groups) share_in_groups(exec, sequences, estimated, shape.group(), workspace, shared);
    if (all) return;
    build_layout(exec, sequences, block, is_causal(options), modes, room.fixed);
    combine(exec, sequences, {plan.share_groups ? &shared : &estimated, &room.fixed}, pick, workspace, layout);
}

template <class Exec, class T>
BlockLayout<typename Exec::memory_space> select(
    const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
    const HeadsView<const T, typename Exec::memory_space>& key, const Sequences<typename Exec::memory_space>& sequences,
    const SelectorOptions& options, Workspace<typename Exec::memory_space>& workspace, const HeadPlan& plan) {
    BlockLayout<typename Exec::memory_space> layout;
    SelectionRoom<typename Exec::memory_space> room;
    select<Exec, T>(exec, query, key, sequences, options, workspace, plan, room, layout);
    return layout;
}

template <class Exec, class T>
std::size_t selection_bytes(const Sequences<typename Exec::memory_space>& sequences, int heads, int kv_heads,
                            int head_dim, const SelectorOptions& options) {
    require(kv_heads >= 1 && heads >= 1 && heads % kv_heads == 0, "kv_heads", kv_heads,
            concat("a divisor of heads, ", heads));
    if (const auto* xattention = std::get_if<XAttentionOptions>(&options)) {
        return xattention_bytes<Exec, T>(sequences, heads, kv_heads, head_dim, *xattention);
    }
    if (const auto* flexprefill = std::get_if<FlexPrefillOptions>(&options)) {
        return flexprefill_bytes<Exec, T>(sequences, heads, kv_heads, head_dim, *flexprefill);
    }
    if (const auto* minference = std::get_if<MInferenceOptions>(&options)) {
        return minference_bytes<Exec, T>(sequences, heads, kv_heads, head_dim, *minference);
    }
    return 0;
}

template <class Mem>
std::int64_t selected_layout_bytes(const Sequences<Mem>& sequences, int heads, const SelectorOptions& options,
                                   bool transposed) {
    constexpr std::int64_t entry = sizeof(std::int32_t), offset = sizeof(std::int64_t);
    const int block = block_of(options);
    const std::int64_t rows = detail::mask_rows(sequences, block);
    std::int64_t blocks = 0;  // of keys
    for (int s = 0; s < sequences.count(); ++s) blocks += (sequences.key_length(s) + block - 1) / block;
    const std::int64_t listed = entry * detail::most_blocks(sequences, block, is_causal(options), heads);
    std::int64_t bytes = listed + offset * heads * rows, of_transpose = listed + offset * heads * blocks;
    if (const auto* minference = std::get_if<MInferenceOptions>(&options)) {
        const auto columns = detail::most_kept_columns(sequences, *minference, detail::estimated_heads({}, heads));
        const std::int64_t kept =
            host_accessible<Mem> ? 0 : entry * detail::most_single_keys(sequences, block, heads, columns);
        bytes += kept + offset * heads * rows;
        of_transpose += kept + offset * heads * sequences.keys();
    }
    return transposed ? bytes + of_transpose : bytes;
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                      \
    template void select(const EXEC&, const HeadsView<const T, EXEC::memory_space>&,                              \
                         const HeadsView<const T, EXEC::memory_space>&, const Sequences<EXEC::memory_space>&,     \
                         const SelectorOptions&, Workspace<EXEC::memory_space>&, const HeadPlan&,                 \
                         SelectionRoom<EXEC::memory_space>&, BlockLayout<EXEC::memory_space>&);                   \
    template BlockLayout<EXEC::memory_space> select(const EXEC&, const HeadsView<const T, EXEC::memory_space>&,   \
                                                    const HeadsView<const T, EXEC::memory_space>&,                \
                                                    const Sequences<EXEC::memory_space>&, const SelectorOptions&, \
                                                    Workspace<EXEC::memory_space>&, const HeadPlan&);             \
    template std::size_t selection_bytes<EXEC, T>(const Sequences<EXEC::memory_space>&, int, int, int,            \
                                                  const SelectorOptions&);
#define SPARSEATTN_INSTANTIATE_MEMORY(MEM) \
    template std::int64_t selected_layout_bytes(const Sequences<MEM>&, int, const SelectorOptions&, bool);
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE_MEMORY)
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
