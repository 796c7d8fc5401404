#pragma once
/// \file
/// How the ranks of a training run divide the work.

#include <cstdint>

#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/parallel/partition.hpp"

namespace sparseattn {

/// data_parallel x seq_parallel ranks. A sequence group is seq_parallel consecutive ranks of the world, which share
/// each pack of tokens; the groups work on different packs. Copies share the communicators.
class ProcessGrid {
  public:
    /// Every rank of `world` alone with its packs (seq_parallel 1), or in groups. Collective.
    /// Throws InvalidArgument unless `seq_parallel` >= 1 divides the number of ranks.
    explicit ProcessGrid(Communicator world, int seq_parallel = 1);

    [[nodiscard]] const Communicator& world() const { return world_; }
    /// The ranks that share a pack with this one; rank() is the place in the pack.
    [[nodiscard]] const Communicator& sequence() const { return sequence_; }
    [[nodiscard]] int seq_parallel() const { return sequence_.size(); }
    [[nodiscard]] int data_parallel() const { return world_.size() / sequence_.size(); }
    /// Which group this rank is in.
    [[nodiscard]] int data_index() const { return world_.rank() / sequence_.size(); }
    /// Its place in the group.
    [[nodiscard]] int sequence_index() const { return sequence_.rank(); }

    /// Whether this rank's group works on pack slot `slot` (>= 0) of a step: slot mod data_parallel is its index.
    [[nodiscard]] bool works_on(std::int64_t slot) const { return slot % data_parallel() == data_index(); }
    /// Which of a pack's `tokens` tokens this rank holds.
    [[nodiscard]] IndexRange tokens(std::int64_t tokens) const {
        return partition(tokens, sequence_index(), seq_parallel());
    }

  private:
    Communicator world_;
    Communicator sequence_;
};

}  // namespace sparseattn
