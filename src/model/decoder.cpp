#include "sparseattn/model/decoder.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/model/detail/buffers.hpp"
#include "sparseattn/model/detail/decoder_layer.hpp"
#include "sparseattn/model/detail/layers.hpp"
#include "sparseattn/model/detail/rows.hpp"

namespace sparseattn {
namespace {

using detail::Op;

template <class T, class Mem>
Span2<T, Mem> row_block(const Span2<T, Mem>& matrix, std::int64_t begin, std::int64_t count) {
    return Span2<T, Mem>(matrix.data() + begin * matrix.extent(1), static_cast<std::size_t>(count), matrix.extent(1));
}

template <class Array>
void require_extent(const char* name, const Array& array, std::int64_t extent, const char* what) {
    const auto was = static_cast<std::int64_t>(array.extent(0));
    require(was == extent, concat(name, ".size()"), was, concat(what, " = ", extent));
}

detail::BufferShape buffer_shape(std::int64_t tokens, bool training, const TrainingMemory& memory) {
    require(tokens >= 0, "tokens", tokens, "at least 0");
    require(memory.loss_block >= 1, "loss_block", memory.loss_block, "at least 1");
    return {tokens, training, training && memory.recompute_layers, memory.loss_block};
}

}  // namespace

template <class Exec, class T>
struct Decoder<Exec, T>::State {
    State(const Exec& exec_, const ModelConfig& config_) : exec(exec_), config(config_), table(config_) {
        for (int l = 0; l < config.num_hidden_layers; ++l) {
            layers.push_back(detail::layer_offsets(table, config, l));
        }
        embedding = table.find("model.embed_tokens.weight").offset;
        norm = table.find("model.norm.weight").offset;
        head = config.tie_word_embeddings ? embedding : table.find("lm_head.weight").offset;
    }

    Exec exec;
    ModelConfig config;
    ParameterTable table;
    std::vector<detail::LayerOffsets> layers;
    std::int64_t embedding = 0, norm = 0, head = 0;

    Array1<std::byte, Mem> memory;
    detail::BufferShape shape;
    detail::DecoderBuffers<T, Mem> buffers;
    std::unique_ptr<Workspace<Mem>> workspace = std::make_unique<Workspace<Mem>>();  // of the products
    PlannedAttention<Exec, T> planned;                                               // of the calls with a plan

    template <class U>
    Span2<U, Mem> vocabulary_matrix(const Span1<U, Mem>& flat, std::int64_t offset) const {
        return Span2<U, Mem>(flat.data() + offset, static_cast<std::size_t>(config.vocab_size),
                             static_cast<std::size_t>(config.hidden_size));
    }
    template <class U>
    Span1<U, Mem> norm_vector(const Span1<U, Mem>& flat) const {
        return Span1<U, Mem>(flat.data() + norm, static_cast<std::size_t>(config.hidden_size));
    }

    void check(const Batch<Mem>& batch, const Span1<const T, Mem>& parameters, int loss_block) const {
        const std::int64_t tokens = batch.sequences.queries();
        require(batch.sequences.key_offsets() == batch.sequences.query_offsets(), "batch.sequences",
                "of different queries and keys", "of the same tokens for both");
        require_extent("batch.tokens", batch.tokens, tokens, "batch.sequences.queries()");
        require_extent("batch.positions", batch.positions, tokens, "batch.sequences.queries()");
        require_extent("batch.labels", batch.labels, tokens, "batch.sequences.queries()");
        require_extent("parameters", parameters, table.total(), "the model's parameters");
        require(loss_block >= 1, "loss_block", loss_block, "at least 1");
    }

    void check_logits(const Batch<Mem>& batch, const std::vector<std::int32_t>& tokens,
                      const Span2<Accumulate, Mem>& logits) const {
        const std::int64_t count = batch.sequences.queries(), wanted = static_cast<std::int64_t>(tokens.size());
        if (tokens.empty() && logits.size() == 0) return;
        require_extent("logits", logits, wanted, "tokens.size()");
        require(static_cast<int>(logits.extent(1)) == config.vocab_size, "logits.extent(1)", logits.extent(1),
                concat("vocab_size = ", config.vocab_size));
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            require(tokens[i] >= 0 && tokens[i] < count, concat("tokens[", i, "]"), tokens[i],
                    concat("in [0, ", count, "), a token of the pack"));
        }
    }

