#pragma once
/// \file
/// The training loop.

#include <filesystem>
#include <memory>

#include "sparseattn/io/token_dataset.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/train/reports.hpp"
#include "sparseattn/train/train_options.hpp"

namespace sparseattn {

/// Trains a decoder with head gates over the ranks of a communicator, which form a ProcessGrid: groups of
/// options.seq_parallel_size ranks share each pack, the groups are data parallel. Runs in Kokkos' default execution
/// space. Every member function is collective: all ranks call it with equal arguments. The same options give the same
/// results for any number of ranks (to rounding), and bit-identical ones on the same number of ranks.
class Trainer {
  public:
    /// A run at step 0: weights from the seed or options.init_from, gates from the seed or options.masks.
    /// Errors: InvalidArgument (options), FileError (data, masks), CheckpointError (init_from).
    Trainer(TrainOptions options, const TokenDataset& data, Communicator communicator, TrainObserver observer = {});
    ~Trainer();
    Trainer(const Trainer&) = delete;
    Trainer& operator=(const Trainer&) = delete;

    /// Continues from a checkpoint written by any number of ranks; `where` is its directory. Cuts metrics.csv back.
    /// Errors: CheckpointError for damage or for options that must not change, naming key, was and must.
    void restart(const std::filesystem::path& where);

    /// Steps until max_steps or until asked to stop, with evaluations and checkpoints on the way and a checkpoint at
    /// the end. Errors: NumericalError after max_skipped_steps non-finite steps in a row; file errors on all ranks.
    TrainResult run();

    /// One optimizer step.
    StepReport step();
    /// Loss on the first evaluation_packs packs of the validation split.
    EvaluationReport evaluate();
    /// Writes a checkpoint of the present step and removes the oldest ones over keep_checkpoints.
    CheckpointReport save_checkpoint();

    [[nodiscard]] std::int64_t steps_done() const;

  private:
    class State;
    std::unique_ptr<State> state_;
};

}  // namespace sparseattn
