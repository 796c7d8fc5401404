#pragma once
// One call of attention over block layouts, plain or gated, with what it keeps for its backward pass.

#include "sparseattn/model/detail/cutter.hpp"
#include "sparseattn/model/layer_attention.hpp"

namespace sparseattn::detail {

// What the backward call reads besides the inputs and, without gates, the output.
template <class T, class Mem>
struct SavedBranches {
    Span2<accumulate_t<T>, Mem> lse;         // [tokens, heads] of the full branch
    Span2<T, Mem> full, sparse;              // with gates: [tokens, heads * head_dim]
    Span2<accumulate_t<T>, Mem> sparse_lse;  // with gates: [tokens, heads]
};
template <class T, class Mem>
SavedBranches<T, Mem> cut_branches(Cutter<Mem>& cut, std::int64_t tokens, std::int64_t heads, std::int64_t head_dim,
                                   bool gated) {
    SavedBranches<T, Mem> saved;
    saved.lse = cut.template take<accumulate_t<T>>(tokens, heads);
    if (!gated) return saved;
    saved.full = cut.template take<T>(tokens, heads * head_dim);
    saved.sparse = cut.template take<T>(tokens, heads * head_dim);
    saved.sparse_lse = cut.template take<accumulate_t<T>>(tokens, heads);
    return saved;
}

// What both directions of a call work on.
template <class Exec, class T>
struct AttentionCall {
    using Mem = typename Exec::memory_space;
    const Exec& exec;
    AttentionInputs<T, Mem> inputs;
    const Sequences<Mem>& sequences;
    const LayerPlan<Mem>& plan;
    SavedBranches<T, Mem> saved;
    Workspace<Mem>& workspace;
};

template <class Exec, class T>
void forward_call(const AttentionCall<Exec, T>& call, const HeadsView<T, typename Exec::memory_space>& out);

// `out` is what forward_call wrote; `dgate` [heads] is scratch, for gates only.
template <class Exec, class T>
void backward_call(const AttentionCall<Exec, T>& call, const HeadsView<const T, typename Exec::memory_space>& out,
                   const HeadsView<const T, typename Exec::memory_space>& dout,
                   const AttentionGradients<T, typename Exec::memory_space>& gradients,
                   const Span1<float, typename Exec::memory_space>& dgate);

}  // namespace sparseattn::detail
