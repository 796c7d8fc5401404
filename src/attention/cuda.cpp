#include "sparseattn/attention/detail/cuda.hpp"

#include <cstddef>

#include "cuda/attention.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn::detail {
namespace {

static_assert(sizeof(cuda::Window) == sizeof(Window) && offsetof(cuda::Window, sink) == offsetof(Window, sink) &&
              offsetof(cuda::Window, local) == offsetof(Window, local) &&
              offsetof(cuda::Window, dense_tail) == offsetof(Window, dense_tail));

template <class View>
cuda::Heads heads(const View& view) {
    using Value = std::remove_const_t<typename View::value_type>;
    return {const_cast<Value*>(view.data()), static_cast<std::int64_t>(view.stride(0)),
            static_cast<std::int64_t>(view.stride(1))};
}
template <class View>
cuda::Rows rows(const View& view) {
    return {const_cast<float*>(view.data()), static_cast<std::int64_t>(view.stride(0)),
            static_cast<std::int64_t>(view.stride(1))};
}

cuda::Layout layout_of(const BlockLayout<CudaMem>& layout) {
    cuda::Layout result;
    result.block = layout.grid.block;
    result.causal = layout.causal;
    result.rows = layout.grid.rows;
    result.key_blocks = layout.grid.key_blocks;
    result.lists = layout.lists;
    result.shared_heads = heads_sharing(layout);
    result.row_begin = layout.grid.row_begin.data();
    result.row_sequence = layout.grid.row_sequence.data();
    result.key_block_begin = layout.grid.key_block_begin.data();
    result.key_block_sequence = layout.grid.key_block_sequence.data();
    result.head_list = layout.head_list.data();
    result.windows = reinterpret_cast<const cuda::Window*>(layout.windows.data());
    result.offsets = layout.offsets.data();
    result.columns = layout.columns.data();
    if (layout.has_single_keys()) {
        result.key_offsets = layout.key_offsets.data();
        result.keys = layout.keys.data();
    }
    return result;
}

cuda::Transposed transposed_of(const LayoutPair<CudaMem>& pair) {
    const TransposedLayout<CudaMem>& transposed = pair.transposed;
    cuda::Transposed result{transposed.offsets.data(), transposed.rows.data(), nullptr, nullptr};
    if (pair.layout.has_single_keys()) {
        result.key_offsets = transposed.key_offsets.data();
        result.key_rows = transposed.key_rows.data();
    }
    return result;
}

// Everything but workspace and stream.
template <class Arguments>
cuda::Problem problem_of(const Arguments& arguments, const BlockLayout<CudaMem>& layout) {
    const auto& inputs = arguments.inputs;
    const auto& sequences = arguments.sequences;
    cuda::Problem problem;
    problem.query_heads = static_cast<int>(inputs.query.extent(1));
    problem.key_heads = static_cast<int>(inputs.key.extent(1));
    problem.head_dim = static_cast<int>(inputs.query.extent(2));
    problem.scale = arguments.scale;
    problem.query = heads(inputs.query);
    problem.key = heads(inputs.key);
    problem.value = heads(inputs.value);
    problem.batch = {sequences.count(), sequences.queries(), sequences.keys(), sequences.device_query_offsets().data(),
                     sequences.device_key_offsets().data()};
    problem.layout = layout_of(layout);
    return problem;
}

cuda::ForwardParams params_of(const ForwardArguments<bf16, CudaMem>& arguments) {
    cuda::ForwardParams params;
    static_cast<cuda::Problem&>(params) = problem_of(arguments, arguments.layout);
    params.out = heads(arguments.outputs.out);
    params.lse = rows(arguments.outputs.lse);
    return params;
}

cuda::BackwardParams params_of(const BackwardArguments<bf16, CudaMem>& arguments) {
    cuda::BackwardParams params;
    static_cast<cuda::Problem&>(params) = problem_of(arguments, arguments.layout.layout);
    params.transposed = transposed_of(arguments.layout);
    params.out = heads(arguments.outputs.out);
    params.dout = heads(arguments.dout);
    params.lse = rows(arguments.outputs.lse);
    params.dq = heads(arguments.gradients.query);
    params.dk = heads(arguments.gradients.key);
    params.dv = heads(arguments.gradients.value);
    params.deterministic = true;  // what the library promises
    return params;
}

cuda::GatedForwardParams params_of(const GatedForwardArguments<bf16, CudaMem>& arguments) {
    cuda::GatedForwardParams params;
    static_cast<cuda::Problem&>(params) = problem_of(arguments, arguments.full);
    params.sparse = layout_of(arguments.sparse);
    params.gate = arguments.gate.data();
    params.out = heads(arguments.out);
    params.full_out = heads(arguments.full_outputs.out);
    params.sparse_out = heads(arguments.sparse_outputs.out);
    params.full_lse = rows(arguments.full_outputs.lse);
    params.sparse_lse = rows(arguments.sparse_outputs.lse);
    return params;
}

cuda::GatedBackwardParams params_of(const GatedBackwardArguments<bf16, CudaMem>& arguments) {
    cuda::GatedBackwardParams params;
    static_cast<cuda::Problem&>(params) = problem_of(arguments, arguments.full.layout);
    params.transposed = transposed_of(arguments.full);
    params.sparse = layout_of(arguments.sparse.layout);
    params.sparse_transposed = transposed_of(arguments.sparse);
    params.gate = arguments.gate.data();
    params.full_out = heads(arguments.full_outputs.out);
    params.sparse_out = heads(arguments.sparse_outputs.out);
    params.dout = heads(arguments.dout);
    params.full_lse = rows(arguments.full_outputs.lse);
    params.sparse_lse = rows(arguments.sparse_outputs.lse);
    params.dq = heads(arguments.gradients.query);
    params.dk = heads(arguments.gradients.key);
    params.dv = heads(arguments.gradients.value);
    params.dgate = arguments.dgate.data();
    params.deterministic = true;  // what the library promises
    return params;
}

// A pass at the door of the kernels.
template <class Params>
struct Door {
    const char* name;
    cuda::Kernel (*kernel)(const Params&, const char**);
    std::size_t (*workspace)(const Params&);
    cuda::Status (*run)(const Params&);
};
constexpr Door<cuda::ForwardParams> door_of(const cuda::ForwardParams&) {
    return {"attention_forward", cuda::forward_kernel, cuda::forward_workspace, cuda::forward};
}
constexpr Door<cuda::BackwardParams> door_of(const cuda::BackwardParams&) {
    return {"attention_backward", cuda::backward_kernel, cuda::backward_workspace, cuda::backward};
}
constexpr Door<cuda::GatedForwardParams> door_of(const cuda::GatedForwardParams&) {
    return {"gated_attention_forward", cuda::gated_forward_kernel, cuda::gated_forward_workspace, cuda::gated_forward};
}
constexpr Door<cuda::GatedBackwardParams> door_of(const cuda::GatedBackwardParams&) {
    return {"gated_attention_backward", cuda::gated_backward_kernel, cuda::gated_backward_workspace,
            cuda::gated_backward};
}

template <class Arguments>
const char* gap_of(const Arguments& arguments) {
    const auto params = params_of(arguments);
    const char* why = "";
    return door_of(params).kernel(params, &why) == cuda::Kernel::none ? why : "";
}

template <class Arguments>
void run(const Kokkos::Cuda& exec, const Arguments& arguments, Workspace<CudaMem>& workspace) {
    constexpr std::size_t alignment = 256;  // what the door asks for
    auto params = params_of(arguments);
    const auto door = door_of(params);
    Workspace<CudaMem>::Frame frame(workspace);
    params.workspace_bytes = door.workspace(params);
    std::byte* memory = frame.take<std::byte>(params.workspace_bytes + alignment).data();
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % alignment;
    params.workspace = memory + (past == 0 ? 0 : alignment - past);
    params.stream = exec.cuda_stream();
    const cuda::Status status = door.run(params);
    if (status.ok()) return;
    throw Error(concat(door.name, " on CUDA failed at ", status.where, ": ", cudaGetErrorString(status.error)));
}

}  // namespace

#define SPARSEATTN_PASS(ARGUMENTS)                                                           \
    const char* cuda_gap(const ARGUMENTS<bf16, CudaMem>& arguments) {                        \
        return gap_of(arguments);                                                            \
    }                                                                                        \
    void cuda_attention(const Kokkos::Cuda& exec, const ARGUMENTS<bf16, CudaMem>& arguments, \
                        Workspace<CudaMem>& workspace) {                                     \
        run(exec, arguments, workspace);                                                     \
    }
SPARSEATTN_PASS(ForwardArguments)
SPARSEATTN_PASS(BackwardArguments)
SPARSEATTN_PASS(GatedForwardArguments)
SPARSEATTN_PASS(GatedBackwardArguments)

}  // namespace sparseattn::detail
