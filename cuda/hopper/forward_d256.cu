#include "cuda/hopper/forward.cuh"

namespace sparseattn::cuda::hopper {
template cudaError_t launch_forward<256, 128, Team::pair, false>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<256, 128, Team::pair, true>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<256, 64, Team::pair, false>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<256, 64, Team::pair, true>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<256, 64, Team::group, true>(const ForwardArgs&, int, cudaStream_t);
}  // namespace sparseattn::cuda::hopper
