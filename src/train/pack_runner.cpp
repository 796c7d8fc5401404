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

PackRunner::PackRunner(const TrainExec& exec, const ModelConfig& config, const PackSettings& settings)
    : exec_(exec),
      settings_(settings),
      decoder_(exec, config),
      gate_("SparseAttn::gate", config.num_hidden_layers, config.num_attention_heads),
      dgate_("SparseAttn::dgate", config.num_hidden_layers, config.num_attention_heads) {}

template <class Work>
double PackRunner::with_plan(const PackedTokens& pack, const HeadMap* gates, const Work& work) {
    const ModelConfig& config = decoder_.config();
    const Batch<TrainMem> batch = make_batch(exec_, pack);
    const std::vector<HeadMode> dense(static_cast<std::size_t>(config.num_attention_heads), HeadMode::dense());
    const Layout full(exec_, batch.sequences, settings_, dense);
    AttentionPlan<TrainMem> plan{{full.lists, full.transposed}, nullptr, {}, {0.0, settings_.implementation}};
    if (gates == nullptr) return work(batch, plan);

    const std::vector<HeadMode> streaming(dense.size(), settings_.sparse);
    const Layout sparse(exec_, batch.sequences, settings_, streaming);
    const LayoutPair<TrainMem> sparse_pair{sparse.lists, sparse.transposed};
    std::vector<float> expanded =
        expand_to_query_heads(*gates, config.num_attention_heads / config.num_key_value_heads);
    Kokkos::deep_copy(exec_, gate_, HostFloats(expanded.data(), gate_.extent(0), gate_.extent(1)));
    plan.sparse = &sparse_pair;
    plan.gate = gate_;
    return work(batch, plan);  // waits for exec_, so that `expanded` and the layouts may go
}

double PackRunner::loss(const PackedTokens& pack, const HeadMap* gates,
                        const Span1<const float, TrainMem>& parameters) {
    return with_plan(pack, gates, [&](const auto& batch, const auto& plan) {
        return decoder_.loss(batch, plan, parameters, settings_.memory.loss_block);
    });
}

double PackRunner::loss_and_gradients(const PackedTokens& pack, const HeadMap* gates,
                                      const Span1<const float, TrainMem>& parameters, double scale,
                                      const Span1<float, TrainMem>& gradients, HeadMap& dgates) {
    Kokkos::deep_copy(exec_, dgate_, 0.0F);
    const double loss = with_plan(pack, gates, [&](const auto& batch, const auto& plan) {
        const Span2<float, TrainMem> dgate = plan.gated() ? Span2<float, TrainMem>(dgate_) : Span2<float, TrainMem>();
        return decoder_.loss_and_gradients(batch, plan, parameters, static_cast<float>(scale), gradients, dgate,
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
