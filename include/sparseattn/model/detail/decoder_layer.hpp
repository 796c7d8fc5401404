#pragma once
// One decoder layer: attention and MLP with their norms and residual sums, forward and backward.

#include "sparseattn/model/decoder.hpp"
#include "sparseattn/model/detail/buffers.hpp"

namespace sparseattn::detail {

// Where a layer's parameters begin. q, k and v are one matrix [qkv features, hidden], gate and up another [2 inner,
// hidden].
struct LayerOffsets {
    std::int64_t input_norm, qkv, q_norm, k_norm, o, post_norm, gate_up, down;
    [[nodiscard]] std::int64_t begin() const { return input_norm; }  // of the layer's first parameter
};
LayerOffsets layer_offsets(const ParameterTable& table, const ModelConfig& config, int layer);

// Everything that the two passes of one layer work on.
template <class Exec, class T>
struct LayerCall {
    using Mem = typename Exec::memory_space;

    const Exec& exec;
    const ModelConfig& config;
    const Sequences<Mem>& sequences;
    LayerAttention<Exec, T>& attention;
    int layer;
    LayerOffsets offsets;
    Span1<const T, Mem> parameters;
    Span2<T, Mem> input;  // the residual stream before the layer
    const LayerBuffers<T, Mem>& saved;
    const ScratchBuffers<T, Mem>& scratch;
    Workspace<Mem>& workspace;  // of the products
};

// Fills `saved` and writes the residual stream after the layer to `output`, which may be the input's memory. An empty
// output leaves out the last product, which the backward pass does not need.
template <class Exec, class T>
void layer_forward(const LayerCall<Exec, T>& call, const Span2<T, typename Exec::memory_space>& output);

// Turns scratch.stream from the gradient after the layer into that before it, and adds to the flat gradients.
// Overwrites part of `saved`.
template <class Exec, class T>
void layer_backward(const LayerCall<Exec, T>& call,
                    const Span1<accumulate_t<T>, typename Exec::memory_space>& gradients);

}  // namespace sparseattn::detail
