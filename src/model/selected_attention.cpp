#include "sparseattn/model/selected_attention.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/model/detail/gates.hpp"
#include "sparseattn/model/detail/layout_bytes.hpp"

namespace sparseattn {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(const Clock::time_point& start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

template <class Exec, class T>
SelectedAttention<Exec, T>::SelectedAttention(std::vector<LayerSelector> layers, const AttentionOptions& options,
                                              bool gated)
    : layers_(std::move(layers)), options_(options), gated_(gated) {
    for (const LayerSelector& layer : layers_) validate(layer.method);
}

template <class Exec, class T>
void SelectedAttention<Exec, T>::set_gates(const SelectionGates<Mem>& gates) {
    require(gated_, "SelectedAttention", "made without gates", "made with them to set any");
    gates_ = std::make_unique<const SelectionGates<Mem>>(gates);
}

template <class Exec, class T>
void SelectedAttention<Exec, T>::prepare(const ModelConfig& config, const PassShape& pass) {
    require(static_cast<int>(layers_.size()) == config.num_hidden_layers, "selectors", layers_.size(),
            concat("one for each of the model's ", config.num_hidden_layers, " layers"));
    if (gated_) {
        require(gates_ != nullptr, "gates", "not set", "set before a gated pass");
        detail::check_gates("extents of gate", gates_->gate.extent(0), gates_->gate.extent(1), config);
        const std::size_t known = gates_->host_gate.size();
        require(known == 0 || known == gates_->gate.size(), "host_gate.size()", known,
                concat("0 or that of the gates, ", gates_->gate.size()));
        if (pass.training) {
            detail::check_gates("extents of dgate", gates_->dgate.extent(0), gates_->dgate.extent(1), config);
        }
    }
    BlockAttention<Exec, T>::prepare(config, pass);
    training_ = pass.training;
    chosen_.resize(pass.training && !pass.recompute ? layers_.size() : 1);
}

template <class Exec, class T>
void SelectedAttention<Exec, T>::forward(const Exec& exec, const LayerInputs<Exec, T>& inputs,
                                         const HeadsView<T, Mem>& out) {
    if (!observer_) {
        BlockAttention<Exec, T>::forward(exec, inputs, out);
        return;
    }
    fence(exec, "SparseAttn::selected_attention.inputs");
    const Clock::time_point start = Clock::now();
    BlockAttention<Exec, T>::forward(exec, inputs, out);
    fence(exec, "SparseAttn::selected_attention.out");
    const double seconds = seconds_since(start);
    observer_({inputs, chosen(inputs.layer).layout, out, selection_seconds_, seconds - selection_seconds_});
}

template <class Exec, class T>
auto SelectedAttention<Exec, T>::forward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) -> LayerPlan<Mem> {
    const Region region("SparseAttn::selected_attention.select");
    const LayerSelector& selector = layers_[inputs.layer];
    Chosen& made = chosen(inputs.layer);
    const Clock::time_point start = Clock::now();
    sparse_.reset();  // the lists below are written anew
    select<Exec, T>(exec, inputs.heads.query, inputs.heads.key, inputs.sequences, selector.method, workspace_,
                    heads_of(inputs.layer, static_cast<int>(inputs.heads.query.extent(1))), room_, made.layout);
    if (training_) transpose(exec, inputs.sequences, made.layout, made.transposed);
    if (observer_) {
        fence(exec, "SparseAttn::selected_attention.select");
        selection_seconds_ = seconds_since(start);
    }
    return plan_of(inputs.layer);
}

template <class Exec, class T>
auto SelectedAttention<Exec, T>::backward_plan(const Exec&, const LayerInputs<Exec, T>& inputs) -> LayerPlan<Mem> {
    return plan_of(inputs.layer);
}

// The selector's own plan, and for open gates, whose sparse branch does not run, a list that costs nothing.
template <class Exec, class T>
HeadPlan SelectedAttention<Exec, T>::heads_of(int layer, int heads) const {
    HeadPlan plan = layers_[layer].heads;
    if (!gated_ || gates_->host_gate.empty()) return plan;
    const float* gate = gates_->host_gate.data() + static_cast<std::size_t>(layer) * heads;
    for (int h = 0; h < heads; ++h) {
        if (gate[h] != 1) continue;
        plan.fixed.resize(heads);
        plan.fixed[h] = HeadMode::stream(0, 1);
    }
    return plan;
}

template <class Exec, class T>
auto SelectedAttention<Exec, T>::plan_of(int layer) -> LayerPlan<Mem> {
    const Chosen& made = chosen(layer);
    if (!gated_) return {{made.layout, made.transposed}, nullptr, {}, {}, options_};
    sparse_ = std::make_unique<const LayoutPair<Mem>>(LayoutPair<Mem>{made.layout, made.transposed});
    return {gates_->full, sparse_.get(), detail::layer_row(gates_->gate, layer),
            detail::layer_row(gates_->dgate, layer), options_};
}

template <class Exec, class T>
AttentionBytes SelectedAttention<Exec, T>::bytes(const ModelConfig& config, const PassShape& pass) const {
    AttentionBytes bytes = BlockAttention<Exec, T>::bytes(config, pass);
    const Sequences<Mem> sequences({0, static_cast<std::int32_t>(pass.tokens)});
    std::int64_t selection = 0, largest = 0, all = 0, room = 0;
    for (const LayerSelector& layer : layers_) {
        selection = std::max(selection, static_cast<std::int64_t>(selection_bytes<Exec, T>(
                                            sequences, config.num_attention_heads, config.num_key_value_heads,
                                            config.head_dim, layer.method)));
        const auto layout_bytes = [&](bool transposed) {
            return selected_layout_bytes(sequences, config.num_attention_heads, layer.method, transposed);
        };
        const bool combined = layer.heads.share_groups || (gated_ && !scoreless_mode(layer.method)) ||
                              std::any_of(layer.heads.fixed.begin(), layer.heads.fixed.end(),
                                          [](const auto& mode) { return mode.has_value(); });
        if (combined) room = std::max(room, layout_bytes(false));
        const std::int64_t lists = layout_bytes(pass.training);
        largest = std::max(largest, lists);
        all += lists;
    }
    bytes.saved += pass.training && !pass.recompute ? all : largest;
    bytes.workspace += selection + room;
    return bytes;
}

template <class Exec, class T>
std::int64_t SelectedAttention<Exec, T>::allocated() const {
    std::int64_t bytes = BlockAttention<Exec, T>::allocated() + static_cast<std::int64_t>(workspace_.capacity()) +
                         detail::held_bytes(room_);
    for (const Chosen& made : chosen_) {
        bytes += detail::held_bytes(made.layout) + detail::held_bytes(made.transposed);
    }
    return bytes;
}

template class SelectedAttention<Kokkos::DefaultExecutionSpace, float>;
template class SelectedAttention<Kokkos::DefaultExecutionSpace, bf16>;

}  // namespace sparseattn
