# What the library links. Kokkos: the user's own first, then what scripts/bootstrap left under .deps/.
if(PROJECT_IS_TOP_LEVEL)
  list(APPEND CMAKE_PREFIX_PATH "${PROJECT_SOURCE_DIR}/.deps/cpu")
endif()

find_package(Kokkos 3.4.01 REQUIRED CONFIG)
find_package(KokkosKernels REQUIRED CONFIG)
find_package(MPI 3.1 REQUIRED COMPONENTS C)
# mpi.h must not pull in the C++ bindings, which need a library of their own.
set_property(TARGET MPI::MPI_C APPEND PROPERTY INTERFACE_COMPILE_DEFINITIONS OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
find_package(HDF5 1.10 REQUIRED COMPONENTS C)
find_package(fmt REQUIRED CONFIG)
find_package(spdlog REQUIRED CONFIG)
find_package(nlohmann_json REQUIRED CONFIG)
find_package(CLI11 REQUIRED CONFIG)
find_package(tomlplusplus REQUIRED CONFIG)
find_package(PkgConfig QUIET)

# xxHash and Random123 ship no CMake package.
find_path(SPARSEATTN_RANDOM123_INCLUDE Random123/philox.h REQUIRED)
find_path(SPARSEATTN_XXHASH_INCLUDE xxhash.h REQUIRED)
find_library(SPARSEATTN_XXHASH_LIBRARY xxhash REQUIRED)
mark_as_advanced(SPARSEATTN_RANDOM123_INCLUDE SPARSEATTN_XXHASH_INCLUDE SPARSEATTN_XXHASH_LIBRARY)

message(STATUS "SparseAttn: Kokkos ${Kokkos_VERSION} (${Kokkos_DEVICES}) from ${Kokkos_DIR}")
