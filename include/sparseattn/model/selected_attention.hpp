#pragma once
/// \file
/// Attention of a decoder's layers over layouts that a selector makes from each layer's query and key.

#include <functional>
#include <memory>
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

/// Gates between full attention and what the selectors keep: query head h of layer l computes z full + (1 - z) selected
/// with z = gate(l, h).
template <class Mem>
struct SelectionGates {
    LayoutPair<Mem> full;          // has all that is selected, on the same blocks
    Span2<const float, Mem> gate;  // [layers, query heads]
    Span2<float, Mem> dgate;       // the same: d(loss)/d(gate) is added here; empty: no backward pass
    std::vector<float> host_gate;  // `gate` on the host, or empty: heads with z = 1 are then not estimated
};

/// Every forward pass of a layer selects anew; its backward pass uses the layout of the forward, which is a constant
/// for the gradient. Repeated passes of the same shape allocate nothing and wait for nothing on a device.
template <class Exec, class T>
class SelectedAttention : public BlockAttention<Exec, T> {
  public:
    using Mem = typename Exec::memory_space;
    using Observer = std::function<void(const SelectedLayer<Exec, T>&)>;

    /// One selector per layer; `gated`: what they select is the sparse branch of set_gates(). Throws InvalidArgument
    /// for options out of range.
    explicit SelectedAttention(std::vector<LayerSelector> layers, const AttentionOptions& options = {},
                               bool gated = false);

    /// Comes before a gated pass; what it refers to must outlive the pass.
    void set_gates(const SelectionGates<Mem>& gates);

    /// Called after each layer's forward pass, which then waits for the execution space to measure its two parts.
    /// Empty: nothing is called and nothing measured.
    void observe(Observer observer) { observer_ = std::move(observer); }

    /// Throws InvalidArgument when the model has not as many layers as there are selectors, and for gates that are
    /// missing or have other extents.
    void prepare(const ModelConfig& config, const PassShape& pass) override;
    void forward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<T, Mem>& out) override;
    /// For one sequence of all tokens, layouts by selected_layout_bytes; on a CPU single keys come on top.
    [[nodiscard]] AttentionBytes bytes(const ModelConfig& config, const PassShape& pass) const override;
    [[nodiscard]] std::int64_t allocated() const override;

  protected:
    [[nodiscard]] bool gated() const override { return gated_; }
    LayerPlan<Mem> forward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) override;
    LayerPlan<Mem> backward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) override;

  private:
    struct Chosen {
        BlockLayout<Mem> layout;
        TransposedLayout<Mem> transposed;  // training only
    };
    [[nodiscard]] Chosen& chosen(int layer) { return chosen_[chosen_.size() == 1 ? 0 : layer]; }
    [[nodiscard]] HeadPlan heads_of(int layer, int heads) const;
    [[nodiscard]] LayerPlan<Mem> plan_of(int layer);

    std::vector<LayerSelector> layers_;
    AttentionOptions options_;
    bool gated_;
    std::unique_ptr<const SelectionGates<Mem>> gates_;
    std::unique_ptr<const LayoutPair<Mem>> sparse_;  // with gates: the chosen layout of the plan made last
    Observer observer_;
    bool training_ = false;
    std::vector<Chosen> chosen_;  // one per layer, or one for all
    Workspace<Mem> workspace_;    // of the selectors
    SelectionRoom<Mem> room_;     // the same
    double selection_seconds_ = 0;
};

}  // namespace sparseattn