    void prepare(const detail::BufferShape& wanted, LayerAttention<Exec, T>& attention) {
        attention.prepare(config, pass_of(wanted));
        // Here, so that no product of the pass makes it grow.
        if (const std::size_t bytes = product_bytes(wanted); bytes > 0) {
            typename Workspace<Mem>::Frame(*workspace).template take<std::byte>(bytes);
        }
        if (wanted == shape && memory.extent(0) > 0) return;
        const std::size_t bytes = detail::cut_buffers<T, Mem>(config, wanted, nullptr).bytes;
        if (bytes > memory.extent(0)) {
            memory = {};  // give the old block back first
            memory =
                Array1<std::byte, Mem>(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::decoder"), bytes);
        }
        buffers = detail::cut_buffers<T, Mem>(config, wanted, memory.data());
        shape = wanted;
    }

    // Workspace of the largest product.
    std::size_t product_bytes(const detail::BufferShape& wanted) const {
        const auto tokens = static_cast<std::size_t>(wanted.tokens),
                   hidden = static_cast<std::size_t>(config.hidden_size),
                   inner = static_cast<std::size_t>(config.intermediate_size),
                   query = static_cast<std::size_t>(config.query_size()),
                   vocabulary = static_cast<std::size_t>(config.vocab_size);
        std::size_t most = 0;
        const auto add = [&](std::size_t rows, std::size_t in, std::size_t out) {
            most = std::max(most, detail::gemm_workspace<Exec, T>(rows, out, in));
            if (!wanted.training) return;
            most = std::max(most, detail::gemm_workspace<Exec, T>(rows, in, out));  // dx
            most = std::max(most, detail::gemm_workspace<Exec, T>(out, in, rows));  // dw
        };
        add(tokens, hidden, static_cast<std::size_t>(config.qkv_size()));
        add(tokens, query, hidden);
        add(tokens, hidden, 2 * inner);
        add(tokens, inner, hidden);
        add(std::min(static_cast<std::size_t>(wanted.loss_block), tokens), hidden, vocabulary);
        return most;
    }

    static PassShape pass_of(const detail::BufferShape& shape) {
        return {shape.tokens, shape.training, shape.recompute};
    }

    detail::LayerCall<Exec, T> layer_call(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention,
                                          const Span1<const T, Mem>& parameters, int l) {
        return {exec,      config,     batch.sequences,   attention,        l,
                layers[l], parameters, buffers.inputs[l], buffers.layer(l), buffers.scratch,
                *workspace};
    }

    // Up to the residual stream after the last layer.
    void forward(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention, const Span1<const T, Mem>& parameters) {
        const Region region("SparseAttn::decoder_forward");
        const auto& scratch = buffers.scratch;
        detail::check_batch<Exec>(exec, batch.tokens, batch.labels, config.vocab_size, scratch.first_bad);
        detail::rotary_table<Exec, Accumulate>(exec, batch.positions, config.rope_theta, scratch.cosine, scratch.sine);
        detail::embedding<Exec, T>(exec, batch.tokens, vocabulary_matrix(parameters, embedding), buffers.inputs[0]);
        for (int l = 0; l < config.num_hidden_layers; ++l) {
            detail::layer_forward<Exec, T>(layer_call(batch, attention, parameters, l), buffers.inputs[l + 1]);
        }
        detail::rms_norm<Exec, T>(exec, detail::as_heads(buffers.inputs.back()), norm_vector(parameters),
                                  config.rms_norm_eps, detail::as_heads(scratch.normed));
    }

    // body(rows of scratch.normed, logits of these rows, their labels, their losses), block by block.
    template <class Body>
    void for_each_loss_block(const Batch<Mem>& batch, const Span1<const T, Mem>& parameters, const Body& body) {
        const Region region("SparseAttn::loss_blocks");
        const auto& scratch = buffers.scratch;
        const std::int64_t tokens = shape.tokens, block = static_cast<std::int64_t>(scratch.logits.extent(0));
        for (std::int64_t begin = 0; begin < tokens; begin += block) {
            const std::int64_t count = std::min(block, tokens - begin);
            const auto rows = row_block(scratch.normed, begin, count);
            const auto logits = row_block(scratch.logits, 0, count);
            detail::gemm<Exec, T, Accumulate>(exec, Op::none, Op::transpose, 1, rows,
                                              vocabulary_matrix(parameters, head), 0, logits, *workspace);
            body(rows, logits,
                 Span1<const std::int32_t, Mem>(batch.labels.data() + begin, static_cast<std::size_t>(count)),
                 Span1<Accumulate, Mem>(scratch.losses.data() + begin, static_cast<std::size_t>(count)));
        }
    }

    // Brings the sum of the losses to the host; the one wait of a call.
    double finish(const Batch<Mem>& batch) {
        const auto& scratch = buffers.scratch;
        detail::sum_losses<Exec, Accumulate>(exec, scratch.losses, scratch.loss_sums);
        std::vector<double> sums(scratch.loss_sums.extent(0));
        std::int32_t first_bad = 0;
        const auto copy = [&](auto* to, const auto& from) {
            using Value = std::remove_pointer_t<decltype(to)>;
            Kokkos::deep_copy(exec, Span1<Value, Kokkos::HostSpace>(to, from.extent(0)), from);
        };
        copy(sums.data(), scratch.loss_sums);
        copy(&first_bad, scratch.first_bad);
        fence(exec, "SparseAttn::loss");
        if (first_bad < batch.sequences.queries()) report_bad(batch, first_bad);
        double sum = 0;
        for (const double part : sums) sum += part;
        return sum;
    }

    void report_bad(const Batch<Mem>& batch, std::int32_t t) const {
        std::int32_t token = 0;
        Kokkos::deep_copy(token, Kokkos::subview(batch.tokens, t));
        const auto vocabulary = concat(config.vocab_size, ")");
        require(token >= 0 && token < config.vocab_size, concat("batch.tokens[", t, "]"), token,
                concat("in [0, vocab_size = ", vocabulary));
        Kokkos::deep_copy(token, Kokkos::subview(batch.labels, t));
        require(false, concat("batch.labels[", t, "]"), token, concat("-1 or in [0, vocab_size = ", vocabulary));
    }

    void backward(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention, const Span1<const T, Mem>& parameters,
                  const Span1<Accumulate, Mem>& gradients, const GradientsFinal& final) {
        const Region region("SparseAttn::decoder_backward");
        const auto& scratch = buffers.scratch;
        const auto completed = [&](std::int64_t begin) {
            if (final) final(begin);
        };
        if (head != embedding) completed(head);
        detail::rms_norm_backward<Exec, T>(exec, detail::NormBackward::into_dx, detail::as_heads(buffers.inputs.back()),
                                           norm_vector(parameters), config.rms_norm_eps,
                                           detail::as_heads(scratch.normed), scratch.stream, scratch.norm_partial,
                                           norm_vector(gradients));
        completed(norm);
        const int last = config.num_hidden_layers - 1;
        for (int l = last; l >= 0; --l) {
            const auto call = layer_call(batch, attention, parameters, l);
            // The one shared set of buffers still holds the last layer's.
            if (shape.recompute && l < last) detail::layer_forward<Exec, T>(call, {});
            detail::layer_backward<Exec, T>(call, gradients);
            completed(layers[l].begin());
        }
        detail::embedding_backward<Exec, T>(exec, batch.tokens, scratch.stream,
                                            vocabulary_matrix(gradients, embedding));
        completed(embedding);
    }

    MemoryPlan plan_of(const detail::BufferShape& wanted, const AttentionBytes& attention) const {
        const auto counted = detail::cut_buffers<T, Mem>(config, wanted, nullptr);
        MemoryPlan plan;
        plan.activations = static_cast<std::int64_t>(counted.activation_bytes) + attention.saved;
        plan.workspace = static_cast<std::int64_t>(counted.bytes - counted.activation_bytes + product_bytes(wanted));
        plan.attention = attention.workspace;
        return plan;
    }
};

template <class Exec, class T>
Decoder<Exec, T>::Decoder(const Exec& exec, const ModelConfig& config)
    : state_(std::make_unique<State>(exec, config)) {}
template <class Exec, class T>
Decoder<Exec, T>::~Decoder() = default;
template <class Exec, class T>
Decoder<Exec, T>::Decoder(Decoder&&) noexcept = default;
template <class Exec, class T>
Decoder<Exec, T>& Decoder<Exec, T>::operator=(Decoder&&) noexcept = default;

template <class Exec, class T>
const ModelConfig& Decoder<Exec, T>::config() const {
    return state_->config;
}
template <class Exec, class T>
const ParameterTable& Decoder<Exec, T>::table() const {
    return state_->table;
}

template <class Exec, class T>
void Decoder<Exec, T>::initialise(const Exec& exec, const ModelConfig& config, std::uint64_t seed,
                                  const Span1<T, Mem>& parameters) {
    const Region region("SparseAttn::initialise");
    const ParameterTable table(config);
    require_extent("parameters", parameters, table.total(), "the model's parameters");
    const RandomStream random(seed, RandomPurpose::weight_init, 0);
    const auto ends_with = [](const std::string& name, const std::string& end) {
        return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
    };
    for (const ParameterInfo& info : table.parameters()) {
        const bool norm = info.shape.size() == 1;
        const bool residual = ends_with(info.name, "o_proj.weight") || ends_with(info.name, "down_proj.weight");
        const double deviation =
            config.initializer_range * (residual ? 1 / std::sqrt(2.0 * config.num_hidden_layers) : 1.0);
        Kokkos::parallel_for(
            "SparseAttn::initialise",
            Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, info.offset, info.offset + info.count),
            KOKKOS_LAMBDA(std::int64_t i) {
                parameters(i) =
                    norm ? T(1.0F) : static_cast<T>(deviation * random.normal(static_cast<std::uint64_t>(i)));
            });
    }
}

