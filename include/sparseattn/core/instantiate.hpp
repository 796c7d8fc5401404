#pragma once
/// \file
/// The execution and memory spaces the library is compiled for: the default host space, Serial when it is another one,
/// and CUDA when Kokkos has it. Source files list their explicit instantiations through these macros.

#include "sparseattn/core/kokkos_compat.hpp"

#if defined(KOKKOS_ENABLE_OPENMP)
#define SPARSEATTN_FOR_PARALLEL_HOST(MACRO) MACRO(Kokkos::OpenMP)
#elif defined(KOKKOS_ENABLE_THREADS)
#define SPARSEATTN_FOR_PARALLEL_HOST(MACRO) MACRO(Kokkos::Threads)
#else
#define SPARSEATTN_FOR_PARALLEL_HOST(MACRO)
#endif

#if defined(KOKKOS_ENABLE_SERIAL)
#define SPARSEATTN_FOR_SERIAL(MACRO) MACRO(Kokkos::Serial)
#else
#define SPARSEATTN_FOR_SERIAL(MACRO)
#endif

#if defined(KOKKOS_ENABLE_CUDA)
#define SPARSEATTN_FOR_DEVICE(MACRO) MACRO(Kokkos::Cuda)
#define SPARSEATTN_FOR_DEVICE_MEMORY(MACRO) MACRO(Kokkos::CudaSpace)
#else
#define SPARSEATTN_FOR_DEVICE(MACRO)
#define SPARSEATTN_FOR_DEVICE_MEMORY(MACRO)
#endif

/// MACRO(Space) for every CPU execution space of this build.
#define SPARSEATTN_FOR_EACH_HOST_EXEC(MACRO) SPARSEATTN_FOR_PARALLEL_HOST(MACRO) SPARSEATTN_FOR_SERIAL(MACRO)
/// MACRO(Space) for every execution space of this build.
#define SPARSEATTN_FOR_EACH_EXEC(MACRO) SPARSEATTN_FOR_EACH_HOST_EXEC(MACRO) SPARSEATTN_FOR_DEVICE(MACRO)
/// MACRO(Space) for every memory space of this build.
#define SPARSEATTN_FOR_EACH_MEMORY(MACRO) MACRO(Kokkos::HostSpace) SPARSEATTN_FOR_DEVICE_MEMORY(MACRO)
