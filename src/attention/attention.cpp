// The public attention calls: check, resolve the options, hand over to an implementation.
#include "sparseattn/attention/attention.hpp"

#include "sparseattn/attention/detail/checks.hpp"
#include "sparseattn/attention/detail/cuda.hpp"
#include "sparseattn/attention/detail/generic.hpp"
#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/attention/detail/implementation.hpp"
#include "sparseattn/attention/detail/reference.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"

namespace sparseattn {
namespace {

template <class Exec>
constexpr bool is_cpu = std::is_same_v<typename Exec::memory_space, Kokkos::HostSpace>;

#if defined(SPARSEATTN_CUDA_KERNELS)
// Whether there are hand-written CUDA kernels at all.
template <class Exec, class T>
constexpr bool has_cuda_kernels = std::is_same_v<Exec, Kokkos::Cuda>&& std::is_same_v<T, bf16>;
#endif

// See detail::Demand.
template <class Exec, class T, template <class, class> class Arguments>
const char* cuda_gap([[maybe_unused]] const Arguments<T, typename Exec::memory_space>& arguments) {
#if defined(SPARSEATTN_CUDA_KERNELS)
    if constexpr (has_cuda_kernels<Exec, T>) return detail::cuda_gap(arguments);
#endif
    return is_cpu<Exec> ? nullptr : "cuda covers bf16";
}

template <class Exec, class T, template <class, class> class Arguments>
void run(const Exec& exec, Implementation asked, const Arguments<T, typename Exec::memory_space>& arguments,
         Workspace<typename Exec::memory_space>& workspace) {
    constexpr bool fp64 = std::is_same_v<T, double>;
    const Implementation chosen =
        detail::choose(asked, {is_cpu<Exec>, fp64, static_cast<int>(arguments.inputs.query.extent(2)),
                               cuda_gap<Exec, T, Arguments>(arguments)});
    if (chosen == Implementation::reference) {
        detail::reference_attention(exec, arguments, workspace);
        return;
    }
#if defined(SPARSEATTN_CUDA_KERNELS)
    if constexpr (has_cuda_kernels<Exec, T>) {
        if (chosen == Implementation::cuda) {
            detail::cuda_attention(exec, arguments, workspace);
            return;
        }
    }
#endif
    if constexpr (!fp64) {
        if constexpr (is_cpu<Exec>) {
            if (chosen == Implementation::host) {
                detail::host_attention(exec, arguments, workspace);
                return;
            }
        }
        detail::generic_attention(exec, arguments, workspace);
    }
}

template <class T, class Mem>
detail::AttentionShape check_inputs(const AttentionInputs<T, Mem>& inputs, const Sequences<Mem>& sequences) {
    return detail::check_inputs(detail::extents_of(inputs.query), detail::extents_of(inputs.key),
                                detail::extents_of(inputs.value), sequences.queries(), sequences.keys());
}

template <class T, class Mem>
void check_gradients(const AttentionGradients<T, Mem>& gradients, const detail::AttentionShape& shape) {
    detail::check_heads("gradients.query", detail::extents_of(gradients.query), shape.queries, shape.heads,
                        shape.head_dim);
    detail::check_heads("gradients.key", detail::extents_of(gradients.key), shape.keys, shape.kv_heads, shape.head_dim);
    detail::check_heads("gradients.value", detail::extents_of(gradients.value), shape.keys, shape.kv_heads,
                        shape.head_dim);
}

// Both layouts have passed check_layout: on the same sequences, equal blocks make equal grids.
template <class Mem>
void check_same_grid(const BlockLayout<Mem>& full, const BlockLayout<Mem>& sparse) {
    require(sparse.grid.block == full.grid.block, "sparse layout's grid.block", sparse.grid.block,
            full.grid.block == 64 ? "64 like the full layout's" : "128 like the full layout's");
    require(sparse.causal == full.causal, "sparse layout's causal", sparse.causal,
            full.causal ? "1 like the full layout's" : "0 like the full layout's");
}

template <class T, class Mem>
accumulate_t<T> scale_for(const AttentionOptions& options, const AttentionInputs<T, Mem>& inputs) {
    return static_cast<accumulate_t<T>>(detail::resolve_scale(options.scale, static_cast<int>(inputs.query.extent(2))));
}

}  // namespace

template <class Exec, class T>
void attention_forward(const Exec& exec, const AttentionInputs<T, typename Exec::memory_space>& inputs,
                       const Sequences<typename Exec::memory_space>& sequences,
                       const BlockLayout<typename Exec::memory_space>& layout, const AttentionOptions& options,
                       Workspace<typename Exec::memory_space>& workspace,
                       const AttentionOutputs<T, typename Exec::memory_space>& outputs) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::attention_forward");
    const auto shape = check_inputs(inputs, sequences);
    detail::check_layout("layout", layout, sequences, shape);
    detail::check_outputs("outputs", outputs, shape);
    const detail::ForwardArguments<T, Mem> arguments{inputs, sequences, layout, scale_for(options, inputs), outputs};
    run(exec, options.implementation, arguments, workspace);
}

