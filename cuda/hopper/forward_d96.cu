#include "cuda/hopper/forward.cuh"

namespace sparseattn::cuda::hopper {
template cudaError_t launch_forward<96, 128, true>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<96, 64, true>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<96, 64, false>(const ForwardArgs&, int, cudaStream_t);
}  // namespace sparseattn::cuda::hopper
