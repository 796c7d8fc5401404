#include "cuda/ampere/forward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_forward<256, 4>(const ForwardParams&);

}  // namespace sparseattn::cuda::ampere
