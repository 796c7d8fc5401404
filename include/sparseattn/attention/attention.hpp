#pragma once
/// \file
/// Attention over a block layout, forward and backward.
///
/// Shapes: query [T_q, Hq, d], key and value [T_k, Hkv, d], out [T_q, Hq, d], lse [T_q, Hq] (natural log of each row's
/// sum of exponentials; accumulate_t of the storage type). Hq is a multiple of Hkv; query head h reads key/value head
/// h / (Hq / Hkv). Any token and head stride, last dimension contiguous. Types float, bf16 (fp32 arithmetic) and double
/// (reference only); d is 32, 64, 96, 128 or 256 (the reference takes any d).
/// A row that sees no key gives out = 0, lse = -inf and zero gradients. Outputs are overwritten.
///
/// Every call is asynchronous on `exec`, takes temporary memory from `workspace`, and allocates nothing once the
/// workspace has grown. Errors: InvalidArgument names the argument.

#include <string>
#include <type_traits>

#include "sparseattn/core/workspace.hpp"
#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn {

/// Which code computes; `automatic` takes the fastest that covers the case.
enum class Implementation {
    automatic,
    reference,  // fp64, O(n^2), obvious: the yardstick
    generic,    // Kokkos team kernel, any back end
    host,       // SIMD tiles, CPU execution spaces
    cuda,       // hand-written kernels, CUDA, bf16, the cases that they cover
};

struct AttentionOptions {
    double scale = 0;  // of query . key; 0 means 1 / sqrt(d)
    Implementation implementation = Implementation::automatic;
};

template <class T, class Mem>
struct AttentionInputs {
    HeadsView<const T, Mem> query;
    HeadsView<const T, Mem> key;
    HeadsView<const T, Mem> value;
};
template <class T, class Mem>
struct AttentionGradients {
    HeadsView<T, Mem> query;
    HeadsView<T, Mem> key;
    HeadsView<T, Mem> value;
};
/// One branch's result; of const T when it is read (backward).
template <class T, class Mem>
struct AttentionOutputs {
    using Lse = std::conditional_t<std::is_const_v<T>, const accumulate_t<T>, accumulate_t<T>>;
    HeadsView<T, Mem> out;
    RowsView<Lse, Mem> lse;

    template <class U>
    requires(!std::is_const_v<T> && std::is_same_v<U, const T>) operator AttentionOutputs<U, Mem>() const {
        return {out, lse};
    }
};
/// A layout with its transpose, as the backward pass needs it.
template <class Mem>
struct LayoutPair {
    const BlockLayout<Mem>& layout;
    const TransposedLayout<Mem>& transposed;
};

/// out = softmax(scale * query key^T restricted to the layout) value.
template <class Exec, class T>
void attention_forward(const Exec& exec, const AttentionInputs<T, typename Exec::memory_space>& inputs,
                       const Sequences<typename Exec::memory_space>& sequences,
                       const BlockLayout<typename Exec::memory_space>& layout, const AttentionOptions& options,
                       Workspace<typename Exec::memory_space>& workspace,
                       const AttentionOutputs<T, typename Exec::memory_space>& outputs);

/// Gradients of the forward pass from `dout` [T_q, Hq, d] and the forward's outputs. Key/value gradients sum over the
/// query heads of each group. Bit-identical from run to run and for any number of threads.
template <class Exec, class T>
void attention_backward(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& dout,
                        const AttentionInputs<T, typename Exec::memory_space>& inputs,
                        const AttentionOutputs<const T, typename Exec::memory_space>& outputs,
                        const Sequences<typename Exec::memory_space>& sequences,
                        const LayoutPair<typename Exec::memory_space>& layout, const AttentionOptions& options,
                        Workspace<typename Exec::memory_space>& workspace,
                        const AttentionGradients<T, typename Exec::memory_space>& gradients);

/// Gated attention (algorithms of learned head sparsity): out_h = z_h full_h + (1 - z_h) sparse_h, both branches in one
/// pass over the keys. `sparse` keeps a subset of the pairs of `full`, on the same grid. `gate` is z, [Hq], in [0, 1].
/// A head with z = 1 does not run its sparse branch and one with z = 0 not its full branch; that branch's saved
/// out is then 0 and its lse -inf.
template <class Exec, class T>
void gated_attention_forward(const Exec& exec, const AttentionInputs<T, typename Exec::memory_space>& inputs,
                             const Sequences<typename Exec::memory_space>& sequences,
                             const BlockLayout<typename Exec::memory_space>& full,
                             const BlockLayout<typename Exec::memory_space>& sparse,
                             const Span1<const float, typename Exec::memory_space>& gate,
                             const AttentionOptions& options, Workspace<typename Exec::memory_space>& workspace,
                             const HeadsView<T, typename Exec::memory_space>& out,
                             const AttentionOutputs<T, typename Exec::memory_space>& full_outputs,
                             const AttentionOutputs<T, typename Exec::memory_space>& sparse_outputs);

/// Gradients of the gated forward pass; `dgate` [Hq] gets dz_h = sum dout (full - sparse), and 0 where z is 0 or 1 (a
/// clamped gate passes no gradient).
template <class Exec, class T>
void gated_attention_backward(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& dout,
                              const AttentionInputs<T, typename Exec::memory_space>& inputs,
                              const AttentionOutputs<const T, typename Exec::memory_space>& full_outputs,
                              const AttentionOutputs<const T, typename Exec::memory_space>& sparse_outputs,
                              const Sequences<typename Exec::memory_space>& sequences,
                              const LayoutPair<typename Exec::memory_space>& full,
                              const LayoutPair<typename Exec::memory_space>& sparse,
                              const Span1<const float, typename Exec::memory_space>& gate,
                              const AttentionOptions& options, Workspace<typename Exec::memory_space>& workspace,
                              const AttentionGradients<T, typename Exec::memory_space>& gradients,
                              const Span1<float, typename Exec::memory_space>& dgate);

/// The implementation that `automatic` stands for, and why: one line for `-c` reports.
[[nodiscard]] std::string attention_report();

}  // namespace sparseattn
