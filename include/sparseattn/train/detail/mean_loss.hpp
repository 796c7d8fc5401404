#pragma once
// Validation loss over ranks.

#include "sparseattn/train/detail/pack_runner.hpp"

namespace sparseattn::detail {

struct MeanLoss {
    double loss = 0;  // nats per label
    std::int64_t labels = 0;
};

// Mean loss of the weights in use over packs 0 .. packs - 1 of a stream, shared among the sequence groups of the
// runner's grid; the same result on each rank. Collective.
MeanLoss mean_loss(PackRunner& runner, const PackStream& stream, std::int64_t packs, const HeadMap* gates);

}  // namespace sparseattn::detail
