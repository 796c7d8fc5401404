#pragma once
// One pack through the decoder: device copies, layouts, gates of query heads.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "sparseattn/io/packed_batch.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/model/decoder.hpp"
#include "sparseattn/model/selected_attention.hpp"
#include "sparseattn/model/sequence_parallel.hpp"
#include "sparseattn/parallel/process_grid.hpp"
#include "sparseattn/sparsity/head_map.hpp"
#include "sparseattn/sparsity/sparse_branch.hpp"
#include "sparseattn/train/train_options.hpp"

namespace sparseattn::detail {

using TrainExec = Kokkos::DefaultExecutionSpace;
using TrainMem = TrainExec::memory_space;

struct PackSettings {
    int block = 64;
    Implementation implementation = Implementation::automatic;
    SparseBranch sparse;  // what a head does as far as its gate is 0
    TrainingMemory memory;
    bool gpu_aware = false;  // MPI takes pointers to device memory
};

[[nodiscard]] PackSettings pack_settings(const TrainOptions& options);

// Labels of a pack that count.
[[nodiscard]] std::int64_t count_labels(const PackedTokens& pack);

// The pack on the device.
[[nodiscard]] Batch<TrainMem> make_batch(const TrainExec& exec, const PackedTokens& pack);

// The layers of the gated operator of a sparse branch that selects.
[[nodiscard]] std::vector<LayerSelector> layer_selectors(const SparseBranch& branch);

// How several ranks share attention.
[[nodiscard]] SequenceParallelOptions spread_options(const PackSettings& settings);
// What several ranks compute together in every layer of a pack; `gate` of query heads, empty: every head dense.
[[nodiscard]] SequenceParallelTask spread_task(const PackSettings& settings, std::vector<float> gate);

// Work on a pack is shared by the ranks of a sequence group, each with its tokens; all of them call with the same pack.
class PackRunner {
  public:
    PackRunner(const TrainExec& exec, const ModelConfig& config, const PackSettings& settings, ProcessGrid grid);

    // Labels that count, of this rank's tokens.
    [[nodiscard]] std::int64_t count_labels(const PackedTokens& pack) const;

    // Sum of the negative log likelihoods of this rank's labels. `gates` of the key/value heads; null: every head
    // dense.
    double loss(const PackedTokens& pack, const HeadMap* gates, const Span1<const float, TrainMem>& parameters);

    // As loss; adds scale * gradient to `gradients`, saying when they are final, and puts scale * d(sum over the
    // group)/d(gates) into `dgates` when gated.
    double loss_and_gradients(const PackedTokens& pack, const HeadMap* gates,
                              const Span1<const float, TrainMem>& parameters, double scale,
                              const Span1<float, TrainMem>& gradients, HeadMap& dgates,
                              const GradientsFinal& final = {});

    [[nodiscard]] const Decoder<TrainExec, float>& decoder() const { return decoder_; }
    [[nodiscard]] const ProcessGrid& grid() const { return grid_; }

  private:
    // work(batch, attention) with the operator for these gates.
    template <class Work>
    double with_attention(const PackedTokens& pack, const HeadMap* gates, const Work& work);
    [[nodiscard]] std::vector<float> gate_gradients();

    TrainExec exec_;
    PackSettings settings_;
    ProcessGrid grid_;
    Decoder<TrainExec, float> decoder_;
    std::unique_ptr<SequenceParallelAttention<TrainExec, float>> spread_;  // where several ranks share a pack
    PlannedAttention<TrainExec, float> planned_;                           // otherwise
    std::optional<SelectedAttention<TrainExec, float>> selected_;          // of a sparse branch that selects
    Array2<float, TrainMem> gate_;                                         // of these two, [layers, query heads]
    Array2<float, TrainMem> dgate_;                                        // the same
};

}  // namespace sparseattn::detail
