#include "cuda/ampere/forward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_forward<32, 4>(const ForwardParams&);
template cudaError_t launch_forward<32, 8>(const ForwardParams&);

}  // namespace sparseattn::cuda::ampere
