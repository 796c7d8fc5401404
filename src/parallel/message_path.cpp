#include "sparseattn/parallel/message_path.hpp"

#include <mpi.h>
#if defined(OPEN_MPI)
#include <mpi-ext.h>
#endif

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn {
bool mpi_is_gpu_aware() {
#if defined(OPEN_MPI) && defined(MPIX_CUDA_AWARE_SUPPORT)
    return MPIX_Query_cuda_support() == 1;
#else
    return false;
#endif
}

template <class Exec>
MessagePath message_path(MessagePath for_devices) {
    return host_accessible<Exec> ? MessagePath::direct : for_devices;
}

MessageChoice choose_message_path(const Communicator& world, bool allow_link, bool allow_gpu_aware) {
    using Exec = Kokkos::DefaultExecutionSpace;
    if (host_accessible<Exec>) return {MessagePath::direct, "messages: host memory, MPI"};
    const std::string obstacle = allow_link ? device_link_obstacle(world, Exec()) : "switched off";
    if (obstacle.empty()) {
        return {MessagePath::linked, concat("messages: from device to device, ", device_link_library())};
    }
    if (allow_gpu_aware && mpi_is_gpu_aware()) {
        return {MessagePath::direct, concat("messages: attention: device memory, MPI; gradients and weights: through "
                                            "pinned host memory, MPI (links between devices: ",
                                            obstacle, ')')};
    }
    return {MessagePath::staged,
            concat("messages: through pinned host memory, MPI (links between devices: ", obstacle, ')')};
}

#define SPARSEATTN_INSTANTIATE(EXEC) template MessagePath message_path<EXEC>(MessagePath);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
