#pragma once
// The hand-written CUDA kernels of cuda/, for arrays of Kokkos' CUDA memory. Present where Kokkos has its CUDA back end
// (SPARSEATTN_CUDA_KERNELS).

#include "sparseattn/attention/detail/arguments.hpp"

#if defined(SPARSEATTN_CUDA_KERNELS)

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

using CudaMem = Kokkos::Cuda::memory_space;

// What the current device's kernels do not cover of a call, a literal; "" when they cover all of it.
const char* cuda_gap(const ForwardArguments<bf16, CudaMem>& arguments);
const char* cuda_gap(const BackwardArguments<bf16, CudaMem>& arguments);
const char* cuda_gap(const GatedForwardArguments<bf16, CudaMem>& arguments);
const char* cuda_gap(const GatedBackwardArguments<bf16, CudaMem>& arguments);

// Enqueues a covered call. Throws Error naming the step when CUDA refuses it.
void cuda_attention(const Kokkos::Cuda& exec, const ForwardArguments<bf16, CudaMem>& arguments,
                    Workspace<CudaMem>& workspace);
void cuda_attention(const Kokkos::Cuda& exec, const BackwardArguments<bf16, CudaMem>& arguments,
                    Workspace<CudaMem>& workspace);
void cuda_attention(const Kokkos::Cuda& exec, const GatedForwardArguments<bf16, CudaMem>& arguments,
                    Workspace<CudaMem>& workspace);
void cuda_attention(const Kokkos::Cuda& exec, const GatedBackwardArguments<bf16, CudaMem>& arguments,
                    Workspace<CudaMem>& workspace);

}  // namespace sparseattn::detail

#endif
