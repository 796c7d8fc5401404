// Runs under mpirun: process grid, reduce-scatter and all-gather of buckets.
#include <gmock/gmock.h>

#include <memory>
#include <type_traits>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/parallel/process_grid.hpp"
#include "sparseattn/parallel/shard_exchange.hpp"
#include "support/links.hpp"

namespace sparseattn {
namespace {

using Exec = Kokkos::DefaultExecutionSpace;
using Mem = Exec::memory_space;

TEST(ProcessGrid, GroupsAreConsecutiveRanks) {
    const Communicator world = Communicator::world();
    for (int size = 1; size <= world.size(); ++size) {
        if (world.size() % size != 0) {
            try {
                const ProcessGrid grid(world, size);
                FAIL() << "accepted " << size;
            } catch (const InvalidArgument& error) {
                EXPECT_EQ(std::string(error.what()),
                          concat("seq_parallel_size is ", size, ", must be a divisor of the number of ranks, ",
                                 world.size()));
            }
            continue;
        }
        const ProcessGrid grid(world, size);
        EXPECT_EQ(grid.seq_parallel(), size);
        EXPECT_EQ(grid.data_parallel(), world.size() / size);
        EXPECT_EQ(grid.data_index(), world.rank() / size);
        EXPECT_EQ(grid.sequence_index(), world.rank() % size);
        EXPECT_EQ(grid.sequence().rank(), grid.sequence_index());
        // Every slot has one group, every token one rank of it.
        std::vector<std::int32_t> workers(7, 0);
        for (std::size_t slot = 0; slot < workers.size(); ++slot) {
            workers[slot] = grid.works_on(static_cast<std::int64_t>(slot)) ? 1 : 0;
        }
        std::int64_t tokens = grid.tokens(1001).count();
        world.all_reduce_sum(workers.data(), 7);
        grid.sequence().all_reduce_sum(&tokens, 1);
        EXPECT_THAT(workers, testing::Each(size));
        EXPECT_EQ(tokens, 1001);
    }
    EXPECT_THROW(ProcessGrid(world, 0), InvalidArgument);
}

TEST(AllReduce, AddsInTheOrderOfTheRanks) {
    Communicator world = Communicator::world();
    world.set_chunk(5);
    // Values whose sum depends on the order.
    const auto value = [](int rank, std::size_t i) {
        return static_cast<float>(RandomStream(3, RandomPurpose::test, static_cast<std::uint64_t>(rank)).normal(i)) *
               (rank % 2 == 0 ? 1e4F : 1.0F);
    };
    std::vector<float> mine(1000);
    for (std::size_t i = 0; i < mine.size(); ++i) mine[i] = value(world.rank(), i);
    world.all_reduce_sum(mine.data(), 1000);
    for (std::size_t i = 0; i < mine.size(); ++i) {
        float sum = value(0, i);
        for (int rank = 1; rank < world.size(); ++rank) sum += value(rank, i);
        ASSERT_EQ(mine[i], sum) << i;
    }
}

struct Layout {
    std::vector<std::int64_t> borders;
    std::int64_t round;
};

class Sharding : public testing::TestWithParam<Layout> {
  protected:
    Communicator world = Communicator::world();
    Exec exec;

    [[nodiscard]] static float value(int rank, std::int64_t i) {
        return static_cast<float>(RandomStream(11, RandomPurpose::test, static_cast<std::uint64_t>(rank))
                                      .normal(static_cast<std::uint64_t>(i)));
    }
    [[nodiscard]] static std::vector<float> values(int rank, std::int64_t count) {
        std::vector<float> all(static_cast<std::size_t>(count));
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = value(rank, static_cast<std::int64_t>(i));
        return all;
    }
    template <class Exchange>
    void expect_sums_and_shares(Exchange& exchange, const FlatShards& shards);
};

TEST_P(Sharding, SumsInRankOrderAndGathers) {
    world.set_chunk(977);
    const FlatShards shards(GetParam().borders, world.rank(), world.size());
    ShardExchange<Exec> exchange(exec, world, shards, MessagePath::staged, GetParam().round);
    expect_sums_and_shares(exchange, shards);
}

TEST_P(Sharding, LinksGiveTheSameBits) {
    const std::shared_ptr<DeviceLink> link = test::make_link(world);
    if (link == nullptr || world.size() == 1) return;
    const FlatShards shards(GetParam().borders, world.rank(), world.size());
    detail::LinkedShards linked(exec, world, link, shards, GetParam().round);
    expect_sums_and_shares(linked, shards);
    if (!host_accessible<DeviceLink::Exec>) {
        ShardExchange<Exec> exchange(exec, world, shards, MessagePath::linked);
        expect_sums_and_shares(exchange, shards);
    }
}

// Sums all buckets, then gathers them.
template <class Exchange>
void Sharding::expect_sums_and_shares(Exchange& exchange, const FlatShards& shards) {
    const std::int64_t total = shards.total();
    const auto data = detail::to_device(exec, "data", values(world.rank(), total));
    for (int b = shards.buckets() - 1; b >= 0; --b) {
        exchange.start_sum(data, b);
        if constexpr (std::is_same_v<Exchange, ShardExchange<Exec>>) exchange.progress();
    }
    exchange.finish();
    std::vector<float> sums = detail::to_host(exec, data);
    for (int b = 0; b < shards.buckets(); ++b) {
        const IndexRange mine = shards.share(b);
        for (std::int64_t i = shards.bucket(b).begin; i < shards.bucket(b).end; ++i) {
            float expected = value(world.rank(), i);
            if (i >= mine.begin && i < mine.end) {
                expected = value(0, i);
                for (int rank = 1; rank < world.size(); ++rank) expected += value(rank, i);
            }
            ASSERT_EQ(sums[static_cast<std::size_t>(i)], expected) << "element " << i << " of rank " << world.rank();
        }
    }
    for (int b = 0; b < shards.buckets(); ++b) exchange.start_gather(data, b);
    exchange.finish();
    sums = detail::to_host(exec, data);
    for (std::int64_t i = 0; i < total; ++i) {
        float expected = value(0, i);
        for (int rank = 1; rank < world.size(); ++rank) expected += value(rank, i);
        ASSERT_EQ(sums[static_cast<std::size_t>(i)], expected) << "element " << i << " of rank " << world.rank();
    }
    // Both operations send everything but the own share, or the own share to everyone else.
    std::int64_t bytes = exchange.bytes_sent();
    world.all_reduce_sum(&bytes, 1);
    EXPECT_EQ(bytes, 2 * 4 * (world.size() - 1) * total);
}

INSTANTIATE_TEST_SUITE_P(Layouts, Sharding,
                         testing::Values(Layout{{0, 1}, 4}, Layout{{0, 2, 7}, 1}, Layout{{0, 1000, 1000, 4001}, 100},
                                         Layout{{0, 50000}, 1 << 20}, Layout{{0, 3, 30, 300, 3000}, 7}));

TEST(ShardExchange, NamesWhatDoesNotFit) {
    const Communicator world = Communicator::world();
    EXPECT_THROW(ShardExchange<Exec>(Exec(), world, FlatShards({0, 5}, 0, world.size() + 1)), InvalidArgument);
    ShardExchange<Exec> exchange(Exec(), world, FlatShards({0, 5}, world.rank(), world.size()));
    const Array1<float, Mem> right("right", 5);
    const Array1<float, Mem> wrong("wrong", 4);
    EXPECT_THROW(exchange.start_sum(wrong, 0), InvalidArgument);
    EXPECT_THROW(exchange.start_gather(right, 1), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
