#include "sparseattn/model/detail/sequence_plan.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/layout/detail/heads.hpp"

namespace sparseattn::detail {
namespace {

// Elements of `values` (one per query head, or none) for some heads.
template <class T>
std::vector<T> of_heads(const std::vector<T>& values, const std::vector<int>& heads) {
    std::vector<T> some;
    if (values.empty()) return some;
    for (const int h : heads) some.push_back(values[static_cast<std::size_t>(h)]);
    return some;
}

LayerSelector of_heads(LayerSelector selector, const std::vector<int>& heads) {
    if (auto* xattention = std::get_if<XAttentionOptions>(&selector.method)) {
        xattention->thresholds = of_heads(xattention->thresholds, heads);
    } else if (auto* minference = std::get_if<MInferenceOptions>(&selector.method)) {
        minference->heads = of_heads(minference->heads, heads);
    }
    selector.heads.fixed = of_heads(selector.heads.fixed, heads);
    return selector;
}

void check_selector(const LayerSelector& selector, const std::string& name, int heads, int block) {
    validate(selector.method);
    require(is_causal(selector.method), name + ".method.causal", "false", "true: a decoder is causal");
    require(block_of(selector.method) == block, name + ".method.block", block_of(selector.method),
            concat("that of the first layer, ", block));
    const auto check_size = [&](const std::string& what, std::size_t size) {
        require(size == 0 || size == static_cast<std::size_t>(heads), concat(name, what, ".size()"), size,
                concat("0 or the number of query heads, ", heads));
    };
    check_size(".heads.fixed", selector.heads.fixed.size());
    if (const auto* xattention = std::get_if<XAttentionOptions>(&selector.method)) {
        check_size(".method.thresholds", xattention->thresholds.size());
    } else if (const auto* minference = std::get_if<MInferenceOptions>(&selector.method)) {
        check_size(".method.heads", minference->heads.size());
    } else if (const auto* flexprefill = std::get_if<FlexPrefillOptions>(&selector.method)) {
        require(!flexprefill->gqa_interleave, name + ".method.gqa_interleave", "true",
                "false: a head's keys must go where the head goes");
    }
}

// Whether a head needs no more than sink and local keys of each token.
bool reaches_little(const std::optional<HeadMode>& mode) {
    return mode && mode->streaming && mode->granularity == Granularity::token && mode->dense_tail == 0;
}

// Numbers in the set of query, key and value heads.
std::vector<int> input_heads(const HeadBatch& heads, const ModelConfig& config, bool queries) {
    std::vector<int> numbers = queries ? heads.queries : std::vector<int>();
    for (const int first : {config.num_attention_heads, config.num_attention_heads + config.num_key_value_heads}) {
        for (const int kv : heads.kv) numbers.push_back(first + kv);
    }
    return numbers;
}

// The parts of documents in a shard; the first one's keys begin with `halo` more.
template <class Mem>
Sequences<Mem> shard_sequences(const IndexRange& shard, const std::vector<std::int32_t>& offsets, std::int64_t halo) {
    std::vector<std::int32_t> queries{0}, keys{0};
    for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
        const std::int64_t begin = std::max<std::int64_t>(offsets[s], shard.begin);
        const std::int64_t end = std::min<std::int64_t>(offsets[s + 1], shard.end);
        if (begin >= end) continue;
        queries.push_back(queries.back() + static_cast<std::int32_t>(end - begin));
        keys.push_back(keys.back() + static_cast<std::int32_t>(end - begin + std::exchange(halo, 0)));
    }
    return Sequences<Mem>(queries, keys);
}

}  // namespace

// ---- layouts of known modes ------------------------------------------------------------------------------------

template <class Exec>
const WholeLayout<typename Exec::memory_space>& ModeLayouts<Exec>::of(const std::vector<HeadMode>& modes) {
    for (const auto& [key, layout] : kept_) {
        if (key == modes) return layout;
    }
    WholeLayout<Mem> layout = build(modes);
    kept_.emplace_back(modes, std::move(layout));
    return kept_.back().second;
}

