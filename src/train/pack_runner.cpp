#include "sparseattn/train/detail/pack_runner.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn::detail {
namespace {

using HostFloats = Kokkos::View<float**, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged>;

struct Layout {
    BlockLayout<TrainMem> lists;
    TransposedLayout<TrainMem> transposed;

    Layout() = default;
    Layout(const TrainExec& exec, const Sequences<TrainMem>& sequences, const PackSettings& settings,
           const std::vector<HeadMode>& modes)
        : lists(build_layout(exec, sequences, settings.block, true, modes)),
          transposed(transpose(exec, sequences, lists)) {}
};

// Labels of some tokens that count.
std::int64_t labels_in(const PackedTokens& pack, const IndexRange& range) {
    return std::count_if(pack.labels.begin() + range.begin, pack.labels.begin() + range.end,
                         [](std::int32_t label) { return label >= 0; });
}

// The tokens of `range`, with the pieces of documents that they are.
PackedTokens cut(const PackedTokens& pack, const IndexRange& range) {
    const auto take = [&](const std::vector<std::int32_t>& all) {
        return std::vector<std::int32_t>(all.begin() + range.begin, all.begin() + range.end);
    };
    PackedTokens part{take(pack.tokens), take(pack.labels), take(pack.positions), {0}};
    for (const std::int32_t offset : pack.offsets) {
        if (offset > range.begin && offset < range.end) {
            part.offsets.push_back(static_cast<std::int32_t>(offset - range.begin));
        }
    }
    part.offsets.push_back(static_cast<std::int32_t>(range.count()));
    return part;
}

}  // namespace

Batch<TrainMem> make_batch(const TrainExec& exec, const PackedTokens& pack) {
    Batch<TrainMem> batch;
    batch.sequences = Sequences<TrainMem>(pack.offsets);
    batch.tokens = to_device(exec, "SparseAttn::batch.tokens", pack.tokens);
    batch.positions = to_device(exec, "SparseAttn::batch.positions", pack.positions);
    batch.labels = to_device(exec, "SparseAttn::batch.labels", pack.labels);
    batch.label_count = count_labels(pack);
    return batch;
}

std::int64_t count_labels(const PackedTokens& pack) {
    return labels_in(pack, {0, static_cast<std::int64_t>(pack.labels.size())});
}

std::vector<LayerSelector> layer_selectors(const SparseBranch& branch) {
    std::vector<LayerSelector> layers;
    for (const SelectorOptions& method : branch.layers) layers.push_back({method, {}});
    return layers;
}

PackSettings pack_settings(const TrainOptions& options) {
    return {options.block,
            options.implementation,
            make_sparse_branch(options.sparsity, options.model, options.block),
            {options.recompute, options.loss_block},
            options.gpu_aware};
}

SequenceParallelOptions spread_options(const PackSettings& settings) {
    SequenceParallelOptions options;
    options.attention.implementation = settings.implementation;
    options.gpu_aware = settings.gpu_aware;
    return options;
}

SequenceParallelTask spread_task(const PackSettings& settings, std::vector<float> gate) {
    if (gate.empty()) return {{{FullOptions{settings.block, true}, {}}}, {}};
    if (settings.sparse.selects()) return {layer_selectors(settings.sparse), std::move(gate)};
    const HeadMode& mode = settings.sparse.mode;
    StreamingOptions streaming;
    streaming.block = settings.block;
    streaming.sink = mode.sink;
    streaming.local = mode.local;
    streaming.granularity = mode.granularity;
    streaming.dense_tail = mode.dense_tail;
    return {{{streaming, {}}}, std::move(gate)};
}

PackRunner::PackRunner(const TrainExec& exec, const ModelConfig& config, const PackSettings& settings, ProcessGrid grid)
    : exec_(exec), settings_(settings), grid_(std::move(grid)), decoder_(exec, config) {
    if (grid_.seq_parallel() > 1) {
        spread_ = std::make_unique<SequenceParallelAttention<TrainExec, float>>(exec, grid_.sequence(), config,
                                                                                spread_options(settings_));
        return;
    }
    if (settings_.sparse.selects()) {
        selected_.emplace(layer_selectors(settings_.sparse), AttentionOptions{0.0, settings_.implementation}, true);
    }
    gate_ = Array2<float, TrainMem>("SparseAttn::gate", config.num_hidden_layers, config.num_attention_heads);
    dgate_ = Array2<float, TrainMem>("SparseAttn::dgate", config.num_hidden_layers, config.num_attention_heads);
}

