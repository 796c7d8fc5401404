#pragma once
/// \file
/// How data in device memory travels between ranks.

#include <string>

#include "sparseattn/parallel/device_link.hpp"

namespace sparseattn {

/// What carries messages.
enum class MessagePath {
    direct,  // MPI, from and to where the data is: host memory, or device memory if the library takes it
    staged,  // MPI, from device memory through buffers in pinned host memory
    linked,  // from device to device without the host (DeviceLink); every rank has a device of its own
};

/// Whether the MPI library says that it takes pointers to device memory.
[[nodiscard]] bool mpi_is_gpu_aware();

/// `direct` for memory that the host can read, `for_devices` for other.
template <class Exec>
[[nodiscard]] MessagePath message_path(MessagePath for_devices);

/// A choice, and one line for reports.
struct MessageChoice {
    MessagePath path = MessagePath::direct;
    std::string description;
};

/// The fastest path for data of the default execution space between the ranks of `world` among those that are there and
/// allowed. Collective.
[[nodiscard]] MessageChoice choose_message_path(const Communicator& world, bool allow_link, bool allow_gpu_aware);

}  // namespace sparseattn
