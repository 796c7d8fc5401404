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

/// What every selection is told.
struct SelectionParams {
    Type type = Type::bf16;
    int query_heads = 0;
    int key_heads = 0;
    int head_dim = 0;
    int block = 0;  // 64 or 128
    Heads query, key;
    Batch batch;
    const std::int32_t* host_query_offsets = nullptr;  // the same as batch's, in host memory, read during the call
    const std::int32_t* host_key_offsets = nullptr;
    int estimated = 0;                    // heads to estimate
    const std::int32_t* heads = nullptr;  // [estimated] ascending, host memory, read during the call
    SelectionTarget target;
    void* workspace = nullptr;  // at least the bytes that the selection's *_workspace says, 256-byte aligned
    std::size_t workspace_bytes = 0;
    cudaStream_t stream = nullptr;
};

/// XAttention (arXiv 2503.16428) as select/xattention.hpp defines it: list e gets, in every query block, the smallest
/// set of key blocks by mass, ties lower block first, that reaches the share `thresholds[e]`. Products of bf16 are
/// summed in fp32; masses are fp32, sums of masses fp64. The same bits from run to run.
struct XAttentionParams : SelectionParams {
    int stride = 0;                             // S, divides block
    float scale = 0;                            // of the strided scores; greater than 0
    bool causal = true;                         // then no sequence has fewer keys than queries
    bool reversed = true;                       // antidiagonals; else token s of a row meets token s of a column
    bool keep_sink = true, keep_recent = true;  // forced blocks
    const double* thresholds = nullptr;         // [estimated] above 0, host memory; 1 or more: every block
    // When not null, [estimated, rows, mass_stride]: the masses, of the blocks that a row sees. Not written for heads
    // that visit every block.
    float* masses = nullptr;
    std::int64_t mass_stride = 0;
};

/// FlexPrefill (arXiv 2502.20766) as select/flexprefill.hpp defines it; causal. Products of bf16 are summed in fp32,
/// block means and their products fp32, sums of masses fp64. The same bits from run to run.
struct FlexPrefillParams : SelectionParams {
    double gamma = 0;          // above 0; 1 or more: everything that `most` allows
    double tau = 0;            // at least 0
    int least = 0;             // min_budget, tokens
    int most = 0;              // max_budget, tokens, at least max(1, least); 0: none
    bool interleaved = false;  // query head h reads key head h % Hkv, not h / (Hq / Hkv)
};

/// MInference's vertical_and_slash (arXiv 2407.02490) as select/minference.hpp defines it, for all estimated heads;
/// causal. The same bits from run to run.
struct MInferenceParams : SelectionParams {
    static constexpr int last_queries = 64;       // that are looked through
    static constexpr int forced_columns = 30;     // first keys, always kept
    static constexpr int forced_distances = 100;  // nearest distances, always kept
    const std::int32_t* columns = nullptr;        // [estimated] key columns to keep, host memory
    const std::int32_t* distances = nullptr;      // [estimated]
    double column_share = 0, distance_share = 0;  // above 0: of a sequence's keys, rounded down, instead
    std::int64_t* key_offsets = nullptr;          // [lists * rows + 1] into keys, written
    std::int32_t* keys = nullptr;                 // single keys, written; room for the kept columns that each row sees
};

/// The kernel that the current device would run; `why` gets a string literal that says what is not covered, or "".
[[nodiscard]] Kernel xattention_kernel(const XAttentionParams& params, const char** why = nullptr);
[[nodiscard]] Kernel flexprefill_kernel(const FlexPrefillParams& params, const char** why = nullptr);
[[nodiscard]] Kernel minference_kernel(const MInferenceParams& params, const char** why = nullptr);

/// Bytes of workspace. With R = strided rows, N = keys, E heads: the row sums of tiles, 4 R (N / B + N / (128 S)) E
/// halved when causal, held to 256 MiB by working on parts of the heads and rows, and E rows N / (8 B) for the lists.
[[nodiscard]] std::size_t xattention_workspace(const XAttentionParams& params);
/// With M = N / B, for E heads at a time: 24 N E (half with blocks of 64), 4 M^2 E, 8 M d E and small change, held to
/// 256 MiB by working on some heads at a time (never less than one); and rows N / (8 B) for each list.
[[nodiscard]] std::size_t flexprefill_workspace(const FlexPrefillParams& params);
/// 16 N E and small change, likewise; and for each list rows N / (8 B) and 4 sequences times the kept columns.
[[nodiscard]] std::size_t minference_workspace(const MInferenceParams& params);

/// Enqueues the selection: offsets and columns of the target. cudaErrorNotSupported when *_kernel says `none`,
/// cudaErrorInvalidValue naming the argument.
[[nodiscard]] Status xattention(const XAttentionParams& params);
[[nodiscard]] Status flexprefill(const FlexPrefillParams& params);
[[nodiscard]] Status minference(const MInferenceParams& params);

}  // namespace sparseattn::cuda
