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

// Gives the call its stream and, from `frame`, its workspace at the alignment that the door asks for.
void provide(cuda::Problem& problem, const Kokkos::Cuda& exec, std::size_t bytes, Workspace<CudaMem>::Frame& frame) {
    constexpr std::size_t alignment = 256;
    std::byte* memory = frame.take<std::byte>(bytes + alignment).data();
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % alignment;
    problem.workspace = memory + (past == 0 ? 0 : alignment - past);
    problem.workspace_bytes = bytes;
    problem.stream = exec.cuda_stream();
}

void check(const char* call, const cuda::Status& status) {
    if (status.ok()) return;
    throw Error(concat(call, " on CUDA failed at ", status.where, ": ", cudaGetErrorString(status.error)));
}

}  // namespace

const char* cuda_gap(const ForwardArguments<bf16, CudaMem>& arguments) {
    const char* why = "";
    return cuda::forward_kernel(params_of(arguments), &why) == cuda::Kernel::none ? why : "";
}
const char* cuda_gap(const BackwardArguments<bf16, CudaMem>& arguments) {
    const char* why = "";
    return cuda::backward_kernel(params_of(arguments), &why) == cuda::Kernel::none ? why : "";
}
const char* cuda_gap(const GatedForwardArguments<bf16, CudaMem>& arguments) {
    const char* why = "";
    return cuda::gated_forward_kernel(params_of(arguments), &why) == cuda::Kernel::none ? why : "";
}
const char* cuda_gap(const GatedBackwardArguments<bf16, CudaMem>& arguments) {
    const char* why = "";
    return cuda::gated_backward_kernel(params_of(arguments), &why) == cuda::Kernel::none ? why : "";
}

void cuda_attention(const Kokkos::Cuda& exec, const ForwardArguments<bf16, CudaMem>& arguments,
                    Workspace<CudaMem>& workspace) {
    Workspace<CudaMem>::Frame frame(workspace);
    cuda::ForwardParams params = params_of(arguments);
    provide(params, exec, cuda::forward_workspace(params), frame);
    check("attention_forward", cuda::forward(params));
}
void cuda_attention(const Kokkos::Cuda& exec, const BackwardArguments<bf16, CudaMem>& arguments,
                    Workspace<CudaMem>& workspace) {
    Workspace<CudaMem>::Frame frame(workspace);
    cuda::BackwardParams params = params_of(arguments);
    provide(params, exec, cuda::backward_workspace(params), frame);
    check("attention_backward", cuda::backward(params));
}
void cuda_attention(const Kokkos::Cuda& exec, const GatedForwardArguments<bf16, CudaMem>& arguments,
                    Workspace<CudaMem>& workspace) {
    Workspace<CudaMem>::Frame frame(workspace);
    cuda::GatedForwardParams params = params_of(arguments);
    provide(params, exec, cuda::gated_forward_workspace(params), frame);
    check("gated_attention_forward", cuda::gated_forward(params));
}
void cuda_attention(const Kokkos::Cuda& exec, const GatedBackwardArguments<bf16, CudaMem>& arguments,
                    Workspace<CudaMem>& workspace) {
    Workspace<CudaMem>::Frame frame(workspace);
    cuda::GatedBackwardParams params = params_of(arguments);
    provide(params, exec, cuda::gated_backward_workspace(params), frame);
    check("gated_attention_backward", cuda::gated_backward(params));
}

}  // namespace sparseattn::detail
