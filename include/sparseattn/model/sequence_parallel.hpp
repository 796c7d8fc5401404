#pragma once
/// \file
/// Attention of a decoder whose tokens are spread over the ranks of a group.

#include <memory>
#include <vector>

#include "sparseattn/model/layer_attention.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/parallel/message_path.hpp"
#include "sparseattn/select/selector.hpp"

namespace sparseattn {

/// What attention computes in the layers of a pack.
struct SequenceParallelTask {
    /// Of every layer, or one entry for all of them. Causal methods, all of one block size.
    std::vector<LayerSelector> layers;
    /// Gate z of each query head, [layers * query heads]: a head computes z dense + (1 - z) selected. Empty: selected.
    std::vector<float> gate = {};
    /// Key blocks that selected heads will visit, to place them by: [layers * query heads], say visited_blocks() of an
    /// earlier pack. Empty: they count as dense. (Where several ranks share a key/value head, its gradients are summed
    /// in another order when the placement differs: the same costs give the same bits.)
    std::vector<double> visited = {};
};

struct SequenceParallelOptions {
    /// Pieces in which a rank's heads are exchanged at least (where it has as many key/value heads): piece i + 1
    /// travels while piece i computes.
    int pieces = 2;
    /// Streaming heads fetch the keys they see from other ranks instead of being exchanged.
    bool halo = true;
    /// Of data in device memory; data in host memory goes directly.
    MessagePath messages = MessagePath::staged;
    AttentionOptions attention;
};

/// Bytes that this rank has sent, by purpose.
struct ExchangedBytes {
    std::int64_t heads = 0;  // of heads that are computed on whole sequences
    std::int64_t halo = 0;   // of keys and values of streaming heads
};

/// Layout of some heads of a layer, on the host.
struct PieceLayout {
    std::vector<int> heads;               // query heads of the layer
    std::vector<std::int32_t> head_list;  // list of each
    HostLists lists;
};

/// Attention of a sequence-parallel group: each rank's decoder works on its share of a pack's consecutive tokens
/// (TokenShards), and for attention the ranks exchange heads: query, key and value of a head go to the one rank that
/// computes it on whole sequences, the output comes back (DeepSpeed-Ulysses, arXiv 2309.14509). Heads are placed by the
/// blocks that they visit; heads need not divide by ranks, and a key/value head goes once to each rank that owns one of
/// its query heads. Heads that only stream at token granularity (by their mode, or with gate 0) stay with their tokens
/// and fetch sink and local keys from earlier ranks instead.
///
/// Layouts, gates and results are those of one rank, to rounding; they are bit-identical from run to run for the same
/// number of ranks. begin_pack, the passes, gate_gradients and visited_blocks are collective over the group: all
/// ranks call them in the same order with the same arguments, each with its own tokens. An exception on one rank alone
/// leaves the others waiting: end the job.
///
/// Memory of a rank between forward and backward, in elements per layer: the query, key, value, out and lse of the
/// heads that it computes, of all tokens (a gated layer: both branches' out and lse). That is its share of the whole,
/// but for key/value heads that several ranks compute with. With recomputed layers one such set; it is exchanged again.
template <class Exec, class T>
class SequenceParallelAttention : public LayerAttention<Exec, T> {
  public:
    using Mem = typename Exec::memory_space;

    /// Plans packs on `exec`. Throws InvalidArgument for options out of range.
    SequenceParallelAttention(const Exec& exec, const Communicator& group, const ModelConfig& config,
                              const SequenceParallelOptions& options = {});
    ~SequenceParallelAttention() override;

    /// Sets the pack of the passes to come: `offsets` are the borders of its documents (on all ranks those of the whole
    /// pack). Builds layouts that need no scores, places heads and plans the exchange. Waits for the execution space.
    /// Throws InvalidArgument for a task that does not fit the model, and for fewer tokens than ranks.
    void begin_pack(const std::vector<std::int32_t>& offsets, const SequenceParallelTask& task);

    /// Throws InvalidArgument when no pack was set, or the pass has not as many tokens as this rank's share of it.
    void prepare(const ModelConfig& config, const PassShape& pass) override;
    void forward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<T, Mem>& out) override;
    void backward(const Exec& exec, const LayerInputs<Exec, T>& inputs, const HeadsView<const T, Mem>& out,
                  const HeadsView<const T, Mem>& dout, const AttentionGradients<T, Mem>& gradients) override;
    /// Of the pack that was set; selected layouts are counted as if every block were kept.
    [[nodiscard]] AttentionBytes bytes(const ModelConfig& config, const PassShape& pass) const override;
    /// Of the first rank of a group of `ranks` with pass.tokens tokens each, one document. Builds that pack's plan.
    [[nodiscard]] static AttentionBytes bytes_of(const Exec& exec, const ModelConfig& config, const PassShape& pass,
                                                 int ranks, const SequenceParallelTask& task,
                                                 const SequenceParallelOptions& options = {});
    [[nodiscard]] std::int64_t allocated() const override;

    /// d(loss)/d(gate) [layers * query heads] of the backward passes since begin_pack, from all ranks of the group.
    /// Wait for the passes first (Decoder does).
    [[nodiscard]] std::vector<float> gate_gradients();

    /// Key blocks that the selected heads of the pack have visited, [layers * query heads], from all ranks of the
    /// group; 0 for other heads. Wait for the passes first.
    [[nodiscard]] std::vector<double> visited_blocks() const;

    /// Query heads of a layer of the pack: those of each rank, and those that stay with their tokens.
    [[nodiscard]] std::vector<std::vector<int>> placement(int layer) const;
    [[nodiscard]] std::vector<int> halo_heads(int layer) const;
    /// Layouts by which this rank computed the heads that it owns last (of gated heads the selected branch's): one per
    /// piece, whose query head heads[i] used list head_list[i].
    [[nodiscard]] std::vector<PieceLayout> layouts(int layer) const;
    /// Bytes sent so far.
    [[nodiscard]] ExchangedBytes exchanged() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace sparseattn
