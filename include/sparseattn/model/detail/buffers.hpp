#pragma once
// The decoder's memory: one allocation, cut into arrays by one function that also serves to count bytes.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sparseattn/core/types.hpp"
#include "sparseattn/model/config.hpp"

namespace sparseattn::detail {

// What decides the sizes.
struct BufferShape {
    std::int64_t tokens = 0;
    bool training = false;
    bool recompute = false;
    int loss_block = 1;
    friend bool operator==(const BufferShape&, const BufferShape&) = default;
};

// What one layer's backward pass reads besides the layer's input.
template <class T, class Mem>
struct LayerBuffers {
    Span2<T, Mem> qkv;        // [tokens, qkv features]; q and k rotated in place, or raw with qk_norm
    Span2<T, Mem> qk;         // with qk_norm: q and k, normalised and rotated
    Span2<T, Mem> attention;  // what o_proj reads
    Span2<T, Mem> middle;     // residual stream between attention and MLP
    Span2<T, Mem> gate_up;
};

// Arrays that live no longer than a layer, and those of the loss.
template <class T, class Mem>
struct ScratchBuffers {
    using A = accumulate_t<T>;
    Span2<A, Mem> cosine, sine;
    Span2<T, Mem> normed;  // forward: input of a product; backward: its gradient, then the input again
    Span2<T, Mem> act;     // likewise, of down_proj
    Span2<A, Mem> logits;
    Span1<A, Mem> losses;
    Span1<double, Mem> loss_sums;
    Span1<std::int32_t, Mem> first_bad;
    // Backward pass only.
    Span2<T, Mem> stream;   // gradient of the residual stream
    Span2<T, Mem> dlogits;  // the logits' memory where the types are the same
    Span2<T, Mem> dattention;
    Span2<T, Mem> dqkv;
    Span1<A, Mem> norm_partial;
};

template <class T, class Mem>
struct DecoderBuffers {
    std::vector<Span2<T, Mem>> inputs;        // residual stream before each layer, and after the last
    std::vector<LayerBuffers<T, Mem>> saved;  // one per layer, or one for all
    ScratchBuffers<T, Mem> scratch;
    std::size_t activation_bytes = 0;
    std::size_t bytes = 0;

    [[nodiscard]] const LayerBuffers<T, Mem>& layer(int l) const { return saved[saved.size() == 1 ? 0 : l]; }
};

// Cuts the arrays out of `memory`; null counts only.
template <class T, class Mem>
DecoderBuffers<T, Mem> cut_buffers(const ModelConfig& config, const BufferShape& shape, std::byte* memory);

}  // namespace sparseattn::detail
