#pragma once
// The comparison of methods inside a model's forward pass.

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "sparseattn/app/detail/layer_comparison.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/model/layer_attention.hpp"

namespace sparseattn::detail {

// Full attention in every layer, and in chosen ones all methods on what the layer reads.
template <class T>
class ComparingAttention : public LayerAttention<PrefillExec, T> {
  public:
    using Inputs = LayerInputs<PrefillExec, T>;

    ComparingAttention(LayerAttention<PrefillExec, T>& full, LayerComparison<T>& comparison,
                       const std::vector<std::vector<LayerSelector>>& selectors, std::vector<int> layers,
                       std::function<void(const Inputs&, const MethodResult<T>&)> visit,
                       std::function<void()> after_layer)
        : full_(full),
          comparison_(comparison),
          selectors_(selectors),
          layers_(std::move(layers)),
          visit_(std::move(visit)),
          after_layer_(std::move(after_layer)) {}

    void prepare(const ModelConfig& config, const PassShape& pass) override {
        figures_.clear();
        full_.prepare(config, pass);
    }
    void forward(const PrefillExec& exec, const Inputs& inputs, const HeadsView<T, PrefillMem>& out) override {
        if (std::find(layers_.begin(), layers_.end(), inputs.layer) == layers_.end()) {
            full_.forward(exec, inputs, out);
        } else {
            figures_.push_back(comparison_.compare(inputs.layer, inputs.sequences, inputs.heads,
                                                   selectors_[inputs.layer], out,
                                                   [&](const MethodResult<T>& result) { visit_(inputs, result); }));
        }
        after_layer_();
    }
    void backward(const PrefillExec&, const Inputs&, const HeadsView<const T, PrefillMem>&,
                  const HeadsView<const T, PrefillMem>&, const AttentionGradients<T, PrefillMem>&) override {
        throw InvalidArgument("a comparison has no backward pass, must run without training");
    }
    [[nodiscard]] AttentionBytes bytes(const ModelConfig& config, const PassShape& pass) const override {
        return full_.bytes(config, pass);
    }
    [[nodiscard]] std::int64_t allocated() const override { return full_.allocated() + comparison_.allocated(); }

    // Of the last pass: one entry per chosen layer, with one per method.
    [[nodiscard]] const std::vector<std::vector<LayerFigures>>& figures() const { return figures_; }

  private:
    LayerAttention<PrefillExec, T>& full_;
    LayerComparison<T>& comparison_;
    const std::vector<std::vector<LayerSelector>>& selectors_;  // [layer][method]
    std::vector<int> layers_;
    std::function<void(const Inputs&, const MethodResult<T>&)> visit_;
    std::function<void()> after_layer_;
    std::vector<std::vector<LayerFigures>> figures_;
};

}  // namespace sparseattn::detail
