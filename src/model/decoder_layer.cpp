#include "sparseattn/model/detail/decoder_layer.hpp"

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/model/detail/cutter.hpp"
#include "sparseattn/model/detail/layers.hpp"

namespace sparseattn::detail {
namespace {

// A matrix inside a flat buffer.
template <class T, class Mem>
Span2<T, Mem> matrix(const Span1<T, Mem>& flat, std::int64_t offset, int rows, int columns) {
    return Span2<T, Mem>(flat.data() + offset, static_cast<std::size_t>(rows), static_cast<std::size_t>(columns));
}
template <class T, class Mem>
Span1<T, Mem> vector(const Span1<T, Mem>& flat, std::int64_t offset, int count) {
    return Span1<T, Mem>(flat.data() + offset, static_cast<std::size_t>(count));
}

// The views of one layer's attention over its buffers.
template <class Exec, class T>
struct AttentionViews {
    using Mem = typename Exec::memory_space;

    int query_heads, heads, head_dim;  // query heads; query and key heads; features of one
    HeadsView<T, Mem> rotated;         // q and k as attention reads them
    AttentionInputs<T, Mem> inputs;
    HeadsView<T, Mem> out;

    explicit AttentionViews(const LayerCall<Exec, T>& call)
        : query_heads(call.config.num_attention_heads),
          heads(query_heads + call.config.num_key_value_heads),
          head_dim(call.config.head_dim) {
        const auto& saved = call.saved;
        const Span2<T, Mem>& qk = call.config.qk_norm ? saved.qk : saved.qkv;
        rotated = heads_of(qk, 0, heads, head_dim);
        inputs = {heads_of(qk, 0, query_heads, head_dim), heads_of(qk, query_heads, heads - query_heads, head_dim),
                  heads_of(saved.qkv, heads, heads - query_heads, head_dim)};
        out = heads_of(saved.attention, 0, query_heads, head_dim);
    }
};

// From saved.qkv to saved.attention.
template <class Exec, class T>
void attention(const LayerCall<Exec, T>& call) {
    const Region region("SparseAttn::model.attention");
    const AttentionViews<Exec, T> views(call);
    const auto& config = call.config;
    if (config.qk_norm) {
        rms_norm<Exec, T>(call.exec, heads_of(call.saved.qkv, 0, views.query_heads, views.head_dim),
                          vector(call.parameters, call.offsets.q_norm, views.head_dim), config.rms_norm_eps,
                          heads_of(call.saved.qk, 0, views.query_heads, views.head_dim));
        rms_norm<Exec, T>(call.exec,
                          heads_of(call.saved.qkv, views.query_heads, views.heads - views.query_heads, views.head_dim),
                          vector(call.parameters, call.offsets.k_norm, views.head_dim), config.rms_norm_eps,
                          heads_of(call.saved.qk, views.query_heads, views.heads - views.query_heads, views.head_dim));
    }
    rotary<Exec, T>(call.exec, Rotation::forward, call.scratch.cosine, call.scratch.sine, views.rotated);
    call.attention.forward(call.exec, {call.layer, call.sequences, views.inputs}, views.out);
}

// From scratch.dattention to scratch.dqkv.
template <class Exec, class T>
void attention_gradients(const LayerCall<Exec, T>& call,
                         const Span1<accumulate_t<T>, typename Exec::memory_space>& gradients) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::model.attention_backward");
    const AttentionViews<Exec, T> views(call);
    const auto& scratch = call.scratch;
    const int query_heads = views.query_heads, heads = views.heads, d = views.head_dim;
    const auto dquery = heads_of(scratch.dqkv, 0, query_heads, d);
    const auto dkey = heads_of(scratch.dqkv, query_heads, heads - query_heads, d);
    const AttentionGradients<T, Mem> results{dquery, dkey, heads_of(scratch.dqkv, heads, heads - query_heads, d)};
    const HeadsView<const T, Mem> dout = heads_of(scratch.dattention, 0, query_heads, d);
    call.attention.backward(call.exec, {call.layer, call.sequences, views.inputs}, views.out, dout, results);
    rotary<Exec, T>(call.exec, Rotation::inverse, scratch.cosine, scratch.sine, heads_of(scratch.dqkv, 0, heads, d));
    if (call.config.qk_norm) {
        const double eps = call.config.rms_norm_eps;
        rms_norm_backward<Exec, T>(call.exec, NormBackward::in_place, heads_of(call.saved.qkv, 0, query_heads, d),
                                   vector(call.parameters, call.offsets.q_norm, d), eps, dquery, {},
                                   scratch.norm_partial, vector(gradients, call.offsets.q_norm, d));
        rms_norm_backward<Exec, T>(call.exec, NormBackward::in_place,
                                   heads_of(call.saved.qkv, query_heads, heads - query_heads, d),
                                   vector(call.parameters, call.offsets.k_norm, d), eps, dkey, {}, scratch.norm_partial,
                                   vector(gradients, call.offsets.k_norm, d));
    }
}

// y (+)= x w^T, with w [out, in] at `offset` of the parameters.
template <class Exec, class T>
void linear(const LayerCall<Exec, T>& call, const Span2<T, typename Exec::memory_space>& x, std::int64_t offset,
            accumulate_t<T> beta, const Span2<T, typename Exec::memory_space>& y) {
    gemm<Exec, T, T>(call.exec, Op::none, Op::transpose, 1, x,
                     matrix(call.parameters, offset, y.extent(1), x.extent(1)), beta, y, call.workspace);
}
// dx = dy w.
template <class Exec, class T>
void linear_input_gradient(const LayerCall<Exec, T>& call, const Span2<T, typename Exec::memory_space>& dy,
                           std::int64_t offset, const Span2<T, typename Exec::memory_space>& dx) {
    gemm<Exec, T, T>(call.exec, Op::none, Op::none, 1, dy, matrix(call.parameters, offset, dy.extent(1), dx.extent(1)),
                     0, dx, call.workspace);
}
// dw += dy^T x.
template <class Exec, class T>
void linear_weight_gradient(const LayerCall<Exec, T>& call, const Span2<T, typename Exec::memory_space>& dy,
                            const Span2<T, typename Exec::memory_space>& x, std::int64_t offset,
                            const Span1<accumulate_t<T>, typename Exec::memory_space>& gradients) {
    gemm<Exec, T, accumulate_t<T>>(call.exec, Op::transpose, Op::none, 1, dy, x, 1,
                                   matrix(gradients, offset, dy.extent(1), x.extent(1)), call.workspace);
}

// Backward of normed = norm(x) where scratch.normed holds d(normed) and becomes normed; adds to the stream.
template <class Exec, class T>
void norm_gradients(const LayerCall<Exec, T>& call, const Span2<T, typename Exec::memory_space>& x, std::int64_t offset,
                    const Span1<accumulate_t<T>, typename Exec::memory_space>& gradients) {
    const int hidden = call.config.hidden_size;
    rms_norm_backward<Exec, T>(call.exec, NormBackward::add_to_dx, as_heads(x), vector(call.parameters, offset, hidden),
                               call.config.rms_norm_eps, as_heads(call.scratch.normed), call.scratch.stream,
                               call.scratch.norm_partial, vector(gradients, offset, hidden));
}

}  // namespace

