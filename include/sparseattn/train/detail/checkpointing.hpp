#pragma once
// Checkpoints over ranks: every step of the protocol is agreed, so that all ranks succeed or all of them throw.

#include <filesystem>
#include <span>

#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/train/reports.hpp"

namespace sparseattn::detail {

// Writes one checkpoint below `root` from the parts of all ranks and then keeps the newest `keep`. After a failure
// anywhere nothing of it remains, earlier checkpoints are as they were, and every rank throws. `meta` is rank 0's.
CheckpointReport write_checkpoint(const std::filesystem::path& root, const CheckpointMeta& meta,
                                  std::span<const TensorPart> parts, int keep, const Communicator& communicator);

}  // namespace sparseattn::detail
