#include "sparseattn/select/detail/cuda.hpp"

#include <cmath>

#include "cuda/select.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/select/detail/mask.hpp"

namespace sparseattn::detail {
namespace {

cuda::Heads heads_of(const HeadsView<const bf16, CudaMem>& view) {
    return {const_cast<bf16*>(view.data()), static_cast<std::int64_t>(view.stride(0)),
            static_cast<std::int64_t>(view.stride(1))};
}

cuda::XAttentionParams params_of(const XAttentionCall& call, const std::vector<double>& thresholds) {
    const XAttentionOptions& options = call.options;
    cuda::XAttentionParams params;
    params.query_heads = static_cast<int>(call.query.extent(1));
    params.key_heads = static_cast<int>(call.key.extent(1));
    params.head_dim = static_cast<int>(call.query.extent(2));
    params.block = options.block;
    params.stride = options.stride;
    params.scale =
        static_cast<float>(1 / (std::sqrt(static_cast<double>(params.head_dim)) * options.stride * options.norm));
    params.causal = options.causal;
    params.reversed = options.mode == XAttentionOptions::Mode::antidiagonal;
    params.keep_sink = options.keep_sink;
    params.keep_recent = options.keep_recent;
    params.query = heads_of(call.query);
    params.key = heads_of(call.key);
    params.batch = {call.sequences.count(), call.sequences.queries(), call.sequences.keys(),
                    call.sequences.device_query_offsets().data(), call.sequences.device_key_offsets().data()};
    params.host_query_offsets = call.sequences.query_offsets().data();
    params.host_key_offsets = call.sequences.key_offsets().data();
    params.estimated = static_cast<int>(call.heads.size());
    params.heads = call.heads.data();
    params.thresholds = thresholds.data();
    return params;
}

}  // namespace

bool cuda_select_xattention(const Kokkos::Cuda& exec, const XAttentionCall& call, Workspace<CudaMem>& workspace,
                            BlockLayout<CudaMem>& layout) {
    const XAttentionOptions& options = call.options;
    std::vector<double> thresholds;
    for (const std::int32_t head : call.heads) {
        thresholds.push_back(options.thresholds.empty() ? options.threshold : options.thresholds[head]);
    }
    cuda::XAttentionParams params = params_of(call, thresholds);
    if (cuda::xattention_kernel(params) == cuda::Kernel::none) return false;

    begin_selected_layout(exec, call.sequences, options.block, options.causal,
                          estimated_head_list(call.heads, params.query_heads), layout);
    make_room(exec, "SparseAttn::layout.columns.offsets",
              static_cast<std::int64_t>(layout.lists) * layout.grid.rows + 1, layout.offsets);
    make_room(exec, "SparseAttn::layout.columns",
              most_blocks(call.sequences, options.block, options.causal, params.estimated), layout.columns);
    params.target = {layout.grid.rows, layout.grid.row_begin.data(), layout.grid.row_sequence.data(),
                     layout.lists,     layout.offsets.data(),        layout.columns.data()};

    constexpr std::size_t alignment = 256;
    Workspace<CudaMem>::Frame frame(workspace);
    params.workspace_bytes = cuda::xattention_workspace(params);
    std::byte* memory = frame.take<std::byte>(params.workspace_bytes + alignment).data();
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % alignment;
    params.workspace = memory + (past == 0 ? 0 : alignment - past);
    params.stream = exec.cuda_stream();
    const cuda::Status status = cuda::xattention(params);
    if (!status.ok()) {
        throw Error(
            concat("select_xattention on CUDA failed at ", status.where, ": ", cudaGetErrorString(status.error)));
    }
    return true;
}

}  // namespace sparseattn::detail
