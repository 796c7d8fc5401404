#include "cuda/ampere/forward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_forward<128, 64>(const ForwardParams&);
template cudaError_t launch_forward<128, 128>(const ForwardParams&);

}  // namespace sparseattn::cuda::ampere
