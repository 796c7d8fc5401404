#include "sparseattn/train/detail/pack_runner.hpp"

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/detail/layers.hpp"

namespace sparseattn::detail {
namespace {

using HostFloats = Kokkos::View<float**, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged>;

using HostInts = Kokkos::View<const std::int32_t*, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged>;

// One layout for all heads, with its transpose; kept from pack to pack, made anew when the documents are others.
class KeptLayout {
  public:
    LayoutPair<TrainMem> of(const TrainExec& exec, const Sequences<TrainMem>& sequences, int block,
                            const std::vector<HeadMode>& modes) {
        if (made_for_ != sequences.id() || modes_ != modes) {
            build_layout(exec, sequences, block, true, modes, lists_);
            transpose(exec, sequences, lists_, transposed_);
            made_for_ = sequences.id();
            modes_ = modes;
        }
        return {lists_, transposed_};
    }

  private:
    BlockLayout<TrainMem> lists_;
    TransposedLayout<TrainMem> transposed_;
    std::uint64_t made_for_ = 0;
    std::vector<HeadMode> modes_;
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

void fill_batch(const TrainExec& exec, const PackedTokens& pack, Batch<TrainMem>& batch) {
    const auto put = [&](const char* label, const std::vector<std::int32_t>& values,
                         Array1<std::int32_t, TrainMem>& array) {
        make_size(exec, label, static_cast<std::int64_t>(values.size()), array);
        if (!values.empty()) Kokkos::deep_copy(exec, array, HostInts(values.data(), values.size()));
    };
    batch.sequences.assign(exec, pack.offsets);
    put("SparseAttn::batch.tokens", pack.tokens, batch.tokens);
    put("SparseAttn::batch.positions", pack.positions, batch.positions);
    put("SparseAttn::batch.labels", pack.labels, batch.labels);
    batch.label_count = count_labels(pack);
}

Batch<TrainMem> make_batch(const TrainExec& exec, const PackedTokens& pack) {
    Batch<TrainMem> batch;
    fill_batch(exec, pack, batch);
    fence(exec, "SparseAttn::make_batch");  // `pack` may go away
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
            options.messages,
            options.precision};
}

SequenceParallelOptions spread_options(const PackSettings& settings) {
    SequenceParallelOptions options;
    options.attention.implementation = settings.implementation;
    options.messages = settings.messages;
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

std::int64_t PackRunner::count_labels(const PackedTokens& pack) const {
    return labels_in(pack, grid().tokens(static_cast<std::int64_t>(pack.labels.size())));
}

namespace {

// T is float or bf16.
template <class T>
class TypedRunner final : public PackRunner {
  public:
    TypedRunner(const TrainExec& exec, const ModelConfig& config, const PackSettings& settings, ProcessGrid grid);

    [[nodiscard]] const ParameterTable& table() const override { return decoder_.table(); }
    [[nodiscard]] std::vector<std::int64_t> gradient_cuts() const override { return decoder_.gradient_cuts(); }
    void use(const Array1<float, TrainMem>& weights) override;
    double loss(const PackedTokens& pack, const HeadMap* gates) override;
    double loss_and_gradients(const PackedTokens& pack, const HeadMap* gates, double scale,
                              const Span1<float, TrainMem>& gradients, HeadMap& dgates,
                              const GradientsFinal& final) override;

  private:
    // work(batch, attention) with the operator for these gates.
    template <class Work>
    double with_attention(const PackedTokens& pack, const HeadMap* gates, const Work& work);
    [[nodiscard]] std::vector<float> gate_gradients();

    TrainExec exec_;
    PackSettings settings_;
    Decoder<TrainExec, T> decoder_;
    Array1<T, TrainMem> weights_;                                      // of bf16 its own
    std::unique_ptr<SequenceParallelAttention<TrainExec, T>> spread_;  // where several ranks share a pack
    PlannedAttention<TrainExec, T> planned_;                           // otherwise
    std::optional<SelectedAttention<TrainExec, T>> selected_;          // of a sparse branch that selects
    Array2<float, TrainMem> gate_;                                     // of these two, [layers, query heads]
    Array2<float, TrainMem> dgate_;                                    // the same
    Batch<TrainMem> batch_;                                            // these are kept for their memory
    KeptLayout full_, sparse_;
};

template <class T>
TypedRunner<T>::TypedRunner(const TrainExec& exec, const ModelConfig& config, const PackSettings& settings,
                            ProcessGrid grid)
    : PackRunner(std::move(grid)), exec_(exec), settings_(settings), decoder_(exec, config) {
    if (this->grid().seq_parallel() > 1) {
        spread_ = std::make_unique<SequenceParallelAttention<TrainExec, T>>(exec, this->grid().sequence(), config,
                                                                            spread_options(settings_));
        return;
    }
    if (settings_.sparse.selects()) {
        selected_.emplace(layer_selectors(settings_.sparse), AttentionOptions{0.0, settings_.implementation}, true);
    }
    gate_ = Array2<float, TrainMem>("SparseAttn::gate", config.num_hidden_layers, config.num_attention_heads);
    dgate_ = Array2<float, TrainMem>("SparseAttn::dgate", config.num_hidden_layers, config.num_attention_heads);
}

template <class T>
void TypedRunner<T>::use(const Array1<float, TrainMem>& weights) {
    if constexpr (std::is_same_v<T, float>) {
        weights_ = weights;
    } else {
        if (weights_.extent(0) != weights.extent(0)) {
            weights_ = Array1<T, TrainMem>(
                Kokkos::view_alloc(exec_, Kokkos::WithoutInitializing, "SparseAttn::rounded_parameters"),
                weights.extent(0));
        }
        round_array<TrainExec>(exec_, weights, weights_);
    }
}

// work(this rank's batch, attention of the pack) with the gates of query heads.
template <class T>
template <class Work>
double TypedRunner<T>::with_attention(const PackedTokens& pack, const HeadMap* gates, const Work& work) {
    std::vector<float> gate;
    const ModelConfig& config = decoder_.config();
    if (gates != nullptr) gate = expand_to_query_heads(*gates, config.num_attention_heads / config.num_key_value_heads);
    if (spread_) {
        spread_->begin_pack(pack.offsets, spread_task(settings_, std::move(gate)));
        const PackedTokens mine = cut(pack, grid().tokens(static_cast<std::int64_t>(pack.tokens.size())));
        fill_batch(exec_, mine, batch_);
        return work(batch_, *spread_);  // waits for exec_, so that `mine` may go
    }
    fill_batch(exec_, pack, batch_);
    const auto heads = static_cast<std::size_t>(config.num_attention_heads);
    const LayoutPair<TrainMem> full =
        full_.of(exec_, batch_.sequences, settings_.block, std::vector<HeadMode>(heads, HeadMode::dense()));
    AttentionPlan<TrainMem> plan{full, nullptr, {}, {0.0, settings_.implementation}};
    if (gates == nullptr) {
        planned_.set(plan);
        return work(batch_, planned_);
    }
    Kokkos::deep_copy(exec_, gate_, HostFloats(gate.data(), gate_.extent(0), gate_.extent(1)));
    Kokkos::deep_copy(exec_, dgate_, 0.0F);
    if (selected_) {
        selected_->set_gates({full, gate_, dgate_, gate});
        return work(batch_, *selected_);
    }
    const LayoutPair<TrainMem> sparse =
        sparse_.of(exec_, batch_.sequences, settings_.block, std::vector<HeadMode>(heads, settings_.sparse.mode));
    plan.sparse = &sparse;
    plan.gate = gate_;
    planned_.set(plan, dgate_);
    return work(batch_, planned_);  // waits for exec_, so that `gate` may go
}

// d(loss)/d(gate) of query heads, of the last pack's passes.
template <class T>
std::vector<float> TypedRunner<T>::gate_gradients() {
    if (spread_) return spread_->gate_gradients();
    std::vector<float> host(dgate_.size());
    Kokkos::deep_copy(exec_, HostFloats(host.data(), dgate_.extent(0), dgate_.extent(1)), dgate_);
    fence(exec_, "SparseAttn::dgate");
    return host;
}

template <class T>
double TypedRunner<T>::loss(const PackedTokens& pack, const HeadMap* gates) {
    return with_attention(pack, gates, [&](const auto& batch, auto& attention) {
        return decoder_.loss(batch, attention, weights_, settings_.memory.loss_block);
    });
}

template <class T>
double TypedRunner<T>::loss_and_gradients(const PackedTokens& pack, const HeadMap* gates, double scale,
                                          const Span1<float, TrainMem>& gradients, HeadMap& dgates,
                                          const GradientsFinal& final) {
    const double loss = with_attention(pack, gates, [&](const auto& batch, auto& attention) {
        return decoder_.loss_and_gradients(batch, attention, weights_, static_cast<float>(scale), gradients,
                                           settings_.memory, final);
    });
    if (gates != nullptr) {
        const int group = decoder_.config().num_attention_heads / gates->heads;
        dgates = sum_over_groups(gate_gradients(), gates->layers, gates->heads, group);
    }
    return loss;
}

}  // namespace

std::unique_ptr<PackRunner> PackRunner::make(const TrainExec& exec, const ModelConfig& config,
                                             const PackSettings& settings, ProcessGrid grid) {
    if (settings.precision == Precision::bf16) {
        return std::make_unique<TypedRunner<bf16>>(exec, config, settings, std::move(grid));
    }
    return std::make_unique<TypedRunner<float>>(exec, config, settings, std::move(grid));
}

}  // namespace sparseattn::detail