template <class Exec>
auto ModeLayouts<Exec>::build(const std::vector<HeadMode>& modes) -> WholeLayout<Mem> {
    const bool alike = std::all_of(modes.begin(), modes.end(), [&](const HeadMode& m) { return m == modes[0]; });
    if (alike && modes.size() > 1) {
        // The list of one head serves all.
        WholeLayout<Mem> layout = of({modes[0]});
        const std::vector<Window> windows(modes.size(), layout.lists.host_windows[0]);
        layout.lists.head_list = {};  // the copy's own
        layout.lists.windows = {};
        set_heads(exec_, std::vector<std::int32_t>(modes.size(), 0), windows, layout.lists);
        return layout;
    }
    WholeLayout<Mem> layout;
    layout.lists = build_layout(exec_, sequences_, block_, true, modes);
    layout.transposed = transpose(exec_, sequences_, layout.lists);
    return layout;
}

template <class Exec>
double ModeLayouts<Exec>::visited(const HeadMode& mode) {
    return static_cast<double>(of({mode}).lists.columns.extent(0));
}

// ---- plan of a pack --------------------------------------------------------------------------------------------

template <class Exec>
SequencePlan<Exec>::SequencePlan(const Exec& exec, const ModelConfig& config, const TokenShards& shards, int rank,
                                 const std::vector<std::int32_t>& offsets, const SequenceParallelTask& task,
                                 const SequenceParallelOptions& options)
    : exec_(exec),
      config_(config),
      shards_(shards),
      rank_(rank),
      offsets_(offsets),
      task_(task),
      block_(task.layers.empty() ? 64 : block_of(task.layers[0].method)),
      whole_(exec, Sequences<Mem>(offsets), block_) {
    check();
    layers_.resize(static_cast<std::size_t>(config.num_hidden_layers));
    for (int l = 0; l < config.num_hidden_layers; ++l) plan_layer(l, options);
    std::vector<Route<Mem>*> routes;
    for (LayerExchange<Mem>& layer : layers_) {
        for (ExchangedHeads<Mem>& piece : layer.pieces) routes.insert(routes.end(), {&piece.inputs, &piece.results});
        routes.insert(routes.end(), {&layer.halo.own, &layer.halo.keys, &layer.halo.results});
    }
    upload(exec_, routes);
}

template <class Exec>
void SequencePlan<Exec>::check() const {
    const int layers = config_.num_hidden_layers, heads = config_.num_attention_heads;
    require(shards_.tokens >= shards_.ranks, "offsets.back()", shards_.tokens,
            concat("at least the number of ranks, ", shards_.ranks));
    require(task_.layers.size() == 1 || task_.layers.size() == static_cast<std::size_t>(layers), "task.layers.size()",
            task_.layers.size(), concat("1 or the number of layers, ", layers));
    for (std::size_t l = 0; l < task_.layers.size(); ++l) {
        check_selector(task_.layers[l], concat("task.layers[", l, "]"), heads, block_);
    }
    const auto check_size = [&](const char* name, std::size_t size) {
        const auto all = static_cast<std::size_t>(layers) * static_cast<std::size_t>(heads);
        require(size == 0 || size == all, name, size, concat("0 or layers * query heads, ", all));
    };
    check_size("task.gate.size()", task_.gate.size());
    check_size("task.visited.size()", task_.visited.size());
    for (std::size_t i = 0; i < task_.gate.size(); ++i) {
        require(task_.gate[i] >= 0 && task_.gate[i] <= 1, concat("task.gate[", i, "]"), task_.gate[i], "from 0 to 1");
    }
    for (std::size_t i = 0; i < task_.visited.size(); ++i) {
        require(task_.visited[i] >= 0, concat("task.visited[", i, "]"), task_.visited[i], "at least 0");
    }
}

