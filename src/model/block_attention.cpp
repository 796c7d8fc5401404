#include "sparseattn/model/block_attention.hpp"

#include <algorithm>
#include <type_traits>

#include "sparseattn/attention/detail/coverage.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/model/detail/cutter.hpp"
#include "sparseattn/model/detail/gates.hpp"
#include "sparseattn/model/detail/rows.hpp"

namespace sparseattn {
namespace {

// What the attention calls take from their workspace under automatic choice of the implementation, rounded up: on a CPU
// packed keys and values of the forward pass or row scalars of the backward pass, and tiles for each thread; on a
// device a number for each row and branch of the backward pass, or what the bf16 kernels ask for. The fp64 reference
// instead keeps unnormalised outputs of both branches in double.
template <class Exec, class T>
std::int64_t workspace_bytes(const ModelConfig& config, const PassShape& pass, bool gated) {
    constexpr std::int64_t tile = 64, slack = 4096;
    const std::int64_t d = config.head_dim, query_rows = pass.tokens * config.num_attention_heads;
    const std::int64_t key_rows = (pass.tokens + 2 * tile) * config.num_key_value_heads;
    const std::int64_t scalars = 4 * query_rows;
    if constexpr (std::is_same_v<T, double>) {
        const std::int64_t outputs = (gated ? 2 : 1) * query_rows * d;
        const std::int64_t gradients = pass.training ? query_rows * d + 2 * key_rows * d + scalars : 0;
        return static_cast<std::int64_t>(sizeof(T)) * std::max(outputs, gradients) + slack;
    } else if constexpr (host_accessible<Exec>) {
        const std::int64_t rows = query_rows / tile + 2 * config.num_attention_heads;  // of the grid, all heads
        const std::int64_t threads = concurrency(Exec()), lists = 16 * rows + pass.tokens + slack;
        const std::int64_t forward = 2 * key_rows * d + threads * (5 * tile * d + tile * tile + 8 * tile);
        const std::int64_t sums = std::is_same_v<T, bf16> ? query_rows * d : 0;  // the query's gradient in float
        const std::int64_t backward = scalars + sums + threads * (12 * tile * d + 2 * tile * tile + 8 * tile);
        const std::int64_t floats = pass.training ? std::max(forward, backward) : forward;
        return static_cast<std::int64_t>(sizeof(accumulate_t<T>)) * floats + lists;
    } else {
        const std::int64_t deltas = pass.training ? (gated ? 2 : 1) * query_rows : 0;
        const std::int64_t generic = static_cast<std::int64_t>(sizeof(accumulate_t<T>)) * deltas + slack;
        if constexpr (std::is_same_v<T, bf16>) {
            const std::int64_t kernels =
                detail::kernel_workspace_bytes({pass.tokens, config.num_attention_heads, config.num_key_value_heads,
                                                config.head_dim, gated, pass.training});
            return std::max(generic, kernels + slack);
        }
        return generic;
    }
}

}  // namespace

template <class Exec, class T>
auto BlockAttention<Exec, T>::cut(const ModelConfig& config, const PassShape& pass, bool gated, std::byte* memory)
    -> Buffers {
    detail::Cutter<Mem> cut(memory);
    const std::int64_t n = pass.tokens, heads = config.num_attention_heads;
    Buffers buffers;
    buffers.layers.resize(pass.training && !pass.recompute ? config.num_hidden_layers : 1);
    for (Saved& layer : buffers.layers) {
        layer = detail::cut_branches<T, Mem>(cut, n, heads, config.head_dim, gated);
    }
    if (gated && pass.training) buffers.dgate = cut.template take<float>(heads);
    buffers.bytes = cut.used();
    return buffers;
}

template <class Exec, class T>
AttentionBytes BlockAttention<Exec, T>::bytes(const ModelConfig& config, const PassShape& pass, bool gated) {
    return {static_cast<std::int64_t>(cut(config, pass, gated, nullptr).bytes),
            workspace_bytes<Exec, T>(config, pass, gated)};
}

template <class Exec, class T>
AttentionBytes BlockAttention<Exec, T>::bytes(const ModelConfig& config, const PassShape& pass) const {
    return bytes(config, pass, gated());
}

template <class Exec, class T>
std::int64_t BlockAttention<Exec, T>::allocated() const {
    return static_cast<std::int64_t>(memory_.extent(0) + workspace_->capacity());
}

template <class Exec, class T>
void BlockAttention<Exec, T>::prepare(const ModelConfig& config, const PassShape& pass) {
    const AttentionBytes wanted = bytes(config, pass, gated());
    if (static_cast<std::size_t>(wanted.saved) > memory_.extent(0)) {
        memory_ = {};  // give the old block back first
        memory_ = Array1<std::byte, Mem>(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::attention"),
                                         static_cast<std::size_t>(wanted.saved));
    }
    buffers_ = cut(config, pass, gated(), memory_.data());
    // One block of the expected size at once, where growing by pieces would overshoot.
    const auto temporaries = static_cast<std::size_t>(wanted.workspace);
    if (temporaries > workspace_->capacity()) {
        workspace_ = std::make_unique<Workspace<Mem>>();
        typename Workspace<Mem>::Frame(*workspace_).template take<std::byte>(temporaries);
    }
}

template <class Exec, class T>
void BlockAttention<Exec, T>::forward(const Exec& exec, const LayerInputs<Exec, T>& inputs,
                                      const HeadsView<T, Mem>& out) {
    const LayerPlan<Mem> plan = forward_plan(exec, inputs);
    detail::forward_call<Exec, T>({exec, inputs.heads, inputs.sequences, plan, saved(inputs.layer), *workspace_}, out);
}

template <class Exec, class T>
void BlockAttention<Exec, T>::backward(const Exec& exec, const LayerInputs<Exec, T>& inputs,
                                       const HeadsView<const T, Mem>& out, const HeadsView<const T, Mem>& dout,
                                       const AttentionGradients<T, Mem>& gradients) {
    const LayerPlan<Mem> plan = backward_plan(exec, inputs);
    detail::backward_call<Exec, T>({exec, inputs.heads, inputs.sequences, plan, saved(inputs.layer), *workspace_}, out,
                                   dout, gradients, buffers_.dgate);
}

// ---- layouts known before the pass -----------------------------------------------------------------------------

template <class Exec, class T>
void PlannedAttention<Exec, T>::set(const AttentionPlan<Mem>& plan, const Span2<float, Mem>& dgate) {
    plan_ = std::make_unique<const AttentionPlan<Mem>>(plan);
    dgate_ = dgate;
}

template <class Exec, class T>
void PlannedAttention<Exec, T>::prepare(const ModelConfig& config, const PassShape& pass) {
    require(plan_ != nullptr, "plan", "not set", "set before a pass");
    if (plan_->gated()) {
        detail::check_gates("extents of plan.gate", plan_->gate.extent(0), plan_->gate.extent(1), config);
        require(plan_->sparse != nullptr, "plan.sparse", "null", "given with plan.gate");
        if (pass.training) detail::check_gates("extents of dgate", dgate_.extent(0), dgate_.extent(1), config);
    }
    BlockAttention<Exec, T>::prepare(config, pass);
}

template <class Exec, class T>
auto PlannedAttention<Exec, T>::forward_plan(const Exec&, const LayerInputs<Exec, T>& inputs) -> LayerPlan<Mem> {
    return {plan_->full, plan_->sparse, detail::layer_row(plan_->gate, inputs.layer),
            detail::layer_row(dgate_, inputs.layer), plan_->options};
}

template <class Exec, class T>
auto PlannedAttention<Exec, T>::backward_plan(const Exec& exec, const LayerInputs<Exec, T>& inputs) -> LayerPlan<Mem> {
    return forward_plan(exec, inputs);
}

#define SPARSEATTN_BLOCK_ATTENTION(T)                                \
    template class BlockAttention<Kokkos::DefaultExecutionSpace, T>; \
    template class PlannedAttention<Kokkos::DefaultExecutionSpace, T>;
SPARSEATTN_BLOCK_ATTENTION(float)
SPARSEATTN_BLOCK_ATTENTION(bf16)
SPARSEATTN_BLOCK_ATTENTION(double)

}  // namespace sparseattn