template <class Exec, class T>
double Decoder<Exec, T>::loss(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention,
                              const Span1<const T, Mem>& parameters, int loss_block) {
    return loss_and_logits(batch, attention, parameters, {}, {}, loss_block);
}

template <class Exec, class T>
double Decoder<Exec, T>::loss_and_logits(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention,
                                         const Span1<const T, Mem>& parameters, const std::vector<std::int32_t>& tokens,
                                         const Span2<Accumulate, Mem>& logits, int loss_block) {
    const Region region("SparseAttn::loss");
    State& s = *state_;
    s.check(batch, parameters, loss_block);
    s.check_logits(batch, tokens, logits);
    if (batch.sequences.queries() == 0) return 0;
    s.prepare({batch.sequences.queries(), false, false, loss_block}, attention);
    s.forward(batch, attention, parameters);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        detail::gemm<Exec, T, Accumulate>(s.exec, Op::none, Op::transpose, 1,
                                          row_block(s.buffers.scratch.normed, tokens[i], 1),
                                          s.vocabulary_matrix(parameters, s.head), 0,
                                          row_block(logits, static_cast<std::int64_t>(i), 1), *s.workspace);
    }
    s.for_each_loss_block(batch, parameters,
                          [&](const auto&, const auto& block, const auto& labels, const auto& losses) {
                              detail::cross_entropy<Exec, Accumulate>(s.exec, block, labels, losses);
                          });
    return s.finish(batch);
}

