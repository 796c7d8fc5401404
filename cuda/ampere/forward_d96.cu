#include "cuda/ampere/forward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_forward<96, 64>(const ForwardParams&);
template cudaError_t launch_forward<96, 128>(const ForwardParams&);

}  // namespace sparseattn::cuda::ampere
