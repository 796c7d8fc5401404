#pragma once
/// \file
/// Attention of a decoder's layers over layouts that a selector makes from each layer's query and key.

#include <functional>
#include <vector>

#include "sparseattn/model/block_attention.hpp"
#include "sparseattn/select/selector.hpp"

namespace sparseattn {

/// One layer's forward pass as an observer sees it. Views and references hold during the call.
template <class Exec, class T>
struct SelectedLayer {
    using Mem = typename Exec::memory_space;
    const LayerInputs<Exec, T>& inputs;
    const BlockLayout<Mem>& layout;
    HeadsView<const T, Mem> out;
    double selection_seconds;
    double attention_seconds;
};

/// Every forward pass of a layer selects anew; its backward pass uses the layout of the forward, which is a constant
/// for the gradient. A selection waits for the execution space (the number of blocks decides an allocation).
template <class Exec, class T>
class SelectedAttention : public BlockAttention<Exec, T> {
  public:
    using Mem = typename Exec::memory_space;
    using Observer = std::function<void(const SelectedLayer<Exec, T>&)>;

    /// One selector per layer. Throws InvalidArgument for options out of range.
    explicit SelectedAttention(std::vector<LayerSelector> layers, const AttentionOptions& options = {});

    /// Called after each layer's forward pass, which then waits for the execution space to measure its two parts.
    /// Empty: nothing is called and nothing measured.
    void observe(Observer observer) { observer_ = std::move(observer); }

    /// Throws InvalidArgument when the model has not as many layers as there are selectors.
    void prepare(const ModelConfig& config, const PassShape& pass) override;
    void forward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<T, Mem>& out) override;
    /// For one sequence of all tokens; layouts are counted as if every block were kept, single keys come on top.
    [[nodiscard]] AttentionBytes bytes(const ModelConfig& config, const PassShape& pass) const override;
    [[nodiscard]] std::int64_t allocated() const override;

  protected:
    [[nodiscard]] bool gated() const override { return false; }
    LayerPlan<Mem> forward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) override;
    LayerPlan<Mem> backward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) override;

  private:
    struct Chosen {
        BlockLayout<Mem> layout;
        TransposedLayout<Mem> transposed;  // training only
    };
    [[nodiscard]] Chosen& chosen(int layer) { return chosen_[chosen_.size() == 1 ? 0 : layer]; }

    std::vector<LayerSelector> layers_;
    AttentionOptions options_;
    Observer observer_;
    bool training_ = false;
    std::vector<Chosen> chosen_;  // one per layer, or one for all
    Workspace<Mem> workspace_;    // of the selectors
    double selection_seconds_ = 0;
};

}  // namespace sparseattn
