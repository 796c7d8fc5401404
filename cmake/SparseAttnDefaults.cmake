# Language level, build type and flags of a top-level build. Included projects keep their own.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

if(PROJECT_IS_TOP_LEVEL)
  find_program(SPARSEATTN_CCACHE ccache)
  mark_as_advanced(SPARSEATTN_CCACHE)
  if(SPARSEATTN_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${SPARSEATTN_CCACHE}")
  endif()
endif()

# Flags for the project's own sources; a target, so that users of the package never inherit them.
add_library(sparseattn_flags INTERFACE)
target_compile_options(sparseattn_flags INTERFACE -Wall -Wextra)
if(SPARSEATTN_WERROR)
  target_compile_options(sparseattn_flags INTERFACE -Werror)
endif()
# GCC takes all but the first source of a unity build for headers, which should not have local types.
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(sparseattn_flags INTERFACE -Wno-subobject-linkage)
endif()
if(SPARSEATTN_NATIVE)
  target_compile_options(sparseattn_flags INTERFACE -march=native)
endif()
# Sums in kernels may be vectorised; NaN and infinity keep their meaning (the numerical guards depend on them).
target_compile_options(sparseattn_flags INTERFACE -fno-math-errno -fno-trapping-math)
if(SPARSEATTN_SANITIZE)
  target_compile_options(sparseattn_flags INTERFACE -fsanitize=${SPARSEATTN_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(sparseattn_flags INTERFACE -fsanitize=${SPARSEATTN_SANITIZE})
  if(SPARSEATTN_SANITIZE MATCHES "undefined")
    target_compile_options(sparseattn_flags INTERFACE -fno-sanitize-recover=undefined)
  endif()
  # Two checks at every access, a third of the compile time, that do not see more than the address sanitizer.
  if(SPARSEATTN_SANITIZE MATCHES "address.*undefined|undefined.*address")
    target_compile_options(sparseattn_flags INTERFACE -fno-sanitize=null,object-size)
  endif()
endif()
