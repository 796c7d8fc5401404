#include "sparseattn/app/runtime.hpp"

#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/kokkos_compat.hpp"
#include "sparseattn/core/version.hpp"

namespace sparseattn {
namespace {

bool mpi_initialised() {
    int flag = 0;
    return MPI_Initialized(&flag) == MPI_SUCCESS && flag != 0;
}

bool mpi_finalised() {
    int flag = 0;
    return MPI_Finalized(&flag) == MPI_SUCCESS && flag != 0;
}

/// The first of the variables that is set, as a number.
int from_environment(std::initializer_list<const char*> names, int otherwise) {
    for (const char* name : names) {
        if (const char* value = std::getenv(name)) return std::atoi(value);
    }
    return otherwise;
}

bool mpi_is_off() {
    const char* value = std::getenv("SPARSEATTN_MPI");
    if (value == nullptr || std::strcmp(value, "on") == 0) return false;
    if (std::strcmp(value, "off") == 0) return true;
    throw DeckError(concat("environment: SPARSEATTN_MPI is ", value, ", must be on or off"));
}

Communicator make_world() {
    Communicator world = mpi_initialised() && !mpi_finalised() ? Communicator::world() : Communicator();
    if (world.size() == 1 && launcher_size() > 1) {
        throw Error(concat("the launcher started ", launcher_size(), " processes, but MPI ",
                           mpi_initialised()
                               ? "sees each as a job of its own: launcher and library must be the same MPI"
                               : "is switched off by SPARSEATTN_MPI, must be on"));
    }
    return world;
}

/// Whether the command line or the environment tells Kokkos which device to take.
[[maybe_unused]] bool chooses_device(const std::vector<std::string>& arguments) {
    for (const char* name : {"KOKKOS_DEVICE_ID", "KOKKOS_NUM_DEVICES", "KOKKOS_MAP_DEVICE_ID_BY"}) {
        if (std::getenv(name) != nullptr) return true;
    }
    return std::any_of(arguments.begin(), arguments.end(), [](const std::string& argument) {
        return argument.find("device") != std::string::npos;  // in every spelling of every version
    });
}

/// Unless they are told otherwise, the ranks of a node take its devices in turn: older versions of Kokkos would give
/// all of them the first. Collective.
void choose_device([[maybe_unused]] std::vector<std::string>& arguments) {
#if defined(KOKKOS_ENABLE_CUDA)
    int rank = 0, count = 0;
    if (mpi_initialised() && !mpi_finalised()) {
        MPI_Comm node = MPI_COMM_NULL;
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
        MPI_Comm_rank(node, &rank);
        MPI_Comm_free(&node);
    }
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 2) return;  // Kokkos says what is wrong
    if (!chooses_device(arguments)) arguments.push_back(concat("--kokkos-device-id=", rank % count));
#endif
}

}  // namespace

int launcher_rank() {
    return from_environment({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"}, 0);
}

int launcher_size() {
    return std::max(1, from_environment({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}, 1));
}

Runtime::Mpi::Mpi() : exceptions_(std::uncaught_exceptions()) {
    if (mpi_initialised() || mpi_is_off()) return;
    int provided = MPI_THREAD_SINGLE;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    started_ = true;
    if (provided < MPI_THREAD_FUNNELED) {
        throw Error("this MPI library does not work in programs with threads, must give MPI_THREAD_FUNNELED");
    }
}

Runtime::Mpi::~Mpi() {
    if (started_ && std::uncaught_exceptions() <= exceptions_ && !mpi_finalised()) MPI_Finalize();
}

KokkosGuard::KokkosGuard(int argc, const char* const* argv) : started_(!Kokkos::is_initialized()) {
    if (!started_) return;
    if (const std::string missing = missing_device(); !missing.empty()) {
        throw Error(concat("this build runs on CUDA devices: ", missing));
    }
    // Kokkos takes its options out of the list it gets: give it a copy.
    // Where threads run is the launcher's choice; saying so keeps Kokkos from warning about it in every run.
    setenv("OMP_PROC_BIND", "false", 0);
    std::vector<std::string> texts;
    for (int i = 1; i < argc; ++i) {
        if (std::string_view(argv[i]).substr(0, 9) == "--kokkos-") texts.emplace_back(argv[i]);
    }
    choose_device(texts);
    texts.insert(texts.begin(), argc > 0 ? argv[0] : "");
    std::vector<char*> pointers;
    for (std::string& text : texts) pointers.push_back(text.data());
    pointers.push_back(nullptr);
    int count = static_cast<int>(texts.size());
    Kokkos::initialize(count, pointers.data());
}

KokkosGuard::~KokkosGuard() {
    if (started_ && Kokkos::is_initialized()) Kokkos::finalize();
}

Runtime::Runtime(int argc, const char* const* argv) : kokkos_(argc, argv), world_(make_world()) {}

Runtime::~Runtime() = default;

}  // namespace sparseattn