template <class Exec, class T>
void attention_backward(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& dout,
                        const AttentionInputs<T, typename Exec::memory_space>& inputs,
                        const AttentionOutputs<const T, typename Exec::memory_space>& outputs,
                        const Sequences<typename Exec::memory_space>& sequences,
                        const LayoutPair<typename Exec::memory_space>& layout, const AttentionOptions& options,
                        Workspace<typename Exec::memory_space>& workspace,
                        const AttentionGradients<T, typename Exec::memory_space>& gradients) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::attention_backward");
    const auto shape = check_inputs(inputs, sequences);
    detail::check_heads("dout", detail::extents_of(dout), shape.queries, shape.heads, shape.head_dim);
    detail::check_outputs("outputs", outputs, shape);
    detail::check_layout("layout", layout.layout, sequences, shape);
    detail::check_transposed("layout.transposed", layout, sequences);
    check_gradients(gradients, shape);
    const detail::BackwardArguments<T, Mem> arguments{
        dout, inputs, outputs, sequences, layout, scale_for(options, inputs), gradients};
    run(exec, options.implementation, arguments, workspace);
}

template <class Exec, class T>
void gated_attention_forward(const Exec& exec, const AttentionInputs<T, typename Exec::memory_space>& inputs,
                             const Sequences<typename Exec::memory_space>& sequences,
                             const BlockLayout<typename Exec::memory_space>& full,
                             const BlockLayout<typename Exec::memory_space>& sparse,
                             const Span1<const float, typename Exec::memory_space>& gate,
                             const AttentionOptions& options, Workspace<typename Exec::memory_space>& workspace,
                             const HeadsView<T, typename Exec::memory_space>& out,
                             const AttentionOutputs<T, typename Exec::memory_space>& full_outputs,
                             const AttentionOutputs<T, typename Exec::memory_space>& sparse_outputs) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::gated_attention_forward");
    const auto shape = check_inputs(inputs, sequences);
    detail::check_layout("full", full, sequences, shape);
    detail::check_layout("sparse", sparse, sequences, shape);
    check_same_grid(full, sparse);
    detail::check_extent("gate", gate.extent(0), shape.heads, "the number of query heads");
    detail::check_heads("out", detail::extents_of(out), shape.queries, shape.heads, shape.head_dim);
    detail::check_outputs("full_outputs", full_outputs, shape);
    detail::check_outputs("sparse_outputs", sparse_outputs, shape);
    const detail::GatedForwardArguments<T, Mem> arguments{
        inputs, sequences, full, sparse, gate, scale_for(options, inputs), out, full_outputs, sparse_outputs};
    run(exec, options.implementation, arguments, workspace);
}

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
                              const Span1<float, typename Exec::memory_space>& dgate) {
    using Mem = typename Exec::memory_space;
    const Region region("SparseAttn::gated_attention_backward");
    const auto shape = check_inputs(inputs, sequences);
    detail::check_heads("dout", detail::extents_of(dout), shape.queries, shape.heads, shape.head_dim);
    detail::check_outputs("full_outputs", full_outputs, shape);
    detail::check_outputs("sparse_outputs", sparse_outputs, shape);
    detail::check_layout("full.layout", full.layout, sequences, shape);
    detail::check_transposed("full.transposed", full, sequences);
    detail::check_layout("sparse.layout", sparse.layout, sequences, shape);
    detail::check_transposed("sparse.transposed", sparse, sequences);
    check_same_grid(full.layout, sparse.layout);
    detail::check_extent("gate", gate.extent(0), shape.heads, "the number of query heads");
    detail::check_extent("dgate", dgate.extent(0), shape.heads, "the number of query heads");
    check_gradients(gradients, shape);
    const detail::GatedBackwardArguments<T, Mem> arguments{
        dout,      inputs, full_outputs, sparse_outputs, sequences, full, sparse, gate, scale_for(options, inputs),
        gradients, dgate};
    run(exec, options.implementation, arguments, workspace);
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                                           \
    template void attention_forward(const EXEC&, const AttentionInputs<T, EXEC::memory_space>&,                        \
                                    const Sequences<EXEC::memory_space>&, const BlockLayout<EXEC::memory_space>&,      \
                                    const AttentionOptions&, Workspace<EXEC::memory_space>&,                           \
                                    const AttentionOutputs<T, EXEC::memory_space>&);                                   \
    template void attention_backward(                                                                                  \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const AttentionInputs<T, EXEC::memory_space>&,     \
        const AttentionOutputs<const T, EXEC::memory_space>&, const Sequences<EXEC::memory_space>&,                    \
        const LayoutPair<EXEC::memory_space>&, const AttentionOptions&, Workspace<EXEC::memory_space>&,                \
        const AttentionGradients<T, EXEC::memory_space>&);                                                             \
    template void gated_attention_forward(                                                                             \
        const EXEC&, const AttentionInputs<T, EXEC::memory_space>&, const Sequences<EXEC::memory_space>&,              \
        const BlockLayout<EXEC::memory_space>&, const BlockLayout<EXEC::memory_space>&,                                \
        const Span1<const float, EXEC::memory_space>&, const AttentionOptions&, Workspace<EXEC::memory_space>&,        \
        const HeadsView<T, EXEC::memory_space>&, const AttentionOutputs<T, EXEC::memory_space>&,                       \
        const AttentionOutputs<T, EXEC::memory_space>&);                                                               \
    template void gated_attention_backward(                                                                            \
        const EXEC&, const HeadsView<const T, EXEC::memory_space>&, const AttentionInputs<T, EXEC::memory_space>&,     \
        const AttentionOutputs<const T, EXEC::memory_space>&, const AttentionOutputs<const T, EXEC::memory_space>&,    \
        const Sequences<EXEC::memory_space>&, const LayoutPair<EXEC::memory_space>&,                                   \
        const LayoutPair<EXEC::memory_space>&, const Span1<const float, EXEC::memory_space>&, const AttentionOptions&, \
        Workspace<EXEC::memory_space>&, const AttentionGradients<T, EXEC::memory_space>&,                              \
        const Span1<float, EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)  \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, double)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