LayerOffsets layer_offsets(const ParameterTable& table, const ModelConfig& config, int layer) {
    const std::string prefix = concat("model.layers.", layer, ".");
    const auto offset = [&](const char* name) { return table.find(prefix + name + ".weight").offset; };
    LayerOffsets offsets{};
    offsets.input_norm = offset("input_layernorm");
    offsets.qkv = offset("self_attn.q_proj");
    if (config.qk_norm) {
        offsets.q_norm = offset("self_attn.q_norm");
        offsets.k_norm = offset("self_attn.k_norm");
    }
    offsets.o = offset("self_attn.o_proj");
    offsets.post_norm = offset("post_attention_layernorm");
    offsets.gate_up = offset("mlp.gate_proj");
    offsets.down = offset("mlp.down_proj");
    return offsets;
}

template <class Exec, class T>
void layer_forward(const LayerCall<Exec, T>& call, const Span2<T, typename Exec::memory_space>& output) {
    const Region region("SparseAttn::layer_forward");
    const auto& saved = call.saved;
    const auto& scratch = call.scratch;
    const int hidden = call.config.hidden_size;
    // Each norm also starts the next residual sum, to which the product at the end of the half layer adds.
    rms_norm<Exec, T>(call.exec, as_heads(call.input), vector(call.parameters, call.offsets.input_norm, hidden),
                      call.config.rms_norm_eps, as_heads(scratch.normed), saved.middle);
    linear(call, scratch.normed, call.offsets.qkv, 0, saved.qkv);
    attention(call);
    linear(call, saved.attention, call.offsets.o, 1, saved.middle);

    rms_norm<Exec, T>(call.exec, as_heads(saved.middle), vector(call.parameters, call.offsets.post_norm, hidden),
                      call.config.rms_norm_eps, as_heads(scratch.normed), output);
    linear(call, scratch.normed, call.offsets.gate_up, 0, saved.gate_up);
    if (output.extent(0) == 0) return;
    swiglu<Exec, T>(call.exec, saved.gate_up, scratch.act);
    linear(call, scratch.act, call.offsets.down, 1, output);
}

template <class Exec, class T>
void layer_backward(const LayerCall<Exec, T>& call,
                    const Span1<accumulate_t<T>, typename Exec::memory_space>& gradients) {
    const Region region("SparseAttn::layer_backward");
    const auto& saved = call.saved;
    const auto& scratch = call.scratch;
    linear_input_gradient(call, scratch.stream, call.offsets.down, scratch.act);
    swiglu_backward<Exec, T>(call.exec, saved.gate_up, scratch.act);
    linear_weight_gradient(call, scratch.stream, scratch.act, call.offsets.down, gradients);
    linear_input_gradient(call, saved.gate_up, call.offsets.gate_up, scratch.normed);
    norm_gradients(call, saved.middle, call.offsets.post_norm, gradients);
    linear_weight_gradient(call, saved.gate_up, scratch.normed, call.offsets.gate_up, gradients);

    linear_input_gradient(call, scratch.stream, call.offsets.o, scratch.dattention);
    linear_weight_gradient(call, scratch.stream, saved.attention, call.offsets.o, gradients);
    attention_gradients(call, gradients);
    linear_input_gradient(call, scratch.dqkv, call.offsets.qkv, scratch.normed);
    norm_gradients(call, call.input, call.offsets.input_norm, gradients);
    linear_weight_gradient(call, scratch.dqkv, scratch.normed, call.offsets.qkv, gradients);
}

#define SPARSEATTN_LAYER(EXEC, T)                                                                         \
    template void layer_forward(const LayerCall<EXEC, T>&, const Span2<T, typename EXEC::memory_space>&); \
    template void layer_backward(const LayerCall<EXEC, T>&, const Span1<accumulate_t<T>, typename EXEC::memory_space>&);
SPARSEATTN_LAYER(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_LAYER(Kokkos::DefaultExecutionSpace, bf16)
SPARSEATTN_LAYER(Kokkos::DefaultExecutionSpace, double)

}  // namespace sparseattn::detail
