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

std::int64_t labels_in(const PackedTokens& pack, const IndexRange& range) {
    return std::count_if(pack.labels.begin() + range.begin, pack.labels.begin() + range.end,
                         [](std::int32_t label) { return label >= 0; });
}

Batch<TrainMem> make_batch(const TrainExec& exec, const PackedTokens& pack) {
    Batch<TrainMem> batch;
    batch.sequences = Sequences<TrainMem>(pack.offsets);
    batch.tokens = to_device(exec, "SparseAttn::batch.tokens", pack.tokens);
    batch.positions = to_device(exec, "SparseAttn::batch.positions", pack.positions);
    batch.labels = to_device(exec, "SparseAttn::batch.labels", pack.labels);
    batch.label_count = labels_in(pack, {0, static_cast<std::int64_t>(pack.labels.size())});
    return batch;
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

PackRunner::PackRunner(const TrainExec& exec, const ModelConfig& config, const PackSettings& settings, ProcessGrid grid)
    : exec_(exec),
      settings_(settings),
      grid_(std::move(grid)),
      decoder_(exec, config),
      gate_("SparseAttn::gate", config.num_hidden_layers, config.num_attention_heads),
      dgate_("SparseAttn::dgate", config.num_hidden_layers, config.num_attention_heads) {}

std::int64_t PackRunner::count_labels(const PackedTokens& pack) const {
    return labels_in(pack, grid_.tokens(static_cast<std::int64_t>(pack.labels.size())));
}

template <class Work>
double PackRunner::with_plan(const PackedTokens& pack, const HeadMap* gates, const Work& work) {
    const ModelConfig& config = decoder_.config();
    const IndexRange mine = grid_.tokens(static_cast<std::int64_t>(pack.tokens.size()));
    const Batch<TrainMem> batch = make_batch(exec_, grid_.seq_parallel() == 1 ? pack : cut(pack, mine));
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
        planned_.set(plan);
        return decoder_.loss(batch, planned_, parameters, settings_.memory.loss_block);
    });
}

double PackRunner::loss_and_gradients(const PackedTokens& pack, const HeadMap* gates,
                                      const Span1<const float, TrainMem>& parameters, double scale,
                                      const Span1<float, TrainMem>& gradients, HeadMap& dgates,
                                      const GradientsFinal& final) {
    Kokkos::deep_copy(exec_, dgate_, 0.0F);
    const double loss = with_plan(pack, gates, [&](const auto& batch, const auto& plan) {
        const Span2<float, TrainMem> dgate = plan.gated() ? Span2<float, TrainMem>(dgate_) : Span2<float, TrainMem>();
        planned_.set(plan, dgate);
        return decoder_.loss_and_gradients(batch, planned_, parameters, static_cast<float>(scale), gradients,
                                           settings_.memory, final);
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
