#pragma once
/// \file
/// Messages from device memory to device memory, in the order of a stream.

#include <Kokkos_Core.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "sparseattn/parallel/communicator.hpp"

namespace sparseattn {

/// One rank's end of the links between the devices of a communicator's ranks, over NCCL. Messages are work on an
/// execution-space instance of the link's own: the host neither waits for data that is to be sent nor for data that
/// comes, and other work may be put between them. Messages between two ranks meet in the order in which both post them.
///
/// Members throw Error when NCCL or CUDA reports one. An object that goes while an exception is on its way gives the
/// link up instead of ending it in order, which would need the other ranks.
class DeviceLink {
  public:
    using Exec = Kokkos::DefaultExecutionSpace;

    /// A point in the order of the link's work.
    class Mark {
      public:
        virtual ~Mark() = default;
    };

    virtual ~DeviceLink() = default;

    /// The instance that messages are work of.
    [[nodiscard]] virtual const Exec& exec() const = 0;
    /// The link's work from now on comes behind the work that `exec` has by now.
    virtual void follow(const Exec& exec) = 0;

    /// Posts a message of device memory to (from) another rank; posted messages travel together after start().
    virtual void send(const void* data, std::int64_t bytes, int to) = 0;
    virtual void receive(void* data, std::int64_t bytes, int from) = 0;
    virtual void start() = 0;

    /// A mark at the end of no work; place() moves it behind the link's work so far.
    [[nodiscard]] virtual std::unique_ptr<Mark> make_mark() = 0;
    virtual void place(Mark& mark) = 0;
    /// Whether the work before the mark is done.
    [[nodiscard]] virtual bool passed(const Mark& mark) = 0;
    /// Waits for the work before the mark for at most `patience` seconds, 0: for ever. An Error that names `call` then.
    virtual void wait(const Mark& mark, double patience, const char* call) = 0;
    /// Work of `exec` from now on comes behind the mark.
    virtual void join(const Exec& exec, const Mark& mark) = 0;
};

/// "NCCL 2.28.3"; empty where the build has no links.
[[nodiscard]] std::string device_link_library();

/// Why the devices of `communicator`'s ranks cannot be linked, the same text on all of them; empty: they can.
/// Collective.
[[nodiscard]] std::string device_link_obstacle(const Communicator& communicator, const DeviceLink::Exec& exec);

/// Links the devices. Errors: NotCompiled without NCCL, Error when NCCL reports one. Collective.
[[nodiscard]] std::shared_ptr<DeviceLink> link_devices(const Communicator& communicator, const DeviceLink::Exec& exec);

}  // namespace sparseattn
