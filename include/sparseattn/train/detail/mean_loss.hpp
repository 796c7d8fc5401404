#pragma once
// Validation loss over ranks.

#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/train/detail/pack_runner.hpp"

namespace sparseattn::detail {

struct MeanLoss {
    double loss = 0;  // nats per label
    std::int64_t labels = 0;
};

// Mean loss over packs 0 .. packs - 1 of a stream, shared among the ranks; the same result on each. Collective.
MeanLoss mean_loss(PackRunner& runner, const PackStream& stream, std::int64_t packs, const HeadMap* gates,
                   const Span1<const float, TrainMem>& parameters, const Communicator& communicator);

}  // namespace sparseattn::detail
