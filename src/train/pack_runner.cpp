#include "sparseattn/train/detail/pack_runner.hpp"

#include <algorithm>
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
    return std::count_if(pack.labels.begin(), pack.labels.end(), [](std::int32_t label) { return label >= 0; });
}

std::vector<LayerSelector> layer_selectors(const SparseBranch& branch) {
    std::vector<LayerSelector> layers;
    for (const SelectorOptions& method : branch.layers) layers.push_back({method, {}});
    return layers;
}

PackRunner::PackRunner(const TrainExec& exec, const ModelConfig& config, const PackSettings& settings)
    : exec_(exec),
      settings_(settings),
      decoder_(exec, config),
      gate_("SparseAttn::gate", config.num_hidden_layers, config.num_attention_heads),
      dgate_("SparseAttn::dgate", config.num_hidden_layers, config.num_attention_heads) {
    if (settings.sparse.selects()) {
        selected_.emplace(layer_selectors(settings.sparse), AttentionOptions{0.0, settings.implementation}, true);
    }
}

template <class Work>
double PackRunner::with_attention(const PackedTokens& pack, const HeadMap* gates, bool gradients, const Work& work) {
    const ModelConfig& config = decoder_.config();
    const Batch<TrainMem> batch = make_batch(exec_, pack);
    const std::vector<HeadMode> dense(static_cast<std::size_t>(config.num_attention_heads), HeadMode::dense());
    const Layout full(exec_, batch.sequences, settings_, dense);
    const LayoutPair<TrainMem> full_pair{full.lists, full.transposed};
    AttentionPlan<TrainMem> plan{full_pair, nullptr, {}, {0.0, settings_.implementation}};
    if (gates == nullptr) {
        planned_.set(plan);
        return work(batch, planned_);
    }
    std::vector<float> expanded =
        expand_to_query_heads(*gates, config.num_attention_heads / config.num_key_value_heads);
    Kokkos::deep_copy(exec_, gate_, HostFloats(expanded.data(), gate_.extent(0), gate_.extent(1)));
    const Span2<float, TrainMem> dgate = gradients ? Span2<float, TrainMem>(dgate_) : Span2<float, TrainMem>();
    if (selected_) {
        selected_->set_gates({full_pair, gate_, dgate, expanded});
        return work(batch, *selected_);
    }
    const Layout sparse(exec_, batch.sequences, settings_, std::vector<HeadMode>(dense.size(), settings_.sparse.mode));
    const LayoutPair<TrainMem> sparse_pair{sparse.lists, sparse.transposed};
    plan.sparse = &sparse_pair;
    plan.gate = gate_;
    planned_.set(plan, dgate);
    return work(batch, planned_);  // waits for exec_, so that `expanded` and the layouts may go
}

double PackRunner::loss(const PackedTokens& pack, const HeadMap* gates,
                        const Span1<const float, TrainMem>& parameters) {
    return with_attention(pack, gates, false, [&](const auto& batch, auto& attention) {
        return decoder_.loss(batch, attention, parameters, settings_.memory.loss_block);
    });
}

double PackRunner::loss_and_gradients(const PackedTokens& pack, const HeadMap* gates,
                                      const Span1<const float, TrainMem>& parameters, double scale,
                                      const Span1<float, TrainMem>& gradients, HeadMap& dgates) {
    Kokkos::deep_copy(exec_, dgate_, 0.0F);
    const double loss = with_attention(pack, gates, true, [&](const auto& batch, auto& attention) {
        return decoder_.loss_and_gradients(batch, attention, parameters, static_cast<float>(scale), gradients,
                                           settings_.memory);
    });
    if (gates != nullptr) {
        std::vector<float> host(dgate_.size());
        Kokkos::deep_copy(exec_, HostFloats(host.data(), dgate_.extent(0), dgate_.extent(1)), dgate_);
        fence(exec_, "SparseAttn::dgate");
        dgates = sum_over_groups(host, gates->layers, gates->heads, static_cast<int>(dgate_.extent(1)) / gates->heads);
    }
    return loss;
}

}  // namespace sparseattn::detail
