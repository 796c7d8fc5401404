#include "sparseattn/model/detail/attention_call.hpp"

#include "sparseattn/model/detail/layers.hpp"

namespace sparseattn::detail {
namespace {

template <class T, class Mem>
RowsView<T, Mem> rows_of(const Span2<T, Mem>& rows) {
    return RowsView<T, Mem>(rows.data(), Kokkos::LayoutStride(rows.extent(0), rows.extent(1), rows.extent(1), 1));
}

// Outputs of the two branches of a gated call.
template <class T, class Mem>
struct Branches {
    AttentionOutputs<T, Mem> full, sparse;

    Branches(const SavedBranches<T, Mem>& saved, int heads, int d)
        : full{heads_of(saved.full, 0, heads, d), rows_of(saved.lse)},
          sparse{heads_of(saved.sparse, 0, heads, d), rows_of(saved.sparse_lse)} {}
};

}  // namespace

template <class Exec, class T>
void forward_call(const AttentionCall<Exec, T>& call, const HeadsView<T, typename Exec::memory_space>& out) {
    const auto& plan = call.plan;
    if (!plan.gated()) {
        attention_forward<Exec, T>(call.exec, call.inputs, call.sequences, plan.full.layout, plan.options,
                                   call.workspace, {out, rows_of(call.saved.lse)});
        return;
    }
    const Branches<T, typename Exec::memory_space> branches(call.saved, out.extent(1), out.extent(2));
    gated_attention_forward<Exec, T>(call.exec, call.inputs, call.sequences, plan.full.layout, plan.sparse->layout,
                                     plan.gate, plan.options, call.workspace, out, branches.full, branches.sparse);
}

template <class Exec, class T>
void backward_call(const AttentionCall<Exec, T>& call, const HeadsView<const T, typename Exec::memory_space>& out,
                   const HeadsView<const T, typename Exec::memory_space>& dout,
                   const AttentionGradients<T, typename Exec::memory_space>& gradients,
                   const Span1<float, typename Exec::memory_space>& dgate) {
    const auto& plan = call.plan;
    if (!plan.gated()) {
        attention_backward<Exec, T>(call.exec, dout, call.inputs, {out, rows_of(call.saved.lse)}, call.sequences,
                                    plan.full, plan.options, call.workspace, gradients);
        return;
    }
    const Branches<T, typename Exec::memory_space> branches(call.saved, dout.extent(1), dout.extent(2));
    gated_attention_backward<Exec, T>(call.exec, dout, call.inputs, branches.full, branches.sparse, call.sequences,
                                      plan.full, *plan.sparse, plan.gate, plan.options, call.workspace, gradients,
                                      dgate);
    add<Exec, float>(call.exec, dgate, plan.dgate);
}

#define SPARSEATTN_ATTENTION_CALL(EXEC, T)                                                                    \
    template void forward_call(const AttentionCall<EXEC, T>&, const HeadsView<T, EXEC::memory_space>&);       \
    template void backward_call(const AttentionCall<EXEC, T>&, const HeadsView<const T, EXEC::memory_space>&, \
                                const HeadsView<const T, EXEC::memory_space>&,                                \
                                const AttentionGradients<T, EXEC::memory_space>&,                             \
                                const Span1<float, EXEC::memory_space>&);
SPARSEATTN_ATTENTION_CALL(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_ATTENTION_CALL(Kokkos::DefaultExecutionSpace, bf16)
SPARSEATTN_ATTENTION_CALL(Kokkos::DefaultExecutionSpace, double)

}  // namespace sparseattn::detail
