#pragma once
// One pack through the decoder: device copies, layouts, gates of query heads.

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "sparseattn/io/packed_batch.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/model/decoder.hpp"
#include "sparseattn/model/precision.hpp"
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
    MessagePath messages = MessagePath::staged;  // of data in device memory
    Precision precision = Precision::fp32;
};

[[nodiscard]] PackSettings pack_settings(const TrainOptions& options);

// Labels of a pack that count.
[[nodiscard]] std::int64_t count_labels(const PackedTokens& pack);

// The pack on the device, in a batch that may have been filled before. Does not wait: `pack` must stay until `exec` has
// been waited for.
void fill_batch(const TrainExec& exec, const PackedTokens& pack, Batch<TrainMem>& batch);
// The same in a new batch; waits.
[[nodiscard]] Batch<TrainMem> make_batch(const TrainExec& exec, const PackedTokens& pack);

// The layers of the gated operator of a sparse branch that selects.
[[nodiscard]] std::vector<LayerSelector> layer_selectors(const SparseBranch& branch);

// How several ranks share attention.
[[nodiscard]] SequenceParallelOptions spread_options(const PackSettings& settings);
// What several ranks compute together in every layer of a pack; `gate` of query heads, empty: every head dense.
[[nodiscard]] SequenceParallelTask spread_task(const PackSettings& settings, std::vector<float> gate);

// The decoder and its operators in one precision. Work on a pack is shared by the ranks of a sequence group, each with
// its tokens; all of them call with the same pack.
class PackRunner {
  public:
    [[nodiscard]] static std::unique_ptr<PackRunner> make(const TrainExec& exec, const ModelConfig& config,
                                                          const PackSettings& settings, ProcessGrid grid);
    virtual ~PackRunner() = default;
    PackRunner(const PackRunner&) = delete;
    PackRunner& operator=(const PackRunner&) = delete;

    [[nodiscard]] virtual const ParameterTable& table() const = 0;
    // As Decoder's.
    [[nodiscard]] virtual std::vector<std::int64_t> gradient_cuts() const = 0;
    [[nodiscard]] const ProcessGrid& grid() const { return grid_; }

    // Labels that count, of this rank's tokens.
    [[nodiscard]] std::int64_t count_labels(const PackedTokens& pack) const;

    // The weights of the passes to come, [table().total()]: they are read in place, or rounded to the precision now,
    // so that this comes again whenever they have changed.
    virtual void use(const Array1<float, TrainMem>& weights) = 0;

    // Sum of the negative log likelihoods of this rank's labels. `gates` of the key/value heads; null: every head
    // dense.
    virtual double loss(const PackedTokens& pack, const HeadMap* gates) = 0;

    // As loss; adds scale * gradient to `gradients`, saying when they are final, and puts scale * d(sum over the
    // group)/d(gates) into `dgates` when gated.
    virtual double loss_and_gradients(const PackedTokens& pack, const HeadMap* gates, double scale,
                                      const Span1<float, TrainMem>& gradients, HeadMap& dgates,
                                      const GradientsFinal& final = {}) = 0;

  protected:
    explicit PackRunner(ProcessGrid grid) : grid_(std::move(grid)) {}

  private:
    ProcessGrid grid_;
};

}  // namespace sparseattn::detail
