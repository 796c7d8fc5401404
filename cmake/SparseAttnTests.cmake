# sparseattn_test(NAME SOURCES files... [RANKS counts...] [THREADS n] [TIMEOUT s] [LINKS targets...] [LABELS ...] [HOST])
#
# A GoogleTest program with the main of tests/support. Without RANKS it runs once, outside MPI; with RANKS once per
# count under mpirun, as NAME.np<count>. HOST: it computes nothing on a device.

# sparseattn_use_device(tests...): ctest -j runs such tests one after the other where the library uses a device. Small
# kernels of several processes wait for each other's time slices there, which makes each process ten times slower.
function(sparseattn_use_device)
  if(SPARSEATTN_CUDA)
    set_tests_properties(${ARGN} PROPERTIES RESOURCE_LOCK device)
  endif()
endfunction()

set(SPARSEATTN_MPIRUN_FLAGS --oversubscribe --bind-to none CACHE STRING "Extra flags of mpirun in tests")
function(sparseattn_test name)
  cmake_parse_arguments(TEST "HOST" "THREADS;TIMEOUT" "SOURCES;RANKS;LINKS;LABELS" ${ARGN})
  if(NOT TEST_THREADS)
    set(TEST_THREADS 2)
  endif()
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 120)
  endif()
  if(SPARSEATTN_SANITIZE)
    math(EXPR TEST_TIMEOUT "3 * ${TEST_TIMEOUT}")
  endif()
  add_executable(${name} ${TEST_SOURCES})
  set_target_properties(${name} PROPERTIES UNITY_BUILD OFF) # sources of a test name their helpers alike
  target_link_libraries(${name} PRIVATE sparseattn_test_support sparseattn_flags ${TEST_LINKS})
  set(environment "OMP_NUM_THREADS=${TEST_THREADS};OMP_PROC_BIND=false;OMP_WAIT_POLICY=passive;${SPARSEATTN_TEST_ENVIRONMENT}")
  if(TEST_RANKS)
    foreach(ranks IN LISTS TEST_RANKS)
      list(APPEND tests ${name}.np${ranks})
      add_test(NAME ${name}.np${ranks}
               COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${SPARSEATTN_MPIRUN_FLAGS} $<TARGET_FILE:${name}>)
      set_tests_properties(${name}.np${ranks} PROPERTIES TIMEOUT ${TEST_TIMEOUT} LABELS "${TEST_LABELS}"
                           ENVIRONMENT "${environment};OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
    endforeach()
  else()
    set(tests ${name})
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${TEST_TIMEOUT} LABELS "${TEST_LABELS}" ENVIRONMENT "${environment}")
  endif()
  if(NOT TEST_HOST)
    sparseattn_use_device(${tests})
  endif()
endfunction()