template <class Exec, class T>
double Decoder<Exec, T>::loss(const Batch<Mem>& batch, const AttentionPlan<Mem>& plan,
                              const Span1<const T, Mem>& parameters, int loss_block) {
    state_->planned.set(plan);
    return loss(batch, state_->planned, parameters, loss_block);
}

template <class Exec, class T>
double Decoder<Exec, T>::loss_and_gradients(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention,
                                            const Span1<const T, Mem>& parameters, Accumulate scale,
                                            const Span1<Accumulate, Mem>& gradients, const TrainingMemory& memory,
                                            const GradientsFinal& final) {
    const Region region("SparseAttn::loss_and_gradients");
    State& s = *state_;
    s.check(batch, parameters, memory.loss_block);
    require_extent("gradients", gradients, s.table.total(), "the model's parameters");
    if (batch.sequences.queries() == 0) return 0;
    s.prepare({batch.sequences.queries(), true, memory.recompute_layers, memory.loss_block}, attention);
    s.forward(batch, attention, parameters);
    s.for_each_loss_block(
        batch, parameters, [&](const auto& rows, const auto& logits, const auto& labels, const auto& losses) {
            const auto dlogits = row_block(s.buffers.scratch.dlogits, 0, labels.size());
            detail::cross_entropy_and_gradient<Exec, T>(s.exec, logits, labels, scale, losses, dlogits);
            detail::gemm<Exec, T, Accumulate>(s.exec, Op::transpose, Op::none, 1, dlogits, rows, 1,
                                              s.vocabulary_matrix(gradients, s.head), *s.workspace);
            detail::gemm<Exec, T, T>(s.exec, Op::none, Op::none, 1, dlogits, s.vocabulary_matrix(parameters, s.head), 0,
                                     rows, *s.workspace);
        });
    s.backward(batch, attention, parameters, gradients, final);
    return s.finish(batch);
}

