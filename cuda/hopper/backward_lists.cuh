#pragma once
/// \file
/// The lists that the backward kernels of Hopper walk. Device code.

#include "cuda/hopper/backward_args.hpp"
#include "cuda/shared.cuh"

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

/// A copy of which the compiler knows nothing, so that it keeps nothing that follows from the original in registers.
__device__ __forceinline__ int fresh(int value) {
    asm volatile("" : "+r"(value));
    return value;
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

/// The single keys that a row visits, likewise.
__device__ __forceinline__ ListSpan singles_of(const BackwardArgs& args, int branch, int head, int row) {
    const Branch& lists = args.branch[branch];
    if (lists.single_offsets == nullptr || branch_weight(args, branch, head) == 0) return {nullptr, 0};
    const std::int64_t list = static_cast<std::int64_t>(lists.head_list[head]) * args.layout.rows + row;
    const std::int64_t first = lists.single_offsets[list];
    return {lists.singles + first, static_cast<int>(lists.single_offsets[list + 1] - first)};
}

inline constexpr int no_key = 1 << 30;  // past every key, with room for sums

/// An item of the key pass: a key block of a key head, or, numbered behind all of these, a tile of lines, numbered as
/// if a sequence's lines were its keys.
struct KeyItem {
    int head, block, sequence;
    int begin;   // first key of the block in its sequence, or place of the first line among those of the sequence
    int keys;    // from there to the end of the sequence (of its lines); not positive: there is no such tile
    bool lines;  // a tile of lines
    bool looks;  // rows that visit single keys are looked for

    __device__ __forceinline__ KeyItem(const BackwardArgs& args, int item) {
        const int blocks = args.layout.key_blocks, whole = args.key_heads * blocks;
        lines = item >= whole;
        if (lines) item -= whole;
        head = item / blocks;
        block = item % blocks;
        sequence = args.layout.key_block_sequence[block];
        begin = (block - args.layout.key_block_begin[sequence]) * args.layout.block;
        const int count = args.lines.taken == nullptr ? 0 : args.lines.counts[head * args.batch.sequences + sequence];
        looks = lines || count < 0;
        keys = (lines ? count : args.batch.key_offsets[sequence + 1] - args.batch.key_offsets[sequence]) - begin;
    }
    /// Whether they are looked for in the lists of a query head.
    __device__ __forceinline__ bool looks_at(const BackwardArgs& args, int branch, int query_head) const {
        return looks && (lines || args.branch[branch].single_offsets != nullptr) &&
               branch_weight(args, branch, query_head) != 0;
    }
    /// The first row, in the sequence, that may visit a key of the item; past the last one: none does.
    __device__ __forceinline__ int first_row(const BackwardArgs& args, const SequenceSpan& span, int branch) const {
        if (!args.branch[branch].causal) return 0;
        const int key = lines ? args.lines.keys[line_at(args, span, 0)] : begin;
        return max(0, key - (span.keys - span.queries)) / args.layout.block;
    }
    /// Where line `number` of the tile stands in args.lines.keys.
    __device__ __forceinline__ std::int64_t line_at(const BackwardArgs& args, const SequenceSpan& span,
                                                    int number) const {
        return static_cast<std::int64_t>(head) * args.batch.keys + span.key_begin + begin + number;
    }
    /// The key of row `number` of the tile, in its sequence; no_key: nothing is written for it.
    __device__ __forceinline__ int key(const BackwardArgs& args, const SequenceSpan& span, int number) const {
        if (number >= keys) return no_key;
        if (lines) return args.lines.keys[line_at(args, span, number)];
        const bool taken = args.lines.taken != nullptr && args.lines.taken[line_at(args, span, number)] != 0;
        return taken ? no_key : begin + number;
    }
    /// Rows that are looked at in the lists of a query head: those from first_row() on.
    __device__ __forceinline__ int looked_rows(const BackwardArgs& args, const SequenceSpan& span, int branch,
                                               int query_head) const {
        if (!looks_at(args, branch, query_head)) return 0;
        const int rows = (span.queries + args.layout.block - 1) / args.layout.block;
        return max(0, rows - first_row(args, span, branch));
    }
};

}  // namespace sparseattn::cuda::hopper
