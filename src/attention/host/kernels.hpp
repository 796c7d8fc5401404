#pragma once
// The door between the host attention and its vector kernels.
//
// The kernels are compiled once per instruction set and chosen at run time. Their sources are therefore kept free of
// anything the linker could merge with code of other files: no Kokkos, no standard templates; everything but the table
// below has internal linkage, and only plain structs of pointers and sizes cross the door.
#include <cstdint>

namespace sparseattn::detail::host {

// A tile is at most `tile` queries by `tile` keys; score and key-major arrays have rows of `tile` floats.
constexpr int tile = 64;

/// Online-softmax state of a query tile: unnormalised output, row maximum (of log2 scores) and row sum.
struct SoftmaxState {
    float* out;  // [tile, head_dim]
    float* maximum;
    float* sum;
    bool empty;  // nothing visited yet: the arrays are not yet initialised
};

/// One visit of the forward pass: state += softmax part of `queries` x `keys` pairs.
struct ForwardTile {
    const float* query;  // [queries, head_dim]
    std::int64_t query_stride;
    const float* key_transposed;  // [head_dim, tile], zero beyond `keys`
    const float* value;           // [keys, head_dim]
    int queries, keys, head_dim;
    float scale;                // of query . key, with log2(e) folded in
    const std::uint64_t* mask;  // [queries] bit j: key j is visible; null: all are
    float* scores;              // scratch [tile, tile]
};

/// One branch of the backward pass at a query tile: weight * P = exp2(score - lse).
struct BackwardBranch {
    const float* lse;    // [queries] log2 of the row's sum of exponentials less log2(weight); +inf: no key, P = 0
    const float* delta;  // [queries] scale * sum(dout * out)
    const std::uint64_t* mask;  // [queries] or null
};
/// One visit of the backward pass. All gradients are added to.
struct BackwardTile {
    const float* query;  // [queries, head_dim]
    std::int64_t query_stride;
    const float* dout;  // [queries, head_dim]
    std::int64_t dout_stride;
    const float* key;               // [keys, head_dim]
    const float* key_transposed;    // [head_dim, tile], zero beyond `keys`
    const float* value_transposed;  // likewise
    int queries, keys, head_dim;
    float score_scale;     // of query . key, with log2(e) folded in
    float gradient_scale;  // of dS
    int branches;          // 1 or 2 (gated)
    BackwardBranch branch[2];
    float* probabilities;    // scratch [tile, tile]
    float* score_gradients;  // scratch [tile, tile]
    float* key_gradient;     // [keys, head_dim]
    float* value_gradient;   // [keys, head_dim]
};

/// Rows of head vectors in storage type; `rows` may pick them out of order.
template <class Storage>
struct Rows {
    Storage* data;
    std::int64_t stride;
    int count;
    int head_dim;
    const std::int32_t* index = nullptr;  // row numbers, or null: 0, 1, ...
};

/// Kernels of one storage type (float, or bf16 as its 16 bits).
template <class Storage>
struct StorageKernels {
    /// Asks for the rows to be brought into the second-level cache.
    void (*prefetch)(const Rows<const Storage>& rows);
    /// out [count, head_dim] = rows.
    void (*load)(const Rows<const Storage>& rows, float* out);
    /// out [head_dim, tile] = rows transposed, zero beyond count up to the next multiple of 16 columns.
    void (*load_transposed)(const Rows<const Storage>& rows, float* out);
    /// rows = in [count, head_dim] (row stride `stride`).
    void (*store)(const Rows<Storage>& rows, const float* in, std::int64_t stride);
    /// out[i] = scale * sum(a[i] * b[i]).
    void (*dots)(const Rows<const Storage>& a, const Rows<const Storage>& b, float scale, float* out);
};

struct Kernels {
    const char* name;
    void (*forward)(const ForwardTile&, SoftmaxState&);
    /// P and dS of the tile, and the key and value gradients.
    void (*backward_keys)(const BackwardTile&);
    /// query_gradient [queries, head_dim] += dS key, after backward_keys.
    void (*backward_queries)(const BackwardTile&, float* query_gradient, std::int64_t stride);
    /// out [queries, head_dim] = state.out / state.sum (0 where the row saw no key), lse its natural logarithm (-inf).
    void (*finish)(const SoftmaxState& state, int queries, int head_dim, float* out, float* lse);
    /// a = weight_a * a + weight_b * b, `count` (a multiple of 16) elements.
    void (*blend)(float* a, float weight_a, const float* b, float weight_b, std::int64_t count);
    StorageKernels<float> f32;
    StorageKernels<std::uint16_t> bf16;
};

extern const Kernels kernels_baseline;
#if defined(SPARSEATTN_HOST_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

/// The kernels in use: the widest this processor runs, or those that the environment variable SPARSEATTN_ISA names
/// (baseline, avx2, avx512). Throws InvalidArgument when that is unknown or not supported here.
const Kernels& kernels();

}  // namespace sparseattn::detail::host
