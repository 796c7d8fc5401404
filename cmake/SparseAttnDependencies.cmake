# What the library links; the installed package file asks for the public ones again. Kokkos: the user's own first, then
# what scripts/bootstrap left under .deps/.
if(PROJECT_IS_TOP_LEVEL)
  list(APPEND CMAKE_PREFIX_PATH "${PROJECT_SOURCE_DIR}/.deps/cpu")
endif()

find_package(Kokkos 3.4.01 REQUIRED CONFIG)
find_package(KokkosKernels REQUIRED CONFIG)
find_package(MPI 3.1 REQUIRED COMPONENTS C)
find_package(HDF5 1.10 REQUIRED COMPONENTS C)
find_package(nlohmann_json REQUIRED CONFIG)
find_package(spdlog REQUIRED CONFIG)
find_package(tomlplusplus REQUIRED CONFIG)
find_package(xxHash REQUIRED)
find_package(Random123 REQUIRED)
find_package(CLI11 REQUIRED CONFIG) # headers used inside the library and its programs only

# mpi.h must not pull in the C++ bindings, which need a library of their own.
set_property(TARGET MPI::MPI_C APPEND PROPERTY INTERFACE_COMPILE_DEFINITIONS OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)

message(STATUS "SparseAttn: Kokkos ${Kokkos_VERSION} (${Kokkos_DEVICES}) from ${Kokkos_DIR}")
