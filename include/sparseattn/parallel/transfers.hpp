#pragma once
/// \file
/// Messages between two ranks that travel while the ranks go on.

#include <cstdint>
#include <vector>

#include "sparseattn/parallel/communicator.hpp"

namespace sparseattn {

/// Messages on their way over one communicator. Data stays in place and untouched until wait() returns. Messages from
/// one rank to another arrive in the order in which they were posted, if all of them carry the same tag. Arrays longer
/// than the communicator's chunk go in pieces, so that both sides must set the same chunk.
///
/// T is float, bf16 or double. Errors: InvalidArgument for bad arguments, Error when MPI reports one. An object that
/// goes while an exception is on its way leaves its messages behind: the job cannot go on.
class Transfers {
  public:
    explicit Transfers(const Communicator& communicator) : communicator_(communicator) {}
    Transfers(const Transfers&) = delete;
    Transfers& operator=(const Transfers&) = delete;

    /// Starts to send `count` elements to rank `to`, which is another rank.
    template <class T>
    void send(const T* data, std::int64_t count, int to, int tag);
    /// Starts to receive `count` elements from rank `from`, which is another rank.
    template <class T>
    void receive(T* data, std::int64_t count, int from, int tag);
    /// Whether all messages posted so far have left or arrived; does not wait, but lets MPI move them on.
    [[nodiscard]] bool done();
    /// Returns when all messages posted so far have left or arrived.
    void wait();

    /// Bytes and messages handed to MPI by send() since the object was made.
    [[nodiscard]] std::int64_t bytes_sent() const { return bytes_sent_; }
    [[nodiscard]] std::int64_t messages_sent() const { return messages_sent_; }

  private:
    void check(std::int64_t count, const char* name, int rank) const;

    Communicator communicator_;
    std::vector<MPI_Request> requests_;
    std::vector<int> peers_;  // the rank at the other end of each
    std::int64_t bytes_sent_ = 0;
    std::int64_t messages_sent_ = 0;
};

}  // namespace sparseattn
