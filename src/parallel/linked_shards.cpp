#include "sparseattn/parallel/detail/linked_shards.hpp"

#include <algorithm>
#include <utility>

namespace sparseattn::detail {
namespace {

constexpr int sum_tag = 2, gather_tag = 3;

// Large messages fill the links; 64 MiB in all bound what is held.
std::int64_t round_of(std::int64_t wanted, std::int64_t largest_share, int ranks) {
    if (wanted == 0) wanted = (std::int64_t{1} << 24) / std::max(ranks - 1, 1);
    return std::clamp<std::int64_t>(largest_share, 1, std::max<std::int64_t>(wanted, 1));
}

}  // namespace

LinkedShards::LinkedShards(const Exec& exec, const Communicator& communicator, std::shared_ptr<DeviceLink> link,
                           FlatShards shards, std::int64_t round)
    : exec_(exec),
      rank_(communicator.rank()),
      ranks_(communicator.size()),
      shards_(std::move(shards)),
      messages_(communicator, std::move(link)),
      round_(round_of(round, shards_.largest_share(), ranks_)),
      received_(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::shards.received"),
                static_cast<std::size_t>((ranks_ - 1) * round_)) {}

std::int64_t LinkedShards::buffer_bytes(std::int64_t largest_share, int ranks) {
    return (ranks - 1) * round_of(0, largest_share, ranks) * static_cast<std::int64_t>(sizeof(float));
}

template <class Post>
void LinkedShards::exchange(const Post& post) {
    for (int step = 1; step < ranks_; ++step) post((rank_ + step) % ranks_);
    messages_.start();
}

void LinkedShards::start_sum(const Data& data, int b) {
    messages_.follow(exec_, "SparseAttn::shards.start");
    const std::int64_t longest = shards_.share(b, 0).count();
    for (std::int64_t offset = 0; offset < longest; offset += round_) {
        const auto piece = [&](int rank) {
            const IndexRange share = shards_.share(b, rank);
            const std::int64_t begin = std::min(share.begin + offset, share.end);
            return IndexRange{begin, std::min(begin + round_, share.end)};
        };
        const IndexRange mine = piece(rank_);
        exchange([&](int other) {
            const IndexRange theirs = piece(other);
            if (theirs.count() > 0) messages_.send(data.data() + theirs.begin, theirs.count(), other, sum_tag);
            if (mine.count() == 0) return;
            float* to = received_.data() + (other < rank_ ? other : other - 1) * round_;
            messages_.receive(to, mine.count(), other, sum_tag);
        });
        add_in_rank_order(messages_.link()->exec(), data.data() + mine.begin, received_.data(), round_, rank_, ranks_,
                          mine.count());
    }
}

void LinkedShards::start_gather(const Data& data, int b) {
    messages_.follow(exec_, "SparseAttn::shards.start");
    exchange([&](int other) {
        const IndexRange mine = shards_.share(b, rank_), theirs = shards_.share(b, other);
        if (mine.count() > 0) messages_.send(data.data() + mine.begin, mine.count(), other, gather_tag);
        if (theirs.count() > 0) messages_.receive(data.data() + theirs.begin, theirs.count(), other, gather_tag);
    });
}

void LinkedShards::finish() {
    messages_.start();  // nothing more, but the end of the last sum is now part of what is waited for
    messages_.wait();
    messages_.join(exec_);
}

}  // namespace sparseattn::detail
