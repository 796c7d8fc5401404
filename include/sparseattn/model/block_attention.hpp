#pragma once
/// \file
/// Attention of a decoder's layers over block layouts, plain or gated.

#include <cstddef>
#include <memory>
#include <vector>

#include "sparseattn/model/detail/attention_call.hpp"
#include "sparseattn/model/layer_attention.hpp"

namespace sparseattn {

/// The calls and the memory that all operators over block layouts share; what differs is where a layer's plan comes
/// from.
template <class Exec, class T>
class BlockAttention : public LayerAttention<Exec, T> {
  public:
    using Mem = typename Exec::memory_space;

    void prepare(const ModelConfig& config, const PassShape& pass) override;
    void forward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<T, Mem>& out) override;
    void backward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<const T, Mem>& out,
                  const HeadsView<const T, Mem>& dout, const AttentionGradients<T, Mem>& gradients) override;
    [[nodiscard]] AttentionBytes bytes(const ModelConfig& config, const PassShape& pass) const override;
    [[nodiscard]] std::int64_t allocated() const override;

    /// As the member, for any operator with or without gates.
    [[nodiscard]] static AttentionBytes bytes(const ModelConfig& config, const PassShape& pass, bool gated);

  protected:
    /// Whether the layers' plans are gated; constant during a pass.
    [[nodiscard]] virtual bool gated() const = 0;
    /// The layer's plan. What it points to stays until the layer's backward_plan, or its next forward_plan.
    virtual LayerPlan<Mem> forward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) = 0;
    /// The plan of the layer's last forward pass.
    virtual LayerPlan<Mem> backward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) = 0;

    [[nodiscard]] Workspace<Mem>& workspace() { return *workspace_; }

  private:
    using Saved = detail::SavedBranches<T, Mem>;
    struct Buffers {
        std::vector<Saved> layers;  // one per layer, or one for all
        Span1<float, Mem> dgate;
        std::size_t bytes = 0;
    };
    [[nodiscard]] static Buffers cut(const ModelConfig& config, const PassShape& pass, bool gated, std::byte* memory);
    [[nodiscard]] const Saved& saved(int layer) const {
        return buffers_.layers[buffers_.layers.size() == 1 ? 0 : layer];
    }

    Array1<std::byte, Mem> memory_;
    Buffers buffers_;
    std::unique_ptr<Workspace<Mem>> workspace_ = std::make_unique<Workspace<Mem>>();
};

/// What attention does in every layer: the same layouts, gates of each layer.
template <class Mem>
struct AttentionPlan {
    LayoutPair<Mem> full;
    const LayoutPair<Mem>* sparse = nullptr;
    Span2<const float, Mem> gate;  // [layers, query heads]; empty: plain attention
    AttentionOptions options;

    [[nodiscard]] bool gated() const { return gate.extent(0) > 0; }
};

/// Attention over layouts that are known before the pass.
template <class Exec, class T>
class PlannedAttention : public BlockAttention<Exec, T> {
  public:
    using Mem = typename Exec::memory_space;

    /// The plan of the passes to come, and where d(loss)/d(gate) [layers, query heads] is added (empty: nowhere; a
    /// gated backward pass needs it). What both point to must outlive these passes.
    void set(const AttentionPlan<Mem>& plan, const Span2<float, Mem>& dgate = {});

    /// Throws InvalidArgument when the plan's gates are not layers x query heads or its sparse layouts are missing.
    void prepare(const ModelConfig& config, const PassShape& pass) override;

  protected:
    [[nodiscard]] bool gated() const override { return plan_->gated(); }
    LayerPlan<Mem> forward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) override;
    LayerPlan<Mem> backward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) override;

  private:
    std::unique_ptr<const AttentionPlan<Mem>> plan_;
    Span2<float, Mem> dgate_;
};

}  // namespace sparseattn
