#include "sparseattn/model/detail/buffers.hpp"

#include <algorithm>
#include <type_traits>

#include "sparseattn/model/detail/cutter.hpp"
#include "sparseattn/model/detail/layers.hpp"

namespace sparseattn::detail {
namespace {

template <class T, class Mem>
LayerBuffers<T, Mem> cut_layer(Cutter<Mem>& cut, const ModelConfig& config, const BufferShape& shape) {
    const std::int64_t n = shape.tokens, query = config.query_size();
    LayerBuffers<T, Mem> layer;
    layer.qkv = cut.template take<T>(n, config.qkv_size());
    if (config.qk_norm) layer.qk = cut.template take<T>(n, query + config.key_value_size());
    layer.attention = cut.template take<T>(n, query);
    layer.middle = cut.template take<T>(n, config.hidden_size);
    layer.gate_up = cut.template take<T>(n, 2 * config.intermediate_size);
    return layer;
}

template <class T, class Mem>
ScratchBuffers<T, Mem> cut_scratch(Cutter<Mem>& cut, const ModelConfig& config, const BufferShape& shape) {
    using A = accumulate_t<T>;
    const std::int64_t n = shape.tokens, block = std::min<std::int64_t>(shape.loss_block, n);
    ScratchBuffers<T, Mem> scratch;
    scratch.cosine = cut.template take<A>(n, config.head_dim / 2);
    scratch.sine = cut.template take<A>(n, config.head_dim / 2);
    scratch.normed = cut.template take<T>(n, config.hidden_size);
    scratch.act = cut.template take<T>(n, config.intermediate_size);
    scratch.logits = cut.template take<A>(block, config.vocab_size);
    scratch.losses = cut.template take<A>(n);
    scratch.loss_sums = cut.template take<double>(loss_chunks(n));
    scratch.first_bad = cut.template take<std::int32_t>(1);
    if (shape.training) {
        scratch.stream = cut.template take<T>(n, config.hidden_size);
        scratch.dattention = cut.template take<T>(n, config.query_size());
        scratch.dqkv = cut.template take<T>(n, config.qkv_size());
        if constexpr (std::is_same_v<T, A>) {
            scratch.dlogits = scratch.logits;
        } else {
            scratch.dlogits = cut.template take<T>(block, config.vocab_size);
        }
        scratch.norm_partial = cut.template take<A>(norm_chunks(n) * std::max(config.hidden_size, config.head_dim));
    }
    return scratch;
}

}  // namespace

template <class T, class Mem>
DecoderBuffers<T, Mem> cut_buffers(const ModelConfig& config, const BufferShape& shape, std::byte* memory) {
    Cutter<Mem> cut(memory);
    DecoderBuffers<T, Mem> buffers;
    const int layers = config.num_hidden_layers;
    // Without a backward pass one residual stream is enough: each layer reads it before writing it.
    for (int l = 0; l <= layers; ++l) {
        const bool own = l == 0 || shape.training;
        buffers.inputs.push_back(own ? cut.template take<T>(shape.tokens, config.hidden_size) : buffers.inputs[0]);
    }
    const int saved = shape.training && !shape.recompute ? layers : 1;
    for (int l = 0; l < saved; ++l) buffers.saved.push_back(cut_layer<T, Mem>(cut, config, shape));
    buffers.activation_bytes = cut.used();
    buffers.scratch = cut_scratch<T, Mem>(cut, config, shape);
    buffers.bytes = cut.used();
    return buffers;
}

#define SPARSEATTN_BUFFERS(T)                                                            \
    template DecoderBuffers<T, Kokkos::DefaultExecutionSpace::memory_space> cut_buffers( \
        const ModelConfig&, const BufferShape&, std::byte*);
SPARSEATTN_BUFFERS(float)
SPARSEATTN_BUFFERS(bf16)
SPARSEATTN_BUFFERS(double)

}  // namespace sparseattn::detail
