# Library, headers, programs, decks and the CMake package.
include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/SparseAttn")

install(TARGETS sparseattn EXPORT SparseAttnTargets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/sparseattn" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
get_property(programs GLOBAL PROPERTY SPARSEATTN_APPS)
if(programs)
  install(TARGETS ${programs} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
install(DIRECTORY "${PROJECT_SOURCE_DIR}/inputs" DESTINATION "${CMAKE_INSTALL_DATADIR}/sparseattn" OPTIONAL)

install(EXPORT SparseAttnTargets NAMESPACE SparseAttn:: DESTINATION "${package_dir}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/SparseAttnConfig.cmake.in"
                              "${PROJECT_BINARY_DIR}/SparseAttnConfig.cmake" INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/SparseAttnConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/SparseAttnConfig.cmake" "${PROJECT_BINARY_DIR}/SparseAttnConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/FindxxHash.cmake" "${PROJECT_SOURCE_DIR}/cmake/FindRandom123.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/FindNCCL.cmake"
        DESTINATION "${package_dir}")
