#pragma once
/// \file
/// The second door of the CUDA kernels: block selection on the device. Conventions are those of cuda/attention.hpp;
/// every call enqueues on the given stream, allocates nothing and waits for nothing.

#include "cuda/attention.hpp"

namespace sparseattn::cuda {

/// Where key blocks of each query block are chosen, and where the lists go: BlockGrid and the arrays of a BlockLayout.
struct SelectionTarget {
    int rows = 0;                                // query blocks of all sequences
    const std::int32_t* row_begin = nullptr;     // [sequences + 1]
    const std::int32_t* row_sequence = nullptr;  // [rows]
    int lists = 0;                    // of the layout, at least the heads to estimate; lists past those are empty
    std::int64_t* offsets = nullptr;  // [lists * rows + 1], written
    std::int32_t* columns = nullptr;  // written; room for every block that each (list, row) may visit
};

/// XAttention (arXiv 2503.16428) as select/xattention.hpp defines it: list e gets, in every query block, the smallest
/// set of key blocks by mass, ties lower block first, that reaches the share `thresholds[e]`. Products of bf16 are
/// summed in fp32; masses are fp32, sums of masses fp64. The same bits from run to run.
struct XAttentionParams {
    Type type = Type::bf16;
    int query_heads = 0;
    int key_heads = 0;
    int head_dim = 0;
    int block = 0;                              // 64 or 128
    int stride = 0;                             // S, divides block
    float scale = 0;                            // of the strided scores; greater than 0
    bool causal = true;                         // then no sequence has fewer keys than queries
    bool reversed = true;                       // antidiagonals; else token s of a row meets token s of a column
    bool keep_sink = true, keep_recent = true;  // forced blocks
    Heads query, key;
    Batch batch;
    const std::int32_t* host_query_offsets = nullptr;  // the same as batch's, in host memory, read during the call
    const std::int32_t* host_key_offsets = nullptr;
    int estimated = 0;                    // heads to estimate
    const std::int32_t* heads = nullptr;  // [estimated] ascending, host memory, read during the call
    const double* thresholds = nullptr;   // [estimated] above 0, host memory; 1 or more: every block
    SelectionTarget target;
    // When not null, [estimated, rows, mass_stride]: the masses, of the blocks that a row sees. Not written for heads
    // that visit every block.
    float* masses = nullptr;
    std::int64_t mass_stride = 0;
    void* workspace = nullptr;  // at least xattention_workspace bytes, 256-byte aligned
    std::size_t workspace_bytes = 0;
    cudaStream_t stream = nullptr;
};

/// The kernel that the current device would run; `why` gets a string literal that says what is not covered, or "".
[[nodiscard]] Kernel xattention_kernel(const XAttentionParams& params, const char** why = nullptr);

/// Bytes of workspace. With R = strided rows, N = keys, E heads: the row sums of tiles, 4 R (N / B + N / (128 S)) E
/// halved when causal, held to 256 MiB by working on parts of the heads and rows, and E rows N / (8 B) for the lists.
[[nodiscard]] std::size_t xattention_workspace(const XAttentionParams& params);

/// Enqueues the selection: offsets and columns of the target. cudaErrorNotSupported when xattention_kernel says `none`,
/// cudaErrorInvalidValue naming the argument.
[[nodiscard]] Status xattention(const XAttentionParams& params);

}  // namespace sparseattn::cuda
