#include "cuda/ampere/forward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_forward<64, 64>(const ForwardParams&);
template cudaError_t launch_forward<64, 128>(const ForwardParams&);

}  // namespace sparseattn::cuda::ampere
