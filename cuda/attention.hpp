#pragma once
/// \file
/// The door of the CUDA kernels: plain structs of device pointers, strides and sizes, and asynchronous calls.
///
/// No Kokkos and no framework inside, C++17. All pointers are device pointers unless said otherwise. Shapes, layouts
/// and token rules are those of the library (BlockLayout, TransposedLayout, TokenRule): query [T_q, Hq, d], key and
/// value [T_k, Hkv, d], last dimension contiguous, query head h reads key/value head h / (Hq / Hkv). Calls enqueue on
/// the given stream, allocate nothing and wait for nothing; temporary memory is the caller's
/// (`*_workspace`). They return a Status and never throw, print or exit.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace sparseattn::cuda {

/// Storage type of query, key, value, out and their gradients; arithmetic accumulates in fp32.
enum class Type { bf16 };

/// Which kernel serves a case: those of compute capability 9.0, those of 8.0 and above. `none`: not covered here, take
/// the generic kernel.
enum class Kernel { none, hopper, ampere };

/// Same members, order and meaning as the library's Window (token_rule.hpp): key j is inside for query i (both counted
/// in their sequence, i' = i + n_k - n_q) iff j < sink, or j > i' - local, or i >= n_q - dense_tail.
struct Window {
    static constexpr std::int32_t everything = 0x7fffffff;
    std::int32_t sink;
    std::int32_t local;
    std::int32_t dense_tail;
};

/// A [tokens, heads, d] array; strides in elements, the last dimension has stride 1.
struct Heads {
    void* data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;
};
/// A [tokens, heads] array of floats; strides in elements.
struct Rows {
    float* data = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t head_stride = 0;
};

/// The packed batch: tokens of sequence s are [offsets[s], offsets[s + 1]).
struct Batch {
    int sequences = 0;
    int queries = 0;                              // T_q, tokens of all sequences
    int keys = 0;                                 // T_k
    const std::int32_t* query_offsets = nullptr;  // [sequences + 1]
    const std::int32_t* key_offsets = nullptr;    // [sequences + 1]
};

/// BlockGrid and BlockLayout, array by array.
struct Layout {
    int block = 0;  // 64 or 128
    bool causal = true;
    int rows = 0;        // query blocks of all sequences
    int key_blocks = 0;  // key blocks of all sequences
    int lists = 0;       // distinct lists, 1..Hq
    // Heads [k * shared_heads, (k + 1) * shared_heads) are promised to have one list: kernels then share loaded keys
    // among them. 1 promises nothing; lists == 1 implies Hq.
    int shared_heads = 1;
    const std::int32_t* row_begin = nullptr;           // [sequences + 1]
    const std::int32_t* row_sequence = nullptr;        // [rows]
    const std::int32_t* key_block_begin = nullptr;     // [sequences + 1]
    const std::int32_t* key_block_sequence = nullptr;  // [key_blocks]
    const std::int32_t* head_list = nullptr;           // [Hq]
    const Window* windows = nullptr;                   // [Hq]
    const std::int64_t* offsets = nullptr;             // [lists * rows + 1] into columns
    const std::int32_t* columns = nullptr;             // ascending in each (list, row)
    const std::int64_t* key_offsets = nullptr;         // [lists * rows + 1] into keys; null: no single keys
    const std::int32_t* keys = nullptr;
};

/// TransposedLayout, array by array.
struct Transposed {
    const std::int64_t* offsets = nullptr;      // [lists * key_blocks + 1] into rows
    const std::int32_t* rows = nullptr;         // ascending, counted inside the sequence
    const std::int64_t* key_offsets = nullptr;  // [lists * T_k + 1] into key_rows; null: no single keys
    const std::int32_t* key_rows = nullptr;
};

/// What both passes need.
struct Problem {
    Type type = Type::bf16;
    int query_heads = 0;
    int key_heads = 0;
    int head_dim = 0;
    float scale = 0;  // of query . key; greater than 0
    Heads query, key, value;
    Batch batch;
    Layout layout;
    Kernel kernel = Kernel::none;  // the kernel to take; none: the first that covers the case, Hopper before Ampere
    void* workspace = nullptr;     // at least the bytes that the pass's *_workspace says, 256-byte aligned
    std::size_t workspace_bytes = 0;
    cudaStream_t stream = nullptr;
};

