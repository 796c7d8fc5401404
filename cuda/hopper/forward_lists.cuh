#pragma once
/// \file
/// Lists of tiles, as the kernels that plan and the one that computes look them up.

#include "cuda/hopper/forward_args.hpp"

namespace sparseattn::cuda::hopper {

/// The list that a unit walks for a row of blocks; empty where the gate closes all heads of the unit.
struct UnitList {
    const std::int32_t* columns;
    const std::int32_t* keys;  // single keys
    int blocks, singles;

    /// Steps of `step` keys (64 or 128): whole blocks first, single keys in steps of their own.
    __device__ __forceinline__ int steps(int block, int step) const {
        return block_steps(block, step) + (singles + step - 1) / step;
    }
    __device__ __forceinline__ int block_steps(int block, int step) const {
        const int runs = step / 64;
        return (blocks * (block / 64) + runs - 1) / runs;
    }
};

__device__ __forceinline__ UnitList unit_list(const ForwardBranch& branch, const float* gate, int head, int heads,
                                              int row) {
    const Layout& layout = branch.layout;
    const std::int64_t entry = static_cast<std::int64_t>(layout.head_list[head]) * layout.rows + row;
    UnitList list{};
    const std::int64_t begin = layout.offsets[entry];
    list.columns = layout.columns + begin;
    list.blocks = static_cast<int>(layout.offsets[entry + 1] - begin);
    if (layout.key_offsets != nullptr) {
        const std::int64_t first = layout.key_offsets[entry];
        list.keys = layout.keys + first;
        list.singles = static_cast<int>(layout.key_offsets[entry + 1] - first);
    }
    if (gate != nullptr) {
        bool open = false;
        for (int i = 0; i < heads; ++i) open = open || gate[head + i] != branch.closed;
        if (!open) list.blocks = list.singles = 0;
    }
    return list;
}

/// First head of a unit.
__device__ __forceinline__ int unit_head(const Schedule& schedule, int unit) {
    return unit / schedule.branches * schedule.heads_per_unit;
}

}  // namespace sparseattn::cuda::hopper
