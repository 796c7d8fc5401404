#pragma once
// Checkpoints over ranks: every step of the protocol is agreed, so that all ranks succeed or all of them throw.

#include <exception>
#include <filesystem>
#include <span>

#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/train/reports.hpp"

namespace sparseattn::detail {

// Runs `work` on this rank; throws on every rank when it threw on any.
template <class Work>
void together(const Communicator& communicator, const Work& work) {
    std::exception_ptr failure;
    try {
        work();
    } catch (...) {
        failure = std::current_exception();
    }
    communicator.agree(failure);
}

// Writes one checkpoint below `root` from the parts of all ranks and then keeps the newest `keep`. After a failure
// anywhere nothing of it remains, earlier checkpoints are as they were, and every rank throws. `meta` is rank 0's.
CheckpointReport write_checkpoint(const std::filesystem::path& root, const CheckpointMeta& meta,
                                  std::span<const TensorPart> parts, int keep, const Communicator& communicator);

}  // namespace sparseattn::detail
