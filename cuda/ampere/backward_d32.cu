#include "cuda/ampere/backward.cuh"

namespace sparseattn::cuda::ampere {

template cudaError_t launch_key_pass<32>(const BackwardArgs&, cudaStream_t);
template cudaError_t launch_query_pass<32>(const BackwardArgs&, cudaStream_t);

}  // namespace sparseattn::cuda::ampere