/// Writes out [T_q, Hq, d] and lse [T_q, Hq] (natural log of each row's sum of exponentials). A row that sees no key
/// gets out = 0 and lse = -inf.
struct ForwardParams : Problem {
    Heads out;
    Rows lse;
    // When not null, [Hq]: heads whose gate equals `closed` are computed as if their lists were empty.
    const float* gate = nullptr;
    float closed = 0;
};

/// Writes out = z full + (1 - z) sparse per head, and both branches' out and lse. `layout` is the full one. A branch
/// whose weight is 0 (sparse at z = 1, full at z = 0) does not run; its out is 0 and its lse -inf.
struct GatedForwardParams : Problem {
    Layout sparse;                // on the grid of `layout`
    const float* gate = nullptr;  // z, [Hq], in [0, 1]
    Heads out;
    Heads full_out, sparse_out;
    Rows full_lse, sparse_lse;
};

/// Writes dq, dk and dv from dout and the forward's out and lse; delta is formed in the workspace.
struct BackwardParams : Problem {
    Transposed transposed;
    Heads out, dout;
    Rows lse;
    Heads dq, dk, dv;
    bool deterministic = true;  // bit-identical gradients from run to run
    // Share of the key blocks that the lists visit, a hint for the choice of kernel when not deterministic (where
    // queries keep few keys the deterministic one is also the fastest).
    float density = 1;
};

/// Writes dq, dk, dv and dgate of out = z full + (1 - z) sparse from dout and what the gated forward pass saved.
/// `layout` and `transposed` are the full ones. Head h is two branches, full with weight w = z and sparse with
/// w = 1 - z. Each branch has its own probabilities P = exp(scale query . key - its lse) on its own lists and
/// delta_i = sum_c dout[i, c] its out[i, c]; with dP = dout value^T and dS = w P (dP - delta), both add to
/// dv += w P^T dout, dq += scale dS key and dk += scale dS^T query. A branch of weight 0 adds nothing, costs nothing,
/// and nothing saved of it is used. dgate[h] is the sum over tokens and channels of dout (full_out - sparse_out), in a
/// fixed order, and 0 where z is 0 or 1: a clamped gate passes no gradient.
struct GatedBackwardParams : Problem {
    Transposed transposed;
    Layout sparse;  // on the grid of `layout`
    Transposed sparse_transposed;
    const float* gate = nullptr;  // z, [Hq], in [0, 1]
    Heads full_out, sparse_out, dout;
    Rows full_lse, sparse_lse;
    Heads dq, dk, dv;
    float* dgate = nullptr;     // [Hq]
    bool deterministic = true;  // as in BackwardParams
    float density = 1;          // of the full lists, as in BackwardParams
};

/// Outcome of a call. `where` names the step or argument that failed, a string literal.
struct Status {
    cudaError_t error = cudaSuccess;
    const char* where = "";
    [[nodiscard]] bool ok() const { return error == cudaSuccess; }
};

/// The kernel that the current device would run for this case, looking at capability, type, head dimension, block,
/// strides and alignment. `why` (when not null) gets a string literal that says what is not covered, or "".
[[nodiscard]] Kernel forward_kernel(const ForwardParams& params, const char** why = nullptr);
[[nodiscard]] Kernel gated_forward_kernel(const GatedForwardParams& params, const char** why = nullptr);
[[nodiscard]] Kernel backward_kernel(const BackwardParams& params, const char** why = nullptr);
[[nodiscard]] Kernel gated_backward_kernel(const GatedBackwardParams& params, const char** why = nullptr);

/// Bytes of workspace that the call needs.
[[nodiscard]] std::size_t forward_workspace(const ForwardParams& params);
[[nodiscard]] std::size_t gated_forward_workspace(const GatedForwardParams& params);
[[nodiscard]] std::size_t backward_workspace(const BackwardParams& params);
[[nodiscard]] std::size_t gated_backward_workspace(const GatedBackwardParams& params);

/// Enqueues the pass. cudaErrorNotSupported when *_kernel says `none`, cudaErrorInvalidValue naming the argument.
[[nodiscard]] Status forward(const ForwardParams& params);
[[nodiscard]] Status gated_forward(const GatedForwardParams& params);
[[nodiscard]] Status backward(const BackwardParams& params);
[[nodiscard]] Status gated_backward(const GatedBackwardParams& params);

}  // namespace sparseattn::cuda
