# sparseattn_room(NAME [SOURCES files...] [LINKS targets...])
#
# One object library per room of src/: its sources, its external libraries. Rooms include each other's headers only
# downward; tests/architecture checks that.
function(sparseattn_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;LINKS" ${ARGN})
  add_library(sparseattn_${name} OBJECT ${ROOM_SOURCES})
  target_include_directories(sparseattn_${name} PUBLIC "${PROJECT_SOURCE_DIR}/include")
  target_include_directories(sparseattn_${name} SYSTEM PUBLIC "${SPARSEATTN_RANDOM123_INCLUDE}")
  target_link_libraries(sparseattn_${name} PUBLIC Kokkos::kokkos ${ROOM_LINKS} PRIVATE sparseattn_flags)
  set_property(GLOBAL APPEND PROPERTY SPARSEATTN_ROOMS sparseattn_${name})
endfunction()