template <class Exec, class T>
double Decoder<Exec, T>::loss_and_gradients(const Batch<Mem>& batch, const AttentionPlan<Mem>& plan,
                                            const Span1<const T, Mem>& parameters, Accumulate scale,
                                            const Span1<Accumulate, Mem>& gradients, const Span2<float, Mem>& dgate,
                                            const TrainingMemory& memory) {
    state_->planned.set(plan, dgate);
    return loss_and_gradients(batch, state_->planned, parameters, scale, gradients, memory);
}

template <class Exec, class T>
std::vector<std::int64_t> Decoder<Exec, T>::gradient_cuts() const {
    const State& s = *state_;
    std::vector<std::int64_t> cuts = {s.embedding};
    for (const detail::LayerOffsets& layer : s.layers) cuts.push_back(layer.begin());
    cuts.push_back(s.norm);
    if (s.head != s.embedding) cuts.push_back(s.head);
    return cuts;
}

template <class Exec, class T>
MemoryPlan Decoder<Exec, T>::memory_plan(std::int64_t tokens, const LayerAttention<Exec, T>& attention, bool training,
                                         const TrainingMemory& memory) const {
    return memory_plan(tokens, attention.bytes(config(), State::pass_of(buffer_shape(tokens, training, memory))),
                       training, memory);
}
template <class Exec, class T>
MemoryPlan Decoder<Exec, T>::memory_plan(std::int64_t tokens, const AttentionBytes& attention, bool training,
                                         const TrainingMemory& memory) const {
    return state_->plan_of(buffer_shape(tokens, training, memory), attention);
}
template <class Exec, class T>
MemoryPlan Decoder<Exec, T>::memory_plan(std::int64_t tokens, bool gated, bool training,
                                         const TrainingMemory& memory) const {
    const detail::BufferShape shape = buffer_shape(tokens, training, memory);
    return state_->plan_of(shape, BlockAttention<Exec, T>::bytes(config(), State::pass_of(shape), gated));
}
template <class Exec, class T>
std::int64_t Decoder<Exec, T>::allocated() const {
    return static_cast<std::int64_t>(state_->memory.extent(0) + state_->workspace->capacity()) +
           state_->planned.allocated();
}

template class Decoder<Kokkos::DefaultExecutionSpace, float>;
template class Decoder<Kokkos::DefaultExecutionSpace, bf16>;
template class Decoder<Kokkos::DefaultExecutionSpace, double>;

}  // namespace sparseattn
