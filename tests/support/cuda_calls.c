/* Stands between the program and the CUDA runtime library for the calls that allocate, free, wait or copy: a program
 * that links this file resolves them here, and from here on to the library. In C, without the runtime's headers: nvcc
 * has its own definitions of some of these names in them. Enumerations and error codes are ints of the same size. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

typedef void (*listener)(const char* call);
static listener current = NULL;

void sparseattn_set_cuda_listener(listener next) {
    current = next;
}

static void tell(const char* call) {
    if (current != NULL) current(call);
}

#define SPARSEATTN_CALL(NAME, PARAMETERS, ARGUMENTS)                  \
    int NAME PARAMETERS {                                             \
        static int(*call) PARAMETERS = NULL;                          \
        if (call == NULL) *(void**)(&call) = dlsym(RTLD_NEXT, #NAME); \
        tell(#NAME);                                                  \
        return call ARGUMENTS;                                        \
    }

SPARSEATTN_CALL(cudaDeviceSynchronize, (void), ())
SPARSEATTN_CALL(cudaStreamSynchronize, (void* stream), (stream))
SPARSEATTN_CALL(cudaEventSynchronize, (void* event), (event))
SPARSEATTN_CALL(cudaMalloc, (void** pointer, size_t bytes), (pointer, bytes))
SPARSEATTN_CALL(cudaMallocHost, (void** pointer, size_t bytes), (pointer, bytes))
SPARSEATTN_CALL(cudaHostAlloc, (void** pointer, size_t bytes, unsigned flags), (pointer, bytes, flags))
SPARSEATTN_CALL(cudaMallocManaged, (void** pointer, size_t bytes, unsigned flags), (pointer, bytes, flags))
SPARSEATTN_CALL(cudaMallocAsync, (void** pointer, size_t bytes, void* stream), (pointer, bytes, stream))
SPARSEATTN_CALL(cudaFree, (void* pointer), (pointer))
SPARSEATTN_CALL(cudaFreeHost, (void* pointer), (pointer))
SPARSEATTN_CALL(cudaFreeAsync, (void* pointer, void* stream), (pointer, stream))
SPARSEATTN_CALL(cudaMemcpy, (void* to, const void* from, size_t bytes, int kind), (to, from, bytes, kind))
SPARSEATTN_CALL(cudaMemcpyAsync, (void* to, const void* from, size_t bytes, int kind, void* stream),
                (to, from, bytes, kind, stream))