template <class Exec>
const LayerSelector& SequencePlan<Exec>::selector(int l) const {
    return task_.layers[task_.layers.size() == 1 ? 0 : static_cast<std::size_t>(l)];
}

template <class Exec>
std::vector<std::optional<HeadMode>> SequencePlan<Exec>::known_modes(int l) const {
    const LayerSelector& chosen = selector(l);
    const auto heads = static_cast<std::size_t>(config_.num_attention_heads);
    std::vector<std::optional<HeadMode>> modes(heads, scoreless_mode(chosen.method));
    for (std::size_t h = 0; h < chosen.heads.fixed.size(); ++h) {
        if (chosen.heads.fixed[h]) modes[h] = chosen.heads.fixed[h];
    }
    return modes;
}

template <class Exec>
double SequencePlan<Exec>::cost(int head, float z, const std::optional<HeadMode>& mode) {
    // Both branches of a gated head come out of one pass over the keys.
    if (z > 0) return whole_.visited(HeadMode::dense());
    if (mode) return whole_.visited(*mode);
    return task_.visited.empty() ? whole_.visited(HeadMode::dense()) : task_.visited[static_cast<std::size_t>(head)];
}

template <class Exec>
void SequencePlan<Exec>::plan_layer(int l, const SequenceParallelOptions& options) {
    const int heads = config_.num_attention_heads, group = heads / config_.num_key_value_heads;
    const auto modes = known_modes(l);
    std::vector<double> costs;
    std::vector<int> halo;
    for (int h = 0; h < heads; ++h) {
        const auto& mode = modes[static_cast<std::size_t>(h)];
        const float z = gated() ? task_.gate[static_cast<std::size_t>(l * heads + h)] : 0.0F;
        if (options.halo && z == 0 && reaches_little(mode)) {
            halo.push_back(h);
            costs.push_back(-1);
        } else {
            costs.push_back(cost(l * heads + h, z, mode));
        }
    }
    LayerExchange<Mem>& layer = layers_[static_cast<std::size_t>(l)];
    layer.placement = place_heads(costs, group, shards_.ranks, selector(l).heads.share_groups);
    std::vector<bool> touched(static_cast<std::size_t>(heads + 2 * config_.num_key_value_heads), false);
    plan_pieces(l, modes, options.pieces, touched);
    plan_halo(l, halo, modes, touched);
}

template <class Exec>
void SequencePlan<Exec>::plan_pieces(int l, const std::vector<std::optional<HeadMode>>& modes, int pieces,
                                     std::vector<bool>& touched) {
    LayerExchange<Mem>& layer = layers_[static_cast<std::size_t>(l)];
    const int group = config_.num_attention_heads / config_.num_key_value_heads;
    std::vector<std::vector<HeadBatch>> batches;
    std::size_t most = 0;
    for (const std::vector<int>& owned : layer.placement) {
        batches.push_back(make_batches(owned, group, pieces));
        most = std::max(most, batches.back().size());
    }
    for (std::size_t i = 0; i < most; ++i) {
        std::vector<std::vector<int>> inputs, results;
        HeadBatch mine;
        for (std::size_t r = 0; r < batches.size(); ++r) {
            const HeadBatch batch = i < batches[r].size() ? batches[r][i] : HeadBatch();
            inputs.push_back(input_heads(batch, config_, true));
            results.push_back(batch.queries);
            if (static_cast<int>(r) == rank_) mine = batch;
        }
        std::vector<bool> once(static_cast<std::size_t>(config_.num_attention_heads), false);
        layer.pieces.push_back({heads_plan(l, mine, modes), head_route<Mem>(shards_, rank_, inputs, touched),
                                head_route<Mem>(shards_, rank_, results, once)});
        if (!gated()) continue;
        HeadsPlan<Mem>& heads = layer.pieces.back().heads;
        heads.gate_begin = static_cast<int>(gate_heads_.size());
        for (const int h : mine.queries) gate_heads_.push_back(l * config_.num_attention_heads + h);
    }
}

