#pragma once
// What one rank of a sequence-parallel group computes of a pack: the calls of attention, and all they keep.

#include <memory>
#include <vector>

#include "sparseattn/model/detail/sequence_buffers.hpp"

namespace sparseattn::detail {

template <class Exec, class T>
class SequenceCalls {
  public:
    using Mem = typename Exec::memory_space;

    SequenceCalls(const ModelConfig& config, const AttentionOptions& options) : config_(config), options_(options) {}

    // The pack of the passes to come; `gate` of all heads of all layers, or empty. The plan before it must be gone
    // (end_pack) when one is made, so that both do not need memory at once.
    void begin_pack(const Exec& exec, std::unique_ptr<const SequencePlan<Exec>> plan, const std::vector<float>& gate);
    void end_pack() { plan_ = nullptr; }
    // Null: no pack.
    [[nodiscard]] const SequencePlan<Exec>* plan() const { return plan_.get(); }

    void prepare(const PassShape& pass);
    [[nodiscard]] const SavedExchange<T, Mem>& saved(int layer) const {
        return buffers_.layers[static_cast<std::size_t>(layer)];
    }
    [[nodiscard]] const ExchangeScratch<T, Mem>& scratch() const { return buffers_.scratch; }

    // A piece of the heads that are computed on whole sequences, from its saved inputs.
    void forward(const Exec& exec, int layer, std::size_t piece, const Span2<T, Mem>& out);
    void backward(const Exec& exec, int layer, std::size_t piece, const Span2<T, Mem>& dout,
                  const Span2<T, Mem>& dinputs);
    // The heads that stay with their tokens, from what is saved of them into what is saved.
    void halo_forward(const Exec& exec, int layer);
    void halo_backward(const Exec& exec, int layer, const Span2<T, Mem>& dout, const Span2<T, Mem>& dqueries,
                       const Span2<T, Mem>& dkeys);

    // The layout that a piece was computed by last; of gated heads the selected branch's.
    [[nodiscard]] const BlockLayout<Mem>& layout(int layer, std::size_t piece) const;
    // Of this rank's heads, as plan()->gate_heads(). Waits for `exec`.
    [[nodiscard]] std::vector<float> gate_gradients(const Exec& exec) const;
    // Key blocks that the selected heads of this rank have visited, [layers * query heads]. Waits for `exec`.
    [[nodiscard]] std::vector<double> visited_blocks(const Exec& exec) const;
    [[nodiscard]] std::int64_t allocated() const;

  private:
    struct Layouts;
    [[nodiscard]] Span1<float, Mem> gates_of(const Array1<float, Mem>& all, const HeadsPlan<Mem>& heads) const;
    void select_layout(const Exec& exec, int layer, const HeadsPlan<Mem>& heads, const AttentionInputs<T, Mem>& inputs,
                       WholeLayout<Mem>& chosen);
    [[nodiscard]] std::size_t kept_set(int layer) const {
        return selected_.size() == 1 ? 0 : static_cast<std::size_t>(layer);
    }
    template <class V, class Use>
    void for_each_halo_call(const HaloHeads<Mem>& heads, const Span2<T, Mem>& queries, const Span2<T, Mem>& keys,
                            const Use& use) const;

    const ModelConfig& config_;
    const AttentionOptions& options_;
    std::unique_ptr<const SequencePlan<Exec>> plan_;
    PassShape pass_;
    Array1<std::byte, Mem> memory_;
    SequenceBuffers<T, Mem> buffers_;
    Array1<float, Mem> gate_, dgate_;                      // of this rank's heads, as plan()->gate_heads()
    std::vector<std::vector<WholeLayout<Mem>>> selected_;  // [layer, or one for all][piece], of selected heads
    Array1<double, Mem> visited_;                          // blocks by selected heads of this rank
    Workspace<Mem> workspace_;                             // of selectors and attention calls, one after the other
    SelectionRoom<Mem> room_;                              // of selectors
};

}  // namespace sparseattn::detail
