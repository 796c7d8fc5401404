# sparseattn_room(NAME SOURCES files... [LINKS targets...] [HEADERS targets...])
#
# One object library per room of src/: its sources, the libraries that it links (passed on to users of the library) and
# the header-only ones that only its sources see. Rooms include each other's headers only downward; tests/architecture
# checks that.
#
# In a unity build (CMAKE_UNITY_BUILD: several sources compiled as one, which reads Kokkos' headers once for all of them)
# each source has these macros to itself.
set(SPARSEATTN_OWN_MACROS "")
foreach(suffix IN ITEMS "" _ARGUMENTS _ASSIGN _EXEC _MEMORY _T _TYPE)
  string(APPEND SPARSEATTN_OWN_MACROS "#undef SPARSEATTN_INSTANTIATE${suffix}\n")
endforeach()
function(sparseattn_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;LINKS;HEADERS" ${ARGN})
  add_library(sparseattn_${name} OBJECT ${ROOM_SOURCES})
  target_include_directories(sparseattn_${name} PUBLIC "${PROJECT_SOURCE_DIR}/include")
  target_link_libraries(sparseattn_${name} PUBLIC Kokkos::kokkos Random123::Random123 ${ROOM_LINKS}
                                           PRIVATE sparseattn_flags ${ROOM_HEADERS})
  set_target_properties(sparseattn_${name} PROPERTIES UNITY_BUILD_CODE_BEFORE_INCLUDE "${SPARSEATTN_OWN_MACROS}")
  set_property(GLOBAL APPEND PROPERTY SPARSEATTN_ROOMS sparseattn_${name})
  set_property(GLOBAL APPEND PROPERTY SPARSEATTN_LINKS Kokkos::kokkos Random123::Random123 ${ROOM_LINKS})
endfunction()
