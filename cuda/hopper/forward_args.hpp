#pragma once
/// \file
/// What the forward kernel gets, and its instantiations.

#include <cuda.h>

#include "cuda/attention.hpp"

namespace sparseattn::cuda::hopper {

/// Keys of one step of the kernel: 128, or 64 where the accumulators of 256 channels leave no registers for more.
constexpr int tile_keys(int head_dim) {
    return head_dim > 128 ? 64 : 128;
}

/// In which order tiles of (head, query block) are computed: sections of key heads whose keys and values stay in the L2
/// cache together; in a section the longest lists first. A unit is one query head, or two that share their list and
/// walk it together ("folded").
struct Schedule {
    int* counter;        // tiles taken so far, beyond the first of each team
    int* order;          // [tiles], section by section: row * section_units + unit of the section
    int tiles;           // of the whole call
    int rows;            // query blocks
    int units;           // of the whole call
    int section_units;   // per section; the last section may have fewer
    int heads_per_unit;  // 1, or 2 when folded
};

struct ForwardArgs {
    CUtensorMap query, key, value;
    Schedule schedule;
    Batch batch;
    Layout layout;
    Heads key_rows, value_rows;  // for single keys, which no box covers
    Heads out;
    Rows lse;
    const float* gate;  // [Hq] or null
    float closed;       // heads with this gate have empty lists
    int group;          // query heads per key head
    float scale;        // natural units: exp(scale * score)
    float scale_log2;   // scale * log2(e)
};

/// Fills the order and clears the counter.
[[nodiscard]] cudaError_t launch_schedule(const Schedule& schedule, const Layout& layout, cudaStream_t stream);

/// Runs the kernel on `grid` multiprocessors, directly behind launch_schedule on the same stream. `paired`: both
/// warpgroups of a multiprocessor walk one list.
template <int HeadDim, int Block, bool Paired>
[[nodiscard]] cudaError_t launch_forward(const ForwardArgs& args, int grid, cudaStream_t stream);

}  // namespace sparseattn::cuda::hopper
