#pragma once
// ShardExchange where the devices of the ranks are linked: all of an operation is work on the link, started at once.

#include <cstdint>
#include <memory>

#include "sparseattn/core/types.hpp"
#include "sparseattn/parallel/flat_shards.hpp"
#include "sparseattn/parallel/transfers.hpp"

namespace sparseattn::detail {

// own[i] <- x_0[i] + x_1[i] + ... for i < count, where x_rank is `own` and the others stand one behind the other,
// `pitch` apart.
template <class Exec>
void add_in_rank_order(const Exec& exec, float* own, const float* others, std::int64_t pitch, int rank, int ranks,
                       std::int64_t count) {
    Kokkos::parallel_for(
        "SparseAttn::add_in_rank_order", Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, 0, count),
        KOKKOS_LAMBDA(std::int64_t i) {
            float sum = rank == 0 ? own[i] : others[i];
            for (int r = 1; r < ranks; ++r) {
                sum += r == rank ? own[i] : others[(r < rank ? r : r - 1) * pitch + i];
            }
            own[i] = sum;
        });
}

// Members as those of ShardExchange.
class LinkedShards {
  public:
    using Exec = DeviceLink::Exec;
    using Data = Span1<float, Exec::memory_space>;

    // Pieces of at most `round` elements of a share are summed at a time; 0: what buffer_bytes() counts on.
    LinkedShards(const Exec& exec, const Communicator& communicator, std::shared_ptr<DeviceLink> link,
                 FlatShards shards, std::int64_t round);
    void start_sum(const Data& data, int b);
    void start_gather(const Data& data, int b);
    void finish();
    [[nodiscard]] std::int64_t bytes_sent() const { return messages_.bytes_sent(); }
    [[nodiscard]] static std::int64_t buffer_bytes(std::int64_t largest_share, int ranks);

  private:
    // post(another rank) for all of them, each rank beginning with its right neighbour; then the messages start.
    template <class Post>
    void exchange(const Post& post);

    Exec exec_;
    int rank_, ranks_;
    FlatShards shards_;
    Transfers messages_;
    std::int64_t round_;
    Array1<float, Exec::memory_space> received_;  // [other ranks, round]
};

}  // namespace sparseattn::detail
