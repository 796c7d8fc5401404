#include "sparseattn/parallel/process_grid.hpp"

#include <utility>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

Communicator group_of(const Communicator& world, int seq_parallel) {
    require(seq_parallel >= 1 && world.size() % seq_parallel == 0, "seq_parallel_size", seq_parallel,
            concat("a divisor of the number of ranks, ", world.size()));
    return world.split(world.rank() / seq_parallel, world.rank());
}

}  // namespace

ProcessGrid::ProcessGrid(Communicator world, int seq_parallel)
    : world_(std::move(world)), sequence_(group_of(world_, seq_parallel)) {}

}  // namespace sparseattn