std::int64_t PackRunner::count_labels(const PackedTokens& pack) const {
    return labels_in(pack, grid_.tokens(static_cast<std::int64_t>(pack.labels.size())));
}

// work(this rank's batch, attention of the pack) with the gates of query heads.
template <class Work>
double PackRunner::with_attention(const PackedTokens& pack, const HeadMap* gates, const Work& work) {
    std::vector<float> gate;
    const ModelConfig& config = decoder_.config();
    if (gates != nullptr) gate = expand_to_query_heads(*gates, config.num_attention_heads / config.num_key_value_heads);
    if (spread_) {
        spread_->begin_pack(pack.offsets, spread_task(settings_, std::move(gate)));
        const IndexRange mine = grid_.tokens(static_cast<std::int64_t>(pack.tokens.size()));
        return work(make_batch(exec_, cut(pack, mine)), *spread_);
    }
    const Batch<TrainMem> batch = make_batch(exec_, pack);
    const std::vector<HeadMode> dense(static_cast<std::size_t>(config.num_attention_heads), HeadMode::dense());
    const Layout full(exec_, batch.sequences, settings_, dense);
    const LayoutPair<TrainMem> full_pair{full.lists, full.transposed};
    AttentionPlan<TrainMem> plan{full_pair, nullptr, {}, {0.0, settings_.implementation}};
    if (gates == nullptr) {
        planned_.set(plan);
        return work(batch, planned_);
    }
    Kokkos::deep_copy(exec_, gate_, HostFloats(gate.data(), gate_.extent(0), gate_.extent(1)));
    Kokkos::deep_copy(exec_, dgate_, 0.0F);
    if (selected_) {
        selected_->set_gates({full_pair, gate_, dgate_, gate});
        return work(batch, *selected_);
    }
    const Layout sparse(exec_, batch.sequences, settings_, std::vector<HeadMode>(dense.size(), settings_.sparse.mode));
    const LayoutPair<TrainMem> sparse_pair{sparse.lists, sparse.transposed};
    plan.sparse = &sparse_pair;
    plan.gate = gate_;
    planned_.set(plan, dgate_);
    return work(batch, planned_);  // waits for exec_, so that `gate` and the layouts may go
}

// d(loss)/d(gate) of query heads, of the last pack's passes.
std::vector<float> PackRunner::gate_gradients() {
    if (spread_) return spread_->gate_gradients();
    std::vector<float> host(dgate_.size());
    Kokkos::deep_copy(exec_, HostFloats(host.data(), dgate_.extent(0), dgate_.extent(1)), dgate_);
    fence(exec_, "SparseAttn::dgate");
    return host;
}

double PackRunner::loss(const PackedTokens& pack, const HeadMap* gates,
                        const Span1<const float, TrainMem>& parameters) {
    return with_attention(pack, gates, [&](const auto& batch, auto& attention) {
        return decoder_.loss(batch, attention, parameters, settings_.memory.loss_block);
    });
}

double PackRunner::loss_and_gradients(const PackedTokens& pack, const HeadMap* gates,
                                      const Span1<const float, TrainMem>& parameters, double scale,
                                      const Span1<float, TrainMem>& gradients, HeadMap& dgates,
                                      const GradientsFinal& final) {
    const double loss = with_attention(pack, gates, [&](const auto& batch, auto& attention) {
        return decoder_.loss_and_gradients(batch, attention, parameters, static_cast<float>(scale), gradients,
                                           settings_.memory, final);
    });
    if (gates != nullptr) {
        const int group = decoder_.config().num_attention_heads / gates->heads;
        dgates = sum_over_groups(gate_gradients(), gates->layers, gates->heads, group);
    }
    return loss;
}

}  // namespace sparseattn::detail
