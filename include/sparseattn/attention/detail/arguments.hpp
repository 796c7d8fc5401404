#pragma once
// What each attention implementation receives: checked arguments, the scale resolved. An implementation is a set of
// overloads `xxx_attention(exec, arguments, workspace)`, one for each of these structs; it owns the contract of
// attention.hpp from there on. The structs hold references: they live as long as the call.

#include "sparseattn/attention/attention.hpp"

namespace sparseattn::detail {

template <class T, class Mem>
struct ForwardArguments {
    AttentionInputs<T, Mem> inputs;
    const Sequences<Mem>& sequences;
    const BlockLayout<Mem>& layout;
    accumulate_t<T> scale;
    AttentionOutputs<T, Mem> outputs;
};

template <class T, class Mem>
struct BackwardArguments {
    HeadsView<const T, Mem> dout;
    AttentionInputs<T, Mem> inputs;
    AttentionOutputs<const T, Mem> outputs;
    const Sequences<Mem>& sequences;
    LayoutPair<Mem> layout;
    accumulate_t<T> scale;
    AttentionGradients<T, Mem> gradients;
};

template <class T, class Mem>
struct GatedForwardArguments {
    AttentionInputs<T, Mem> inputs;
    const Sequences<Mem>& sequences;
    const BlockLayout<Mem>& full;
    const BlockLayout<Mem>& sparse;
    Span1<const float, Mem> gate;
    accumulate_t<T> scale;
    HeadsView<T, Mem> out;
    AttentionOutputs<T, Mem> full_outputs;
    AttentionOutputs<T, Mem> sparse_outputs;
};

template <class T, class Mem>
struct GatedBackwardArguments {
    HeadsView<const T, Mem> dout;
    AttentionInputs<T, Mem> inputs;
    AttentionOutputs<const T, Mem> full_outputs;
    AttentionOutputs<const T, Mem> sparse_outputs;
    const Sequences<Mem>& sequences;
    LayoutPair<Mem> full;
    LayoutPair<Mem> sparse;
    Span1<const float, Mem> gate;
    accumulate_t<T> scale;
    AttentionGradients<T, Mem> gradients;
    Span1<float, Mem> dgate;
};

}  // namespace sparseattn::detail
