#include "sparseattn/app/environment.hpp"

#include <hdf5.h>
#include <mpi.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <sstream>
#include <thread>

#include "sparseattn/app/runtime.hpp"
#include "sparseattn/attention/attention.hpp"
#include "sparseattn/attention/coverage.hpp"
#include "sparseattn/core/kokkos_compat.hpp"
#include "sparseattn/core/version.hpp"
#include "sparseattn/parallel/device_link.hpp"

// OpenBLAS says what it is; other BLAS libraries leave these undefined.
extern "C" {
char* openblas_get_config() __attribute__((weak));
int openblas_get_num_threads() __attribute__((weak));
}

namespace sparseattn {
namespace {

std::string first_line(const std::string& text) {
    return text.substr(0, text.find_first_of("\n\0", 0, 2));
}

std::string mpi_library() {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "unknown";
    int major = 0;
    int minor = 0;
    MPI_Get_version(&major, &minor);
    std::ostringstream out;
    out << first_line(std::string(text, static_cast<std::size_t>(length))) << " (MPI " << major << '.' << minor << ')';
    return out.str();
}

std::string hdf5_library() {
    unsigned major = 0;
    unsigned minor = 0;
    unsigned release = 0;
    if (H5get_libversion(&major, &minor, &release) < 0) return "unknown";
    std::ostringstream out;
    out << major << '.' << minor << '.' << release;
    return out.str();
}

std::string blas_library() {
    if (openblas_get_config == nullptr) return "not linked into this program, or without a version call";
    std::ostringstream out;
    out << openblas_get_config();
    if (openblas_get_num_threads != nullptr) out << ", threads " << openblas_get_num_threads();
    return out.str();
}

}  // namespace

std::string environment_report() {
    const bool can_start = missing_device().empty();
    std::optional<KokkosGuard> kokkos;
    if (can_start) kokkos.emplace(0, nullptr);
    char host[256] = "unknown";
    gethostname(host, sizeof host - 1);
    const char* omp = std::getenv("OMP_NUM_THREADS");
    std::ostringstream out;
    out << build_report();
    if (!can_start) out << "device: none: " << missing_device() << '\n';
    out << "threads: ";
    if (can_start) out << concurrency(Kokkos::DefaultHostExecutionSpace()) << ' ';
    out << "(OMP_NUM_THREADS " << (omp == nullptr ? "not set" : omp) << ", processors "
        << std::thread::hardware_concurrency() << ")\n";
    out << "attention: " << first_line(attention_report()) << '\n';
    out << "attention kernels:\n" << attention_coverage();
    out << "MPI: " << mpi_library() << '\n';
    const std::string link = device_link_library();
    out << "links between devices: " << (link.empty() ? "not in this build" : link) << '\n';
    out << "HDF5: " << hdf5_library() << '\n';
    out << "BLAS: " << blas_library() << '\n';
    out << "host: " << host << '\n';
    return out.str();
}

}  // namespace sparseattn
