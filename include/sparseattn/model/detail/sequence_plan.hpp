#pragma once
// How the ranks of a sequence-parallel group share the attention of a pack: layouts, heads of each rank, routes. All of
// it follows from what every rank knows.

#include <list>
#include <memory>
#include <vector>

#include "sparseattn/model/sequence_parallel.hpp"
#include "sparseattn/parallel/head_placement.hpp"
#include "sparseattn/parallel/routes.hpp"

namespace sparseattn::detail {

template <class Mem>
struct WholeLayout {
    BlockLayout<Mem> lists;
    TransposedLayout<Mem> transposed;
};

// Layouts of heads whose modes are known, over the same sequences. Built when first asked for, and kept.
template <class Exec>
class ModeLayouts {
  public:
    using Mem = typename Exec::memory_space;

    ModeLayouts(const Exec& exec, const Sequences<Mem>& sequences, int block)
        : exec_(exec), sequences_(sequences), block_(block) {}

    // One head per mode. The reference stays.
    const WholeLayout<Mem>& of(const std::vector<HeadMode>& modes);
    // Blocks that a head visits.
    double visited(const HeadMode& mode);
    [[nodiscard]] const Sequences<Mem>& sequences() const { return sequences_; }

  private:
    WholeLayout<Mem> build(const std::vector<HeadMode>& modes);

    Exec exec_;
    Sequences<Mem> sequences_;
    int block_;
    std::list<std::pair<std::vector<HeadMode>, WholeLayout<Mem>>> kept_;
};

// Heads of one call of attention. Selected heads get their layout from query and key.
template <class Mem>
struct HeadsPlan {
    HeadBatch heads;
    const WholeLayout<Mem>* dense = nullptr;  // of gated heads
    const WholeLayout<Mem>* known = nullptr;  // of the method's branch; null: selected
    LayerSelector selector;                   // of these heads, when selected
    int gate_begin = -1;                      // of the heads' gates in this rank's list; -1: not gated
};

// Heads that some rank computes on whole sequences. `heads` is this rank's part.
template <class Mem>
struct ExchangedHeads {
    HeadsPlan<Mem> heads;
    Route<Mem> inputs;   // query, key, value; their gradients on the way back
    Route<Mem> results;  // out on the way back, its gradient on the way there
};

// Heads that stay with their tokens: an array of own queries, an array of keys and values with a halo, several calls.
template <class Mem>
struct HaloHeads {
    std::vector<HeadsPlan<Mem>> calls;
    std::vector<int> queries, kv;  // of all calls, one after the other
    const Sequences<Mem>* sequences = nullptr;
    Route<Mem> own, keys, results;
};

template <class Mem>
struct LayerExchange {
    std::vector<std::vector<int>> placement;  // [rank] query heads
    std::vector<ExchangedHeads<Mem>> pieces;
    HaloHeads<Mem> halo;
};

template <class Exec>
class SequencePlan {
  public:
    using Mem = typename Exec::memory_space;

    SequencePlan(const Exec& exec, const ModelConfig& config, const TokenShards& shards, int rank,
                 const std::vector<std::int32_t>& offsets, const SequenceParallelTask& task,
                 const SequenceParallelOptions& options);
    SequencePlan(const SequencePlan&) = delete;  // layers point to layouts
    SequencePlan& operator=(const SequencePlan&) = delete;

    [[nodiscard]] const TokenShards& shards() const { return shards_; }
    [[nodiscard]] const Sequences<Mem>& sequences() const { return whole_.sequences(); }
    [[nodiscard]] const LayerExchange<Mem>& layer(int l) const { return layers_[static_cast<std::size_t>(l)]; }
    [[nodiscard]] bool gated() const { return !task_.gate.empty(); }
    // layer * query heads + head of each gate of this rank's heads.
    [[nodiscard]] const std::vector<int>& gate_heads() const { return gate_heads_; }

  private:
    struct HaloFrame {  // streaming heads with the same reach
        std::int64_t sink, local;
        std::vector<std::vector<IndexRange>> needs;  // [rank]
        ModeLayouts<Exec> layouts;
    };

    void check() const;
    [[nodiscard]] const LayerSelector& selector(int l) const;
    [[nodiscard]] std::vector<std::optional<HeadMode>> known_modes(int l) const;
    // Blocks that head `head` of all layers visits, with gate z (0 without gates) and known or selected mode.
    double cost(int head, float z, const std::optional<HeadMode>& mode);
    void plan_layer(int l, const SequenceParallelOptions& options);
    void plan_pieces(int l, const std::vector<std::optional<HeadMode>>& modes, int pieces, std::vector<bool>& touched);
    void plan_halo(int l, const std::vector<int>& heads, const std::vector<std::optional<HeadMode>>& modes,
                   std::vector<bool>& touched);
    HaloFrame& halo_frame(std::int64_t sink, std::int64_t local);
    HeadsPlan<Mem> heads_plan(int l, const HeadBatch& heads, const std::vector<std::optional<HeadMode>>& modes);

    Exec exec_;
    const ModelConfig& config_;
    TokenShards shards_;
    int rank_;
    std::vector<std::int32_t> offsets_;
    SequenceParallelTask task_;
    int block_;
    ModeLayouts<Exec> whole_;
    std::list<HaloFrame> halo_frames_;
    std::vector<LayerExchange<Mem>> layers_;
    std::vector<int> gate_heads_;
};

}  // namespace sparseattn::detail
