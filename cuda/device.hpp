#pragma once
/// \file
/// What the kernels ask of the current device.

#include <cuda_runtime_api.h>

namespace sparseattn::cuda {

/// "" on compute capability 9.0, else what is missing, a string literal.
inline const char* hopper_device_gap() {
    int device = 0, major = 0;
    const bool hopper = cudaGetDevice(&device) == cudaSuccess &&
                        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                        major == 9;
    return hopper ? "" : "the device is not of compute capability 9.0";
}

}  // namespace sparseattn::cuda
