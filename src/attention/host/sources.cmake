# The host attention: sets host_sources for src/attention/CMakeLists.txt.
#
# The vector kernels are compiled once per instruction set, whatever the build's own flags are, and chosen at run time.
# They are optimised in every build type: unoptimised they would be some fifty times slower and prove no more.
set(host_sources
  host/isa.cpp
  host/forward.cpp
  host/backward.cpp
  host/kernels_baseline.cpp)
set(kernel_flags -O3 -ffp-contract=fast -Wno-psabi)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND host_sources host/kernels_avx2.cpp host/kernels_avx512.cpp)
  set_source_files_properties(host/kernels_baseline.cpp PROPERTIES COMPILE_OPTIONS "${kernel_flags};-march=x86-64")
  set_source_files_properties(host/kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "${kernel_flags};-march=x86-64-v3")
  set_source_files_properties(host/kernels_avx512.cpp PROPERTIES COMPILE_OPTIONS "${kernel_flags};-march=x86-64-v4")
  set_source_files_properties(${host_sources} PROPERTIES
    COMPILE_DEFINITIONS SPARSEATTN_HOST_X86)
else()
  set_source_files_properties(host/kernels_baseline.cpp PROPERTIES COMPILE_OPTIONS "${kernel_flags}")
endif()
