#include "sparseattn/parallel/shard_exchange.hpp"

#include <algorithm>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/profiling.hpp"

namespace sparseattn {
namespace {

int tag(bool sum) {
    return sum ? 2 : 3;
}

using HostSpan = Span1<float, Kokkos::HostSpace>;

template <class Mem>
Span1<float, Mem> range_of(const Span1<float, Mem>& data, const IndexRange& range) {
    return Span1<float, Mem>(data.data() + range.begin, static_cast<std::size_t>(range.count()));
}

[[maybe_unused]] HostSpan host_span(float* data, const IndexRange& range) {
    return HostSpan(data, static_cast<std::size_t>(range.count()));
}

}  // namespace

template <class Exec>
ShardExchange<Exec>::ShardExchange(const Exec& exec, const Communicator& communicator, FlatShards shards,
                                   MessagePath messages, std::int64_t round)
    : exec_(exec),
      communicator_(communicator.split(0, communicator.rank())),
      shards_(std::move(shards)),
      slots_{Slot(communicator_), Slot(communicator_)} {
    require(shards_.ranks() == communicator_.size(), "shards.ranks()", shards_.ranks(),
            concat("the communicator's ", communicator_.size()));
    require(round >= 0, "round", round, "at least 0");
    const std::int64_t ranks = communicator_.size();
    if (ranks == 1) return;
    if (message_path<Exec>(messages) == MessagePath::linked) {
        linked_ = std::make_unique<detail::LinkedShards>(exec_, communicator_, link_devices(communicator_, exec_),
                                                         shards_, round);
        return;
    }
    round_ = std::min(round > 0 ? round : default_round, std::max<std::int64_t>(shards_.largest_share(), 1));
    for (Slot& slot : slots_) {
        slot.received = HostFloats(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::shards.received"),
                                   (ranks - 1) * round_);
        if constexpr (!host_accessible<Mem>) {
            slot.staged = HostFloats(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::shards.staged"),
                                     ranks * round_);
        }
    }
}

template <class Exec>
std::int64_t ShardExchange<Exec>::buffer_bytes(std::int64_t largest_share, int ranks, MessagePath messages) {
    if (ranks == 1) return 0;
    if (message_path<Exec>(messages) == MessagePath::linked) {
        return detail::LinkedShards::buffer_bytes(largest_share, ranks);
    }
    const std::int64_t floats = (ranks - 1) + (host_accessible<Mem> ? 0 : ranks);
    return slots * floats * std::min(default_round, largest_share) * static_cast<std::int64_t>(sizeof(float));
}

template <class Exec>
void ShardExchange<Exec>::start(Kind kind, const Span1<float, Mem>& data, int b) {
    require(static_cast<std::int64_t>(data.extent(0)) == shards_.total(), "data.extent(0)", data.extent(0),
            concat(shards_.total()));
    require(b >= 0 && b < shards_.buckets(), "bucket", b, concat("from 0 to ", shards_.buckets() - 1));
    if (communicator_.size() == 1) return;
    if (linked_) return kind == Kind::sum ? linked_->start_sum(data, b) : linked_->start_gather(data, b);
    // Messages leave host memory as it is; what a device has computed is copied behind its last writer.
    if constexpr (host_accessible<Mem>) fence(exec_, "SparseAttn::shards.start");
    // The first rank's share is the longest.
    for (std::int64_t offset = 0; offset < shards_.share(b, 0).count(); offset += round_) {
        waiting_.push_back({kind, data, b, offset});
    }
    progress();
}

template <class Exec>
void ShardExchange<Exec>::progress() {
    for (;;) {
        post();
        if (moving_.empty()) return;
        Slot& slot = slots_[first_];
        if (!slot.messages.done()) return;
        complete(moving_.front(), slot);
    }
}

template <class Exec>
void ShardExchange<Exec>::finish() {
    if (communicator_.size() == 1) return;
    const Region region("SparseAttn::shards.finish");
    if (linked_) return linked_->finish();
    for (post(); !moving_.empty(); post()) {
        Slot& slot = slots_[first_];
        slot.messages.wait();
        complete(moving_.front(), slot);
    }
    if constexpr (!host_accessible<Mem>) fence(exec_, "SparseAttn::shards.finish");
}

// Starts rounds as long as there is a free slot.
template <class Exec>
void ShardExchange<Exec>::post() {
    while (!waiting_.empty() && moving_.size() < slots) {
        Slot& slot = slots_[(first_ + static_cast<int>(moving_.size())) % slots];
        moving_.push_back(waiting_.front());
        waiting_.pop_front();
        receive(moving_.back(), slot);
        send(moving_.back(), slot);
    }
}

template <class Exec>
IndexRange ShardExchange<Exec>::piece(const Round& round, int rank) const {
    const IndexRange share = shards_.share(round.bucket, rank);
    const std::int64_t begin = std::min(share.begin + round.offset, share.end);
    return {begin, std::min(begin + round_, share.end)};
}

template <class Exec>
float* ShardExchange<Exec>::received_from(const Slot& slot, int rank) const {
    return slot.received.data() + (rank < communicator_.rank() ? rank : rank - 1) * round_;
}

template <class Exec>
void ShardExchange<Exec>::receive(const Round& round, Slot& slot) {
    const int me = communicator_.rank();
    const int ranks = communicator_.size();
    const bool in_place = host_accessible<Mem> && round.kind == Kind::gather;
    for (int step = 1; step < ranks; ++step) {
        const int from = (me + ranks - step) % ranks;
        const IndexRange range = piece(round, round.kind == Kind::sum ? me : from);
        if (range.count() == 0) continue;
        float* to = in_place ? round.data.data() + range.begin : received_from(slot, from);
        slot.messages.receive(to, range.count(), from, tag(round.kind == Kind::sum));
    }
}

template <class Exec>
void ShardExchange<Exec>::send(const Round& round, Slot& slot) {
    const int me = communicator_.rank();
    const int ranks = communicator_.size();
    const auto staged = [&](int rank) { return slot.staged.data() + rank * round_; };
    if constexpr (!host_accessible<Mem>) {
        for (int rank = 0; rank < ranks; ++rank) {
            if (round.kind == Kind::gather && rank != me) continue;
            const IndexRange range = piece(round, rank);
            Kokkos::deep_copy(exec_, host_span(staged(rank), range), range_of(round.data, range));
        }
        fence(exec_, "SparseAttn::shards.stage");
    }
    // Each rank begins with its right neighbour, so that no rank is everyone's first.
    for (int step = 1; step < ranks; ++step) {
        const int to = (me + step) % ranks;
        const int whose = round.kind == Kind::sum ? to : me;
        const IndexRange range = piece(round, whose);
        if (range.count() == 0) continue;
        const float* from = host_accessible<Mem> ? round.data.data() + range.begin : staged(whose);
        slot.messages.send(from, range.count(), to, tag(round.kind == Kind::sum));
    }
}

template <class Exec>
void ShardExchange<Exec>::complete(const Round& round, Slot& slot) {
    const int me = communicator_.rank();
    const int ranks = communicator_.size();
    const IndexRange mine = piece(round, me);
    if (round.kind == Kind::sum) {
        float* own = round.data.data() + mine.begin;
        if constexpr (!host_accessible<Mem>) own = slot.staged.data() + me * round_;
        const Kokkos::DefaultHostExecutionSpace host;
        detail::add_in_rank_order(host, own, slot.received.data(), round_, me, ranks, mine.count());
        fence(host, "SparseAttn::add_in_rank_order");
        if constexpr (!host_accessible<Mem>) {
            Kokkos::deep_copy(exec_, range_of(round.data, mine), host_span(own, mine));
            fence(exec_, "SparseAttn::shards.unstage");
        }
    } else if constexpr (!host_accessible<Mem>) {
        for (int rank = 0; rank < ranks; ++rank) {
            if (rank == me) continue;
            const IndexRange range = piece(round, rank);
            Kokkos::deep_copy(exec_, range_of(round.data, range), host_span(received_from(slot, rank), range));
        }
        fence(exec_, "SparseAttn::shards.unstage");
    }
    moving_.pop_front();
    first_ = (first_ + 1) % slots;
}

template class ShardExchange<Kokkos::DefaultExecutionSpace>;

}  // namespace sparseattn
