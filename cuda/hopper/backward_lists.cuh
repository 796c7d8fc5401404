#pragma once
/// \file
/// The lists that the backward kernels of Hopper walk. Device code.

#include "cuda/hopper/backward_args.hpp"

namespace sparseattn::cuda::hopper {

/// Factor of a branch's probabilities in a head's output.
__device__ __forceinline__ float branch_weight(const BackwardArgs& args, int branch, int head) {
    if (args.gate == nullptr) return 1;
    return branch == 0 ? args.gate[head] : 1 - args.gate[head];
}

// The token rule of a branch. An index into args.branch, in the middle of a pass, would cost registers that are not
// there.
__device__ __forceinline__ bool causal_of(const BackwardArgs& args, int branch) {
    return branch == 0 ? args.branch[0].causal : args.branch[1].causal;
}
__device__ __forceinline__ Window window_of(const BackwardArgs& args, int branch, int head) {
    return (branch == 0 ? args.branch[0].windows : args.branch[1].windows)[head];
}

struct ListSpan {
    const std::int32_t* entries;
    int count;
};
/// The rows that visit a key block; none when the branch has no weight.
__device__ __forceinline__ ListSpan rows_of(const BackwardArgs& args, int branch, int head, int key_block) {
    const Branch& lists = args.branch[branch];
    const std::int64_t list = static_cast<std::int64_t>(lists.head_list[head]) * args.layout.key_blocks + key_block;
    const std::int64_t first = lists.row_offsets[list];
    const bool open = branch_weight(args, branch, head) != 0;
    return {lists.rows + first, open ? static_cast<int>(lists.row_offsets[list + 1] - first) : 0};
}
/// The key blocks that a row visits, likewise.
__device__ __forceinline__ ListSpan columns_of(const BackwardArgs& args, int branch, int head, int row) {
    const Branch& lists = args.branch[branch];
    const std::int64_t list = static_cast<std::int64_t>(lists.head_list[head]) * args.layout.rows + row;
    const std::int64_t first = lists.column_offsets[list];
    const bool open = branch_weight(args, branch, head) != 0;
    return {lists.columns + first, open ? static_cast<int>(lists.column_offsets[list + 1] - first) : 0};
}

}  // namespace sparseattn::cuda::hopper
