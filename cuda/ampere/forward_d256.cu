#include "cuda/ampere/forward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_forward<256, 64>(const ForwardParams&);

}  // namespace sparseattn::cuda::ampere
