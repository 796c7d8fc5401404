#pragma once
/// \file
/// The LLaMA decoder: loss, and loss with gradients, of a packed batch.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "sparseattn/model/block_attention.hpp"
#include "sparseattn/model/parameter_table.hpp"

namespace sparseattn {

/// One pack of documents. All arrays are [sequences.queries()]; queries and keys are the same tokens.
template <class Mem>
struct Batch {
    Sequences<Mem> sequences;
    Array1<std::int32_t, Mem> tokens;     // in [0, vocab_size)
    Array1<std::int32_t, Mem> positions;  // index inside the document, for the rotary embedding
    Array1<std::int32_t, Mem> labels;     // the next token, or -1: does not count
    std::int64_t label_count = 0;         // labels that count
};

/// How a training step spends memory.
struct TrainingMemory {
    bool recompute_layers = false;  // keep each layer's input only, and run its forward pass again for the backward
    int loss_block = 512;           // tokens whose logits exist at once
};

/// Told during a backward pass that the work submitted to its execution-space instance so far completes the gradients
/// from element `begin` of the flat buffer to its end. Comes after the head (unless it is tied), the last norm, each
/// layer from the last to the first, and with begin = 0 after the embedding.
using GradientsFinal = std::function<void(std::int64_t begin)>;

/// Bytes that a Decoder holds while it works on packs of a given size (parameters and gradients are the caller's).
struct MemoryPlan {
    std::int64_t activations = 0;  // what the backward pass needs of the forward pass, or one layer without it
    std::int64_t workspace = 0;    // temporaries, logits among them
    std::int64_t attention = 0;    // temporaries of the attention operator

    [[nodiscard]] std::int64_t total() const { return activations + workspace + attention; }
};

/// Runs a decoder on one execution-space instance. T is what parameters, activations and their gradients are stored as:
/// float, bf16, or double for gradient checks (attention is then the reference). Arithmetic, gradients of parameters,
/// logits and losses are Accumulate, float for bf16 (docs/numerics.md). Parameters and gradients are flat buffers in
/// the order of table(). Memory is allocated by the first call of a size and kept; the same call gives the same bits
/// again for the same number of threads.
template <class Exec, class T>
class Decoder {
  public:
    using Mem = typename Exec::memory_space;
    using Accumulate = accumulate_t<T>;

    /// Allocates nothing. Throws InvalidArgument if `config` is not valid.
    Decoder(const Exec& exec, const ModelConfig& config);
    ~Decoder();
    Decoder(Decoder&&) noexcept;
    Decoder& operator=(Decoder&&) noexcept;

    [[nodiscard]] const ModelConfig& config() const;
    [[nodiscard]] const ParameterTable& table() const;

    /// Fresh weights: norms 1, everything else normal(0, initializer_range), the projections back into the residual
    /// stream (o_proj, down_proj) divided by sqrt(2 layers). A pure function of seed and element number.
    static void initialise(const Exec& exec, const ModelConfig& config, std::uint64_t seed,
                           const Span1<T, Mem>& parameters);

    /// Sum over the labels of their negative log likelihood (natural log), with `attention` in every layer. Waits for
    /// `exec` once, at the end. Throws InvalidArgument for extents that do not fit and for tokens or labels outside the
    /// vocabulary.
    double loss(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention, const Span1<const T, Mem>& parameters,
                int loss_block = TrainingMemory{}.loss_block);
    /// As loss; also fills `logits` [tokens.size(), vocab_size] with those of chosen tokens of the pack, in that order.
    double loss_and_logits(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention,
                           const Span1<const T, Mem>& parameters, const std::vector<std::int32_t>& tokens,
                           const Span2<Accumulate, Mem>& logits, int loss_block = TrainingMemory{}.loss_block);
    /// With the layouts of `plan`; the decoder keeps the operator's memory.
    double loss(const Batch<Mem>& batch, const AttentionPlan<Mem>& plan, const Span1<const T, Mem>& parameters,
                int loss_block = TrainingMemory{}.loss_block);

    /// As loss; also adds scale * d(sum)/d(parameters) to `gradients`, saying when they are `final` (if it is given).
    /// After an exception the gradients are not to be used.
    double loss_and_gradients(const Batch<Mem>& batch, LayerAttention<Exec, T>& attention,
                              const Span1<const T, Mem>& parameters, Accumulate scale,
                              const Span1<Accumulate, Mem>& gradients, const TrainingMemory& memory,
                              const GradientsFinal& final = {});
    /// The elements where the gradients may become final, ascending from 0.
    [[nodiscard]] std::vector<std::int64_t> gradient_cuts() const;
    /// With the layouts of `plan`; if it is gated, scale * d(sum)/d(gate) is added to `dgate` [layers, query heads]
    /// (empty otherwise).
    double loss_and_gradients(const Batch<Mem>& batch, const AttentionPlan<Mem>& plan,
                              const Span1<const T, Mem>& parameters, Accumulate scale,
                              const Span1<Accumulate, Mem>& gradients, const Span2<float, Mem>& dgate,
                              const TrainingMemory& memory);

    /// What loss_and_gradients, or loss if `training` is false, allocates for packs of `tokens` tokens, the operator's
    /// memory among it.
    [[nodiscard]] MemoryPlan memory_plan(std::int64_t tokens, const LayerAttention<Exec, T>& attention, bool training,
                                         const TrainingMemory& memory) const;
    /// The same with what the operator says of itself.
    [[nodiscard]] MemoryPlan memory_plan(std::int64_t tokens, const AttentionBytes& attention, bool training,
                                         const TrainingMemory& memory) const;
    /// The same with layouts known before the pass.
    [[nodiscard]] MemoryPlan memory_plan(std::int64_t tokens, bool gated, bool training,
                                         const TrainingMemory& memory) const;
    /// Bytes held now, those of operators of the caller's not among them.
    [[nodiscard]] std::int64_t allocated() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace sparseattn