template <class Exec>
HeadsPlan<typename Exec::memory_space> SequencePlan<Exec>::heads_plan(
    int l, const HeadBatch& heads, const std::vector<std::optional<HeadMode>>& modes) {
    HeadsPlan<Mem> plan;
    plan.heads = heads;
    if (heads.empty()) return plan;
    if (gated()) plan.dense = &whole_.of(std::vector<HeadMode>(heads.queries.size(), HeadMode::dense()));
    const auto mine = of_heads(modes, heads.queries);
    if (std::all_of(mine.begin(), mine.end(), [](const auto& mode) { return mode.has_value(); })) {
        std::vector<HeadMode> known;
        for (const auto& mode : mine) known.push_back(*mode);
        plan.known = &whole_.of(known);
    } else {
        plan.selector = of_heads(selector(l), heads.queries);
    }
    return plan;
}

template <class Exec>
auto SequencePlan<Exec>::halo_frame(std::int64_t sink, std::int64_t local) -> HaloFrame& {
    for (HaloFrame& frame : halo_frames_) {
        if (frame.sink == sink && frame.local == local) return frame;
    }
    std::vector<std::vector<IndexRange>> needs;
    for (int r = 0; r < shards_.ranks; ++r) needs.push_back(halo_rows(shards_, r, offsets_, sink, local));
    std::int64_t halo = 0;
    for (const IndexRange& range : needs[static_cast<std::size_t>(rank_)]) halo += range.count();
    halo_frames_.push_back({sink, local, needs,
                            ModeLayouts<Exec>(exec_, shard_sequences<Mem>(shards_.of(rank_), offsets_, halo), block_)});
    return halo_frames_.back();
}

template <class Exec>
void SequencePlan<Exec>::plan_halo(int l, const std::vector<int>& heads,
                                   const std::vector<std::optional<HeadMode>>& modes, std::vector<bool>& touched) {
    if (heads.empty()) return;
    HaloHeads<Mem>& halo = layers_[static_cast<std::size_t>(l)].halo;
    // Keys between the sinks and the window of the widest head are left out. Distances inside the window stay true, and
    // the last sink is still `local` keys away from the first query: no window reaches what it did not before.
    std::int64_t sink = 0, local = 1;
    for (const int h : heads) {
        sink = std::max<std::int64_t>(sink, modes[static_cast<std::size_t>(h)]->sink);
        local = std::max<std::int64_t>(local, modes[static_cast<std::size_t>(h)]->local);
    }
    HaloFrame& frame = halo_frame(sink, local);
    halo.sequences = &frame.layouts.sequences();
    for (const HeadBatch& batch : make_batches(heads, config_.num_attention_heads / config_.num_key_value_heads, 1)) {
        HeadsPlan<Mem> call;
        call.heads = batch;
        std::vector<HeadMode> known;
        for (const int h : batch.queries) known.push_back(*modes[static_cast<std::size_t>(h)]);
        call.known = &frame.layouts.of(known);
        halo.calls.push_back(call);
        halo.queries.insert(halo.queries.end(), batch.queries.begin(), batch.queries.end());
        halo.kv.insert(halo.kv.end(), batch.kv.begin(), batch.kv.end());
    }
    const std::vector<std::vector<IndexRange>> nothing(frame.needs.size());
    std::vector<bool> once(static_cast<std::size_t>(config_.num_attention_heads), false);
    halo.own = halo_route<Mem>(shards_, rank_, nothing, halo.queries, touched);
    halo.keys = halo_route<Mem>(shards_, rank_, frame.needs, input_heads({{}, halo.kv}, config_, false), touched);
    halo.results = halo_route<Mem>(shards_, rank_, nothing, halo.queries, once);
}

template class ModeLayouts<Kokkos::DefaultExecutionSpace>;
template class SequencePlan<Kokkos::DefaultExecutionSpace>;

}  // namespace sparseattn::detail
