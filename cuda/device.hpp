#pragma once
/// \file
/// What the kernels ask of the current device.

#include <cuda_runtime_api.h>

#include "cuda/attention.hpp"

namespace sparseattn::cuda {

/// Major compute capability of the current device; 0 without one.
inline int device_major() {
    int device = 0, major = 0;
    const bool known = cudaGetDevice(&device) == cudaSuccess &&
                       cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
    return known ? major : 0;
}

/// The kernel for a case of which `hopper` and `ampere` say what the kernels do not cover ("": nothing). `wanted`:
/// that one or none. `why` (when not null) gets the gap of the last one asked, which covers the most.
inline Kernel choose_kernel(Kernel wanted, const char* hopper, const char* ampere, const char** why) {
    const int major = device_major();
    if (major != 9) hopper = "the device is not of compute capability 9.0";
    if (major < 8) ampere = "the device is of a compute capability below 8.0";
    const char* gap = "";
    Kernel chosen = Kernel::none;
    for (const Kernel kernel : {Kernel::hopper, Kernel::ampere}) {
        if (wanted != Kernel::none && wanted != kernel) continue;
        gap = kernel == Kernel::hopper ? hopper : ampere;
        chosen = kernel;
        if (*gap == '\0') break;
    }
    if (why != nullptr) *why = gap;
    return *gap == '\0' ? chosen : Kernel::none;
}

}  // namespace sparseattn::cuda
