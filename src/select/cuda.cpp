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

void set_call(cuda::SelectionParams& params, const SelectionCall& call, int block, const Kokkos::Cuda& exec) {
    params.query_heads = static_cast<int>(call.query.extent(1));
    params.key_heads = static_cast<int>(call.key.extent(1));
    params.head_dim = static_cast<int>(call.query.extent(2));
    params.block = block;
    params.query = heads_of(call.query);
    params.key = heads_of(call.key);
    params.batch = {call.sequences.count(), call.sequences.queries(), call.sequences.keys(),
                    call.sequences.device_query_offsets().data(), call.sequences.device_key_offsets().data()};
    params.host_query_offsets = call.sequences.query_offsets().data();
    params.host_key_offsets = call.sequences.key_offsets().data();
    params.estimated = static_cast<int>(call.heads.size());
    params.heads = call.heads.data();
    params.stream = exec.cuda_stream();
}

// Makes everything of the layout but its lists, and room for those.
void begin_lists(const Kokkos::Cuda& exec, const SelectionCall& call, bool causal, cuda::SelectionParams& params,
                 BlockLayout<CudaMem>& layout) {
    begin_selected_layout(exec, call.sequences, params.block, causal,
                          estimated_head_list(call.heads, params.query_heads), layout);
    make_room(exec, "SparseAttn::layout.columns.offsets",
              static_cast<std::int64_t>(layout.lists) * layout.grid.rows + 1, layout.offsets);
    make_room(exec, "SparseAttn::layout.columns", most_blocks(call.sequences, params.block, causal, params.estimated),
              layout.columns);
    params.target = {layout.grid.rows, layout.grid.row_begin.data(), layout.grid.row_sequence.data(),
                     layout.lists,     layout.offsets.data(),        layout.columns.data()};
}

template <class Params>
void run(const char* name, Params& params, std::size_t bytes, cuda::Status (*call)(const Params&),
         Workspace<CudaMem>& workspace) {
    constexpr std::size_t alignment = 256;
    Workspace<CudaMem>::Frame frame(workspace);
    params.workspace_bytes = bytes;
    std::byte* memory = frame.take<std::byte>(bytes + alignment).data();
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % alignment;
    params.workspace = memory + (past == 0 ? 0 : alignment - past);
    const cuda::Status status = call(params);
    if (!status.ok()) {
        throw Error(concat(name, " on CUDA failed at ", status.where, ": ", cudaGetErrorString(status.error)));
    }
}

}  // namespace

bool cuda_select_xattention(const Kokkos::Cuda& exec, const SelectionCall& call, const XAttentionOptions& options,
                            Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout) {
    std::vector<double> thresholds;
    for (const std::int32_t head : call.heads) {
        thresholds.push_back(options.thresholds.empty() ? options.threshold : options.thresholds[head]);
    }
    cuda::XAttentionParams params;
    set_call(params, call, options.block, exec);
    params.stride = options.stride;
    params.scale =
        static_cast<float>(1 / (std::sqrt(static_cast<double>(params.head_dim)) * options.stride * options.norm));
    params.causal = options.causal;
    params.reversed = options.mode == XAttentionOptions::Mode::antidiagonal;
    params.keep_sink = options.keep_sink;
    params.keep_recent = options.keep_recent;
    params.thresholds = thresholds.data();
    if (cuda::xattention_kernel(params) == cuda::Kernel::none) return false;
    begin_lists(exec, call, options.causal, params, layout);
    run("select_xattention", params, cuda::xattention_workspace(params), cuda::xattention, workspace);
    return true;
}

bool cuda_select_flexprefill(const Kokkos::Cuda& exec, const SelectionCall& call, const FlexPrefillOptions& options,
                             Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout) {
    cuda::FlexPrefillParams params;
    set_call(params, call, options.block, exec);
    params.gamma = options.gamma;
    params.tau = options.tau;
    params.least = options.min_budget;
    params.most = options.max_budget.value_or(0);
    params.interleaved = options.gqa_interleave;
    if (cuda::flexprefill_kernel(params) == cuda::Kernel::none) return false;
    begin_lists(exec, call, true, params, layout);
    run("select_flexprefill", params, cuda::flexprefill_workspace(params), cuda::flexprefill, workspace);
    return true;
}

bool cuda_select_minference(const Kokkos::Cuda& exec, const SelectionCall& call, int block, const ProfileSizes& sizes,
                            Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout) {
    cuda::MInferenceParams params;
    set_call(params, call, block, exec);
    params.columns = sizes.columns.data();
    params.distances = sizes.distances.data();
    params.column_share = sizes.column_share;
    params.distance_share = sizes.distance_share;
    if (call.heads.empty() || cuda::minference_kernel(params) == cuda::Kernel::none) return false;
    begin_lists(exec, call, true, params, layout);
    make_room(exec, "SparseAttn::layout.keys.offsets", static_cast<std::int64_t>(layout.lists) * layout.grid.rows + 1,
              layout.key_offsets);
    make_room(exec, "SparseAttn::layout.keys",
              most_single_keys(call.sequences, block, params.estimated, sizes.most_columns), layout.keys);
    layout.single_keys = true;
    params.key_offsets = layout.key_offsets.data();
    params.keys = layout.keys.data();
    run("select_minference", params, cuda::minference_workspace(params), cuda::minference, workspace);
    return true;
}

}  // namespace sparseattn::detail
