#pragma once
// The hand-written CUDA selection of cuda/, for arrays of Kokkos' CUDA memory. Present where Kokkos has its CUDA back
// end (SPARSEATTN_CUDA_KERNELS).

#if defined(SPARSEATTN_CUDA_KERNELS)

#include "sparseattn/select/detail/problem.hpp"
#include "sparseattn/select/flexprefill.hpp"
#include "sparseattn/select/xattention.hpp"

namespace sparseattn::detail {

using CudaMem = Kokkos::Cuda::memory_space;

struct SelectionCall {
    HeadsView<const bf16, CudaMem> query, key;
    const Sequences<CudaMem>& sequences;
    const std::vector<std::int32_t>& heads;  // to estimate
};

// A call as memory plans know it, whose arrays have extents and no elements.
SelectionCall planned_call(const Sequences<CudaMem>& sequences, const SelectionShape& shape,
                           const std::vector<std::int32_t>& heads);

// What MInference's vertical_and_slash heads keep, before a sequence's length bounds it.
struct ProfileSizes {
    std::vector<std::int32_t> columns, distances;  // [heads]
    double column_share = 0, distance_share = 0;   // of the keys instead, where above 0
    std::int64_t most_columns = 0;                 // of any list in any sequence
};

// Each enqueues the whole selection into `layout` and returns true, or false when the current device has no kernel for
// it. They wait for nothing. Throw Error naming the step when CUDA refuses it.
bool cuda_select_xattention(const Kokkos::Cuda& exec, const SelectionCall& call, const XAttentionOptions& options,
                            Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout);
bool cuda_select_flexprefill(const Kokkos::Cuda& exec, const SelectionCall& call, const FlexPrefillOptions& options,
                             Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout);
bool cuda_select_minference(const Kokkos::Cuda& exec, const SelectionCall& call, int block, const ProfileSizes& sizes,
                            Workspace<CudaMem>& workspace, BlockLayout<CudaMem>& layout);

// Bytes of workspace that these take; 0 when the current device has no kernel for the call.
std::size_t cuda_xattention_bytes(const SelectionCall& call, const XAttentionOptions& options);
std::size_t cuda_flexprefill_bytes(const SelectionCall& call, const FlexPrefillOptions& options);
std::size_t cuda_minference_bytes(const SelectionCall& call, int block, const ProfileSizes& sizes);

}  // namespace sparseattn::detail

#endif
