#include "sparseattn/select/detail/cuda.hpp"

#include <cmath>

#include "cuda/select.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/select/detail/mask.hpp"

namespace sparseattn::detail {
namespace {

constexpr std::size_t alignment = 256;  // of the kernels' workspace

cuda::Heads heads_of(const HeadsView<const bf16, CudaMem>& view) {
    return {const_cast<bf16*>(view.data()), static_cast<std::int64_t>(view.stride(0)),
            static_cast<std::int64_t>(view.stride(1))};
}

// What every selection is told but where its lists and workspace are.
void set_call(cuda::SelectionParams& params, const SelectionCall& call, int block) {
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
    params.target.rows = static_cast<int>(mask_rows(call.sequences, block));
}

std::vector<double> thresholds_of(const SelectionCall& call, const XAttentionOptions& options) {
    std::vector<double> thresholds;
    for (const std::int32_t head : call.heads) {
        thresholds.push_back(options.thresholds.empty() ? options.threshold : options.thresholds[head]);
    }
    return thresholds;
}

// `thresholds`: those of the call, which the result points to.
cuda::XAttentionParams params_of(const SelectionCall& call, const XAttentionOptions& options,
                                 const std::vector<double>& thresholds) {
    cuda::XAttentionParams params;
    set_call(params, call, options.block);
    params.stride = options.stride;
    params.scale =
        static_cast<float>(1 / (std::sqrt(static_cast<double>(params.head_dim)) * options.stride * options.norm));
    params.causal = options.causal;
    params.reversed = options.mode == XAttentionOptions::Mode::antidiagonal;
    params.keep_sink = options.keep_sink;
    params.keep_recent = options.keep_recent;
    params.thresholds = thresholds.data();
    return params;
}

cuda::FlexPrefillParams params_of(const SelectionCall& call, const FlexPrefillOptions& options) {
    cuda::FlexPrefillParams params;
    set_call(params, call, options.block);
    params.gamma = options.gamma;
    params.tau = options.tau;
    params.least = options.min_budget;
    params.most = options.max_budget.value_or(0);
    params.interleaved = options.gqa_interleave;
    return params;
}

cuda::MInferenceParams params_of(const SelectionCall& call, int block, const ProfileSizes& sizes) {
    cuda::MInferenceParams params;
    set_call(params, call, block);
    params.columns = sizes.columns.data();
    params.distances = sizes.distances.data();
    params.column_share = sizes.column_share;
    params.distance_share = sizes.distance_share;
    return params;
}

bool covered(const cuda::XAttentionParams& params) {
    return cuda::xattention_kernel(params) != cuda::Kernel::none;
}
bool covered(const cuda::FlexPrefillParams& params) {
    return cuda::flexprefill_kernel(params) != cuda::Kernel::none;
}
bool covered(const cuda::MInferenceParams& params) {
    return params.estimated > 0 && cuda::minference_kernel(params) != cuda::Kernel::none;
}

// Memory of Kokkos' pool is aligned to less than the kernels ask for.
std::size_t with_alignment(std::size_t bytes) {
    return bytes + alignment;
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
void run(const char* name, const Kokkos::Cuda& exec, Params& params, std::size_t bytes,
         cuda::Status (*call)(const Params&), Workspace<CudaMem>& workspace) {
    Workspace<CudaMem>::Frame frame(workspace);
    std::byte* memory = frame.take<std::byte>(with_alignment(bytes)).data();
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % alignment;
    params.workspace = memory + (past == 0 ? 0 : alignment - past);
    params.workspace_bytes = bytes;
    params.stream = exec.cuda_stream();
    const cuda::Status status = call(params);
    if (!status.ok()) {
        throw Error(concat(name, " on CUDA failed at ", status.where, ": ", cudaGetErrorString(status.error)));
    }
}

}  // namespace

SelectionCall planned_call(const Sequences<CudaMem>& sequences, const SelectionShape& shape,
                           const std::vector<std::int32_t>& heads) {
    const auto empty = [&](int tokens, int count) {
        const auto d = static_cast<std::size_t>(shape.head_dim), row = d * static_cast<std::size_t>(count);
        return HeadsView<const bf16, CudaMem>(nullptr, Kokkos::LayoutStride(tokens, row, count, d, d, 1));
    };
    return {empty(sequences.queries(), shape.heads), empty(sequences.keys(), shape.kv_heads), sequences, heads};
}

bool cuda_select_xattention(const Kokkos::Cuda& exec, const SelectionCall& call, const XAttentionOptions& options,
                            Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout) {
    const std::vector<double> thresholds = thresholds_of(call, options);
    cuda::XAttentionParams params = params_of(call, options, thresholds);
    if (!covered(params)) return false;
    begin_lists(exec, call, options.causal, params, layout);
    run("select_xattention", exec, params, cuda::xattention_workspace(params), cuda::xattention, workspace);
    return true;
}

bool cuda_select_flexprefill(const Kokkos::Cuda& exec, const SelectionCall& call, const FlexPrefillOptions& options,
                             Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout) {
    cuda::FlexPrefillParams params = params_of(call, options);
    if (!covered(params)) return false;
    begin_lists(exec, call, true, params, layout);
    run("select_flexprefill", exec, params, cuda::flexprefill_workspace(params), cuda::flexprefill, workspace);
    return true;
}

bool cuda_select_minference(const Kokkos::Cuda& exec, const SelectionCall& call, int block, const ProfileSizes& sizes,
                            Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout) {
    cuda::MInferenceParams params = params_of(call, block, sizes);
    if (!covered(params)) return false;
    begin_lists(exec, call, true, params, layout);
    make_room(exec, "SparseAttn::layout.keys.offsets", static_cast<std::int64_t>(layout.lists) * layout.grid.rows + 1,
              layout.key_offsets);
    make_room(exec, "SparseAttn::layout.keys",
              most_single_keys(call.sequences, block, params.estimated, sizes.most_columns), layout.keys);
    layout.single_keys = true;
    params.key_offsets = layout.key_offsets.data();
    params.keys = layout.keys.data();
    run("select_minference", exec, params, cuda::minference_workspace(params), cuda::minference, workspace);
    return true;
}

std::size_t cuda_xattention_bytes(const SelectionCall& call, const XAttentionOptions& options) {
    const std::vector<double> thresholds = thresholds_of(call, options);
    const cuda::XAttentionParams params = params_of(call, options, thresholds);
    return covered(params) ? with_alignment(cuda::xattention_workspace(params)) : 0;
}

std::size_t cuda_flexprefill_bytes(const SelectionCall& call, const FlexPrefillOptions& options) {
    const cuda::FlexPrefillParams params = params_of(call, options);
    return covered(params) ? with_alignment(cuda::flexprefill_workspace(params)) : 0;
}

std::size_t cuda_minference_bytes(const SelectionCall& call, int block, const ProfileSizes& sizes) {
    const cuda::MInferenceParams params = params_of(call, block, sizes);
    return covered(params) ? with_alignment(cuda::minference_workspace(params)) : 0;
}

}  // namespace sparseattn::detail
