#pragma once
// One pack through the decoder: device copies, layouts, gates of query heads.

#include <cstdint>
#include <optional>
#include <vector>

#include "sparseattn/io/packed_batch.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/model/decoder.hpp"
#include "sparseattn/model/selected_attention.hpp"
#include "sparseattn/sparsity/head_map.hpp"
#include "sparseattn/sparsity/sparse_branch.hpp"

namespace sparseattn::detail {

using TrainExec = Kokkos::DefaultExecutionSpace;
using TrainMem = TrainExec::memory_space;

struct PackSettings {
    int block = 64;
    Implementation implementation = Implementation::automatic;
    SparseBranch sparse;  // what a head does as far as its gate is 0
    TrainingMemory memory;
};

// Labels of a pack that count.
[[nodiscard]] std::int64_t count_labels(const PackedTokens& pack);

// The pack on the device.
[[nodiscard]] Batch<TrainMem> make_batch(const TrainExec& exec, const PackedTokens& pack);

// The layers of the gated operator of a sparse branch that selects.
[[nodiscard]] std::vector<LayerSelector> layer_selectors(const SparseBranch& branch);

class PackRunner {
  public:
    PackRunner(const TrainExec& exec, const ModelConfig& config, const PackSettings& settings);

    // Sum of the labels' negative log likelihoods. `gates` of the key/value heads; null: every head dense.
    double loss(const PackedTokens& pack, const HeadMap* gates, const Span1<const float, TrainMem>& parameters);

    // As loss; adds scale * gradient to `gradients`, and puts scale * d(sum)/d(gates) into `dgates` when gated.
    double loss_and_gradients(const PackedTokens& pack, const HeadMap* gates,
                              const Span1<const float, TrainMem>& parameters, double scale,
                              const Span1<float, TrainMem>& gradients, HeadMap& dgates);

    [[nodiscard]] Decoder<TrainExec, float>& decoder() { return decoder_; }

  private:
    // work(batch, attention) with the operator for these gates.
    template <class Work>
    double with_attention(const PackedTokens& pack, const HeadMap* gates, bool gradients, const Work& work);

    TrainExec exec_;
    PackSettings settings_;
    Decoder<TrainExec, float> decoder_;
    PlannedAttention<TrainExec, float> planned_;
    std::optional<SelectedAttention<TrainExec, float>> selected_;  // of a sparse branch that selects
    Array2<float, TrainMem> gate_;                                 // [layers, query heads]
    Array2<float, TrainMem> dgate_;                                // the same
};

}  // namespace sparseattn::detail
