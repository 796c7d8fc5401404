#pragma once
// The hand-written CUDA selection of cuda/, for arrays of Kokkos' CUDA memory. Present where Kokkos has its CUDA back
// end (SPARSEATTN_CUDA_KERNELS).

#if defined(SPARSEATTN_CUDA_KERNELS)

#include "sparseattn/select/xattention.hpp"

namespace sparseattn::detail {

using CudaMem = Kokkos::Cuda::memory_space;

struct XAttentionCall {
    const HeadsView<const bf16, CudaMem>& query;
    const HeadsView<const bf16, CudaMem>& key;
    const Sequences<CudaMem>& sequences;
    const XAttentionOptions& options;
    const std::vector<std::int32_t>& heads;  // to estimate
};

// Enqueues the whole selection into `layout` and returns true, or false when the current device has no kernel for it.
// Waits for nothing. Throws Error naming the step when CUDA refuses it.
bool cuda_select_xattention(const Kokkos::Cuda& exec, const XAttentionCall& call, Workspace<CudaMem>& workspace,
                            BlockLayout<CudaMem>& layout);

}  // namespace sparseattn::detail

#endif
