#include "cuda/ampere/backward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_key_pass<256>(const BackwardArgs&, cudaStream_t);
template cudaError_t launch_query_pass<256>(const BackwardArgs&, cudaStream_t);

}  // namespace sparseattn::cuda::ampere
