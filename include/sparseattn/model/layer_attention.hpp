#pragma once
/// \file
/// The decoder's door to attention: an operator that turns each layer's rotated query, key and value into its output.

#include <cstdint>

#include "sparseattn/attention/attention.hpp"
#include "sparseattn/model/config.hpp"

namespace sparseattn {

/// One pass of a decoder over a pack.
struct PassShape {
    std::int64_t tokens = 0;
    bool training = false;   // every layer's forward is followed by its backward, last layer first
    bool recompute = false;  // training: backward of a layer comes right after another forward of it
    friend bool operator==(const PassShape&, const PassShape&) = default;
};

/// What a layer gives to its attention.
template <class Exec, class T>
struct LayerInputs {
    using Mem = typename Exec::memory_space;
    int layer;
    const Sequences<Mem>& sequences;  // of the batch
    AttentionInputs<T, Mem> heads;    // query [tokens, Hq, d], key and value [tokens, Hkv, d], strided; q, k rotated
};

/// What attention does in one layer. Empty `gate`: plain attention over `full`. Otherwise query head h computes
/// z full + (1 - z) sparse with z = gate(h), and `sparse` must be set.
template <class Mem>
struct LayerPlan {
    LayoutPair<Mem> full;
    const LayoutPair<Mem>* sparse = nullptr;
    Span1<const float, Mem> gate;  // [query heads]
    Span1<float, Mem> dgate;       // [query heads]: d(loss)/d(gate) is added here by the backward pass
    AttentionOptions options;

    [[nodiscard]] bool gated() const { return gate.extent(0) > 0; }
};

/// Bytes of an operator.
struct AttentionBytes {
    std::int64_t saved = 0;      // what the backward passes read of the forward passes
    std::int64_t workspace = 0;  // temporaries
};

/// Attention of all layers of a decoder. It owns what it saves between a layer's forward and backward; memory is
/// allocated by the first pass of a shape and kept.
template <class Exec, class T>
class LayerAttention {
  public:
    using Mem = typename Exec::memory_space;
    virtual ~LayerAttention() = default;

    /// Comes once before the layers of a pass. Throws InvalidArgument when the operator does not fit the model.
    virtual void prepare(const ModelConfig& config, const PassShape& pass) = 0;

    /// Writes out [tokens, Hq, d]. Asynchronous on `exec` as far as the operator can be.
    virtual void forward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<T, Mem>& out) = 0;

    /// Overwrites `gradients` with those of the layer's last forward; `out` is what that wrote.
    virtual void backward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<const T, Mem>& out,
                          const HeadsView<const T, Mem>& dout, const AttentionGradients<T, Mem>& gradients) = 0;

    /// What a pass of that shape will allocate.
    [[nodiscard]] virtual AttentionBytes bytes(const ModelConfig& config, const PassShape& pass) const = 0;
    /// Bytes held now.
    [[nodiscard]] virtual std::int64_t allocated() const = 0;
};

}  // namespace sparseattn
