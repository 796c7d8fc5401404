#pragma once
/// \file
/// Messages between two ranks that travel while the ranks go on.

#include <cstdint>
#include <memory>
#include <vector>

#include "sparseattn/core/types.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/parallel/device_link.hpp"

namespace sparseattn {

/// Messages on their way over one communicator. Data stays in place and untouched until wait() returns. Messages from
/// one rank to another arrive in the order in which they were posted, if all of them carry the same tag. Arrays longer
/// than the communicator's chunk go in pieces, so that both sides must set the same chunk.
///
/// With a link between devices the messages are work on it, behind what follow() named, and nothing waits on the host
/// but wait() with a communicator that has patience. Links that several objects share see their messages in one order,
/// which must be the same on all ranks.
///
/// T is float, bf16 or double. Errors: InvalidArgument for bad arguments, Error when MPI reports one. An object that
/// goes while an exception is on its way leaves its messages behind: the job cannot go on.
class Transfers {
  public:
    explicit Transfers(const Communicator& communicator, std::shared_ptr<DeviceLink> link = nullptr);
    Transfers(const Transfers&) = delete;
    Transfers& operator=(const Transfers&) = delete;

    /// What is posted from now on leaves, and lands, behind the work that `exec` has by now. Waits for it without a
    /// link.
    template <class Exec>
    void follow(const Exec& exec, const char* label);
    /// Posts: sends `count` elements to rank `to`, which is another rank.
    template <class T>
    void send(const T* data, std::int64_t count, int to, int tag);
    /// Posts: receives `count` elements from rank `from`, which is another rank.
    template <class T>
    void receive(T* data, std::int64_t count, int from, int tag);
    /// What was posted goes on its way, if it is not yet.
    void start();
    /// Whether all messages started so far have left or arrived; does not wait, but lets MPI move them on.
    [[nodiscard]] bool done();
    /// Returns when all messages started so far have left or arrived; with a link and without patience, at once.
    void wait();
    /// Work put on `exec` from now on comes behind the messages of the last wait().
    template <class Exec>
    void join(const Exec& exec);

    /// Null: messages go through MPI.
    [[nodiscard]] DeviceLink* link() const { return link_.get(); }

    /// Bytes and messages handed over by send() since the object was made.
    [[nodiscard]] std::int64_t bytes_sent() const { return bytes_sent_; }
    [[nodiscard]] std::int64_t messages_sent() const { return messages_sent_; }

  private:
    void check(std::int64_t count, const char* name, int rank) const;

    Communicator communicator_;
    std::shared_ptr<DeviceLink> link_;
    std::unique_ptr<DeviceLink::Mark> mark_;  // behind the last messages on the link
    std::vector<MPI_Request> requests_;
    std::vector<int> peers_;  // the rank at the other end of each
    std::int64_t bytes_sent_ = 0;
    std::int64_t messages_sent_ = 0;
};

}  // namespace sparseattn
