# CMake's CUDA language for cuda/: Kokkos' compiler wrapper serves C++, nvcc itself needs the plain compiler behind it.
if(NOT CMAKE_CUDA_HOST_COMPILER)
  find_program(host_compiler NAMES "$ENV{NVCC_WRAPPER_DEFAULT_COMPILER}" g++ c++ NO_CACHE REQUIRED)
  set(CMAKE_CUDA_HOST_COMPILER "${host_compiler}")
endif()
# Hopper sources need their target by name.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
endif()
enable_language(CUDA)
find_package(CUDAToolkit 12.5 REQUIRED)
# Messages between the devices of ranks; without it they go through host memory.
option(SPARSEATTN_NCCL "Link devices of ranks with NCCL where it is found" ON)
if(SPARSEATTN_NCCL)
  find_package(NCCL)
endif()
