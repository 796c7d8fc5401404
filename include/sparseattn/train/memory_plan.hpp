#pragma once
/// \file
/// How much memory a run takes, before it starts.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "sparseattn/train/train_options.hpp"

namespace sparseattn {

/// Bytes per rank by purpose, in the order to print; within 10 % of the resident memory the run adds.
struct TrainMemoryPlan {
    std::vector<std::pair<std::string, std::int64_t>> parts;
    [[nodiscard]] std::int64_t total() const;
};

/// The plan of one of `ranks` ranks of a run with these options. Errors: InvalidArgument (options).
[[nodiscard]] TrainMemoryPlan train_memory_plan(const TrainOptions& options, int ranks = 1);

}  // namespace sparseattn
