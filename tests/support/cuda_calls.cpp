// Stands between the program and the CUDA runtime library for the calls that allocate, free, wait or copy: a program
// that links this file resolves them here, and from here on to the library.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "support/steady.hpp"

namespace sparseattn::testing {
namespace {
CudaListener current = nullptr;

// Where the library's function of that name is.
template <class Function>
Function* next(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}
void tell(const char* call) {
    if (current != nullptr) current(call);
}
}  // namespace

void set_cuda_listener(CudaListener listener) {
    current = listener;
}

}  // namespace sparseattn::testing

#define SPARSEATTN_CALL(NAME, PARAMETERS, ARGUMENTS)                                        \
    extern "C" cudaError_t NAME PARAMETERS {                                                \
        static auto* const call = sparseattn::testing::next<cudaError_t PARAMETERS>(#NAME); \
        sparseattn::testing::tell(#NAME);                                                   \
        return call ARGUMENTS;                                                              \
    }

SPARSEATTN_CALL(cudaDeviceSynchronize, (void), ())
SPARSEATTN_CALL(cudaStreamSynchronize, (cudaStream_t stream), (stream))
SPARSEATTN_CALL(cudaEventSynchronize, (cudaEvent_t event), (event))
SPARSEATTN_CALL(cudaMalloc, (void** pointer, std::size_t bytes), (pointer, bytes))
SPARSEATTN_CALL(cudaMallocHost, (void** pointer, std::size_t bytes), (pointer, bytes))
SPARSEATTN_CALL(cudaHostAlloc, (void** pointer, std::size_t bytes, unsigned flags), (pointer, bytes, flags))
SPARSEATTN_CALL(cudaMallocManaged, (void** pointer, std::size_t bytes, unsigned flags), (pointer, bytes, flags))
SPARSEATTN_CALL(cudaMallocAsync, (void** pointer, std::size_t bytes, cudaStream_t stream), (pointer, bytes, stream))
SPARSEATTN_CALL(cudaFree, (void* pointer), (pointer))
SPARSEATTN_CALL(cudaFreeHost, (void* pointer), (pointer))
SPARSEATTN_CALL(cudaFreeAsync, (void* pointer, cudaStream_t stream), (pointer, stream))
SPARSEATTN_CALL(cudaMemcpy, (void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind),
                (to, from, bytes, kind))
SPARSEATTN_CALL(cudaMemcpyAsync,
                (void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream),
                (to, from, bytes, kind, stream))
