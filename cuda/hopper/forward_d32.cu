#include "cuda/hopper/forward.cuh"

namespace sparseattn::cuda::hopper {
template cudaError_t launch_forward<32, 128, Team::pair>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<32, 64, Team::pair>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<32, 64, Team::single>(const ForwardArgs&, int, cudaStream_t);
template cudaError_t launch_forward<32, 64, Team::group>(const ForwardArgs&, int, cudaStream_t);
}  // namespace sparseattn::cuda::hopper
