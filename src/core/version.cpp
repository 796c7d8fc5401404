#include "sparseattn/core/version.hpp"

#include <sstream>

#include "build_settings.hpp"
#include "git_version.hpp"
#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn {

std::string version() {
    return SPARSEATTN_VERSION;
}

std::string version_with_commit() {
    const std::string commit = SPARSEATTN_GIT_COMMIT;
    return commit.empty() ? version() : version() + "+g" + commit;
}

std::string build_report() {
    std::ostringstream out;
    out << "SparseAttn: " << version_with_commit() << '\n';
#if defined(__clang__)
    out << "compiler: Clang " << __clang_major__ << '.' << __clang_minor__ << '.' << __clang_patchlevel__ << '\n';
#else
    out << "compiler: GCC " << __VERSION__ << '\n';
#endif
    out << "build type: " << SPARSEATTN_BUILD_TYPE << '\n' << "flags: " << SPARSEATTN_FLAGS << '\n';
    out << "Kokkos: " << KOKKOS_VERSION / 10000 << '.' << KOKKOS_VERSION / 100 % 100 << '.' << KOKKOS_VERSION % 100
        << ", default space " << Kokkos::DefaultExecutionSpace::name() << ", host space "
        << Kokkos::DefaultHostExecutionSpace::name() << '\n';
    return out.str();
}

std::string missing_device() {
#if defined(KOKKOS_ENABLE_CUDA)
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    if (devices == 0) return "no CUDA device";
#endif
    return "";
}

}  // namespace sparseattn
