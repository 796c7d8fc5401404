#pragma once
/// \file
/// Reduce-scatter and all-gather of a flat buffer's buckets, beside the computation.

#include <array>
#include <cstdint>
#include <deque>
#include <memory>

#include "sparseattn/core/types.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/parallel/detail/linked_shards.hpp"
#include "sparseattn/parallel/flat_shards.hpp"
#include "sparseattn/parallel/message_path.hpp"
#include "sparseattn/parallel/transfers.hpp"

namespace sparseattn {

/// Moves buckets of flat float buffers [shards.total()] in memory of `Exec` between the ranks. start_*() returns at
/// once; the messages move on in progress() and finish(). A bucket goes in rounds of at most `round` elements per rank,
/// two rounds at a time, which bounds the memory for messages under way.
///
/// Sums are formed in the order of the ranks, whatever order the messages come in: the same bits from run to run. Each
/// rank sends (R - 1) / R of a bucket, for either operation. Memory of a device goes through host memory, where sums
/// are formed too; or over links between the devices, where all of an operation is work in the order of the link,
/// started at once, and the host waits in finish() alone, to lose patience with absent ranks.
///
/// All ranks start the same operations in the same order (collective); the buffers must stay untouched until finish().
/// Errors: Error when MPI or NCCL reports one, or a rank does not come within the communicator's patience.
template <class Exec>
class ShardExchange {
  public:
    using Mem = typename Exec::memory_space;

    /// Of the paths of device memory `linked` uses links; the others go through host memory. `round` 0: what suits the
    /// path. Collective.
    ShardExchange(const Exec& exec, const Communicator& communicator, FlatShards shards,
                  MessagePath messages = MessagePath::staged, std::int64_t round = 0);
    [[nodiscard]] const FlatShards& shards() const { return shards_; }

    /// In the end this rank's share of bucket `b` of `data` holds the sum over the ranks; the other shares are as they
    /// were. Comes behind the work of `exec`, which writes the bucket.
    void start_sum(const Span1<float, Mem>& data, int b) { start(Kind::sum, data, b); }
    /// In the end bucket `b` of `data` holds every rank's share. Comes behind the work of `exec`.
    void start_gather(const Span1<float, Mem>& data, int b) { start(Kind::gather, data, b); }
    /// Completes what has arrived and sends what may follow; does not wait.
    void progress();
    /// Returns when everything that was started is done, for work on `exec`.
    void finish();

    /// Bytes sent by this rank so far.
    [[nodiscard]] std::int64_t bytes_sent() const {
        return linked_ ? linked_->bytes_sent() : slots_[0].messages.bytes_sent() + slots_[1].messages.bytes_sent();
    }
    /// Bytes that the object holds for messages under way, given the largest share of any bucket.
    [[nodiscard]] static std::int64_t buffer_bytes(std::int64_t largest_share, int ranks, MessagePath messages);

  private:
    enum class Kind { sum, gather };
    static constexpr int slots = 2;
    static constexpr std::int64_t default_round = std::int64_t{1} << 20;
#if defined(KOKKOS_ENABLE_CUDA)
    using HostFloats = Array1<float, Kokkos::CudaHostPinnedSpace>;  // copies from and to a device run at full speed
#else
    using HostFloats = Array1<float, Kokkos::HostSpace>;
#endif

    struct Round {
        Kind kind;
        Span1<float, Mem> data;
        int bucket;
        std::int64_t offset;  // inside every share
    };
    struct Slot {
        explicit Slot(const Communicator& communicator) : messages(communicator) {}
        HostFloats received;  // [other ranks, round], in the order of ranks; sums, and devices
        HostFloats staged;    // [ranks, round]: what is sent from a device
        Transfers messages;   // of the round in it
    };

    void start(Kind kind, const Span1<float, Mem>& data, int b);
    void post();
    void complete(const Round& round, Slot& slot);
    void send(const Round& round, Slot& slot);
    void receive(const Round& round, Slot& slot);
    [[nodiscard]] IndexRange piece(const Round& round, int rank) const;
    [[nodiscard]] float* received_from(const Slot& slot, int rank) const;

    Exec exec_;
    Communicator communicator_;
    FlatShards shards_;
    std::unique_ptr<detail::LinkedShards> linked_;  // then the rest is not used
    std::int64_t round_ = 0;
    std::deque<Round> waiting_;
    std::deque<Round> moving_;  // the k-th of them uses slot (first_ + k) mod slots
    std::array<Slot, slots> slots_;
    int first_ = 0;
};

}  // namespace sparseattn
