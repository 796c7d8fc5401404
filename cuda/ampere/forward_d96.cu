#include "cuda/ampere/forward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_forward<96, 4>(const ForwardParams&);
template cudaError_t launch_forward<96, 8>(const ForwardParams&);

}  // namespace sparseattn::cuda::ampere
