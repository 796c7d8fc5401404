// Placement of heads, routes, and packets that travel along them.
#include <gmock/gmock.h>

#include <numeric>

#include "sparseattn/parallel/head_placement.hpp"
#include "sparseattn/parallel/packet_exchange.hpp"
#include "support/arrays.hpp"
#include "support/links.hpp"

namespace sparseattn {
namespace {

using test::Device;
using test::Exec;
using test::Mem;
using testing::ElementsAre;

std::vector<double> loads(const std::vector<std::vector<int>>& owned, const std::vector<double>& costs) {
    std::vector<double> load;
    for (const auto& heads : owned) {
        load.push_back(0);
        for (const int h : heads) load.back() += costs[h];
    }
    return load;
}

TEST(HeadPlacement, EveryHeadOnceAndNoRankFarAboveItsShare) {
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        const int ranks = 1 + static_cast<int>(seed % 7), group = 1 << (seed % 4);
        std::vector<double> costs = test::random<double>(32, seed, 1.0);
        for (double& cost : costs) cost = std::abs(cost);
        const auto owned = place_heads(costs, group, ranks);
        ASSERT_EQ(owned.size(), static_cast<std::size_t>(ranks));
        std::vector<int> all;
        for (const auto& heads : owned) {
            EXPECT_TRUE(std::is_sorted(heads.begin(), heads.end()));
            all.insert(all.end(), heads.begin(), heads.end());
        }
        std::sort(all.begin(), all.end());
        std::vector<int> wanted(costs.size());
        std::iota(wanted.begin(), wanted.end(), 0);
        EXPECT_EQ(all, wanted);
        // A rank takes a head only while it is the least loaded, or inside its fair share.
        const auto load = loads(owned, costs);
        const double total = std::accumulate(costs.begin(), costs.end(), 0.0);
        EXPECT_LE(*std::max_element(load.begin(), load.end()),
                  total / ranks * (1 + 1e-6) + *std::max_element(costs.begin(), costs.end()));
    }
}

TEST(HeadPlacement, KeyValueGroupsAreSplitOnlyWhereTheShareDemandsIt) {
    const std::vector<double> alike(8, 1.0);
    EXPECT_THAT(place_heads(alike, 2, 2), ElementsAre(ElementsAre(0, 1, 4, 5), ElementsAre(2, 3, 6, 7)));
    // One key/value head for all, more ranks than key/value heads.
    EXPECT_THAT(place_heads(alike, 8, 2), ElementsAre(ElementsAre(0, 1, 2, 3), ElementsAre(4, 5, 6, 7)));
    EXPECT_THAT(place_heads(alike, 4, 4),
                ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3), ElementsAre(4, 5), ElementsAre(6, 7)));
    // 8 heads on 3 ranks: 3, 3 and 2 of them.
    EXPECT_THAT(loads(place_heads(alike, 1, 3), alike), testing::UnorderedElementsAre(3, 3, 2));
    EXPECT_THAT(loads(place_heads(alike, 2, 3), alike), testing::UnorderedElementsAre(3, 3, 2));
    EXPECT_THAT(loads(place_heads(alike, 8, 3), alike), testing::UnorderedElementsAre(3, 3, 2));
    for (const auto& heads : place_heads(alike, 2, 3, true)) EXPECT_EQ(heads.size() % 2, 0U);
}

TEST(HeadPlacement, CostsCountAndNegativeOnesStay) {
    // One dear head is worth the seven others.
    EXPECT_THAT(place_heads({7, 1, 1, 1, 1, 1, 1, 1}, 1, 2),
                ElementsAre(ElementsAre(0), ElementsAre(1, 2, 3, 4, 5, 6, 7)));
    EXPECT_THAT(place_heads({-1, 1, -1, 1}, 2, 2), ElementsAre(ElementsAre(1), ElementsAre(3)));
    EXPECT_THAT(place_heads({-1, -1}, 1, 2), ElementsAre(ElementsAre(), ElementsAre()));
    EXPECT_THAT(place_heads({0, 0, 0, 0}, 1, 2), ElementsAre(ElementsAre(0, 2), ElementsAre(1, 3)));
    EXPECT_THROW((void)place_heads({1, 1, 1}, 2, 1), InvalidArgument);
    EXPECT_THROW((void)place_heads({1}, 1, 0), InvalidArgument);
}

TEST(HeadPlacement, BatchesHaveTheSameQueriesForEveryKeyValueHead) {
    EXPECT_THAT(make_batches({0, 1, 2, 3}, 2, 1), ElementsAre(HeadBatch{{0, 1, 2, 3}, {0, 1}}));
    EXPECT_THAT(make_batches({0, 1, 2, 3}, 2, 2), ElementsAre(HeadBatch{{0, 1}, {0}}, HeadBatch{{2, 3}, {1}}));
    EXPECT_THAT(make_batches({0, 1, 2, 6}, 2, 1), ElementsAre(HeadBatch{{0, 1}, {0}}, HeadBatch{{2, 6}, {1, 3}}));
    EXPECT_THAT(make_batches({3, 4}, 8, 4), ElementsAre(HeadBatch{{3, 4}, {0}}));
    EXPECT_THAT(make_batches({0, 1, 2, 3, 4}, 1, 3),
                ElementsAre(HeadBatch{{0, 1}, {0, 1}}, HeadBatch{{3, 4}, {3, 4}}, HeadBatch{{2}, {2}}));
    EXPECT_TRUE(make_batches({}, 2, 3).empty());
}

TEST(HaloRows, SinksAndWindowOfTheDocumentThatGoesOn) {
    const TokenShards shards{40, 4};  // shards of 10
    const auto rows = [&](int rank, const std::vector<std::int32_t>& offsets, int sink, int local) {
        std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
        for (const IndexRange& range : halo_rows(shards, rank, offsets, sink, local)) {
            pairs.emplace_back(range.begin, range.end);
        }
        return pairs;
    };
    using Pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;
    EXPECT_EQ(rows(0, {0, 40}, 4, 5), Pairs());
    EXPECT_EQ(rows(1, {0, 40}, 4, 5), (Pairs{{0, 4}, {6, 10}}));
    EXPECT_EQ(rows(3, {0, 40}, 4, 25), (Pairs{{0, 4}, {6, 30}}));  // longer than a shard
    EXPECT_EQ(rows(2, {0, 40}, 4, 17), (Pairs{{0, 20}}));          // no gap left
    EXPECT_EQ(rows(2, {0, 40}, 0, 1), Pairs());                    // sees itself only
    EXPECT_EQ(rows(2, {0, 40}, 30, 1), (Pairs{{0, 20}}));
    EXPECT_EQ(rows(2, {0, 20, 40}, 4, 5), Pairs());      // begins with the shard
    EXPECT_EQ(rows(2, {0, 20, 20, 40}, 4, 5), Pairs());  // after an empty one
    EXPECT_EQ(rows(2, {0, 13, 40}, 2, 4), (Pairs{{13, 15}, {17, 20}}));
    EXPECT_THROW((void)halo_rows(shards, 1, {0, 40}, -1, 5), InvalidArgument);
    EXPECT_THROW((void)halo_rows(shards, 1, {0, 40}, 1, 0), InvalidArgument);
}

// A number that tells token, head and channel.
double stamp(std::int64_t token, int head, int channel) {
    return static_cast<double>(token) * 1000 + head * 10 + channel;
}

constexpr int head_dim = 4;

// A path with what it needs; a link is null where ranks share a device.
struct Way {
    MessagePath path;
    std::shared_ptr<DeviceLink> link;
};
std::vector<Way> ways(const Communicator& world) {
    std::vector<Way> all{{MessagePath::staged, nullptr}};
    // By its own pointers, where this MPI takes those of a device.
    if (host_accessible<DeviceLink::Exec> || mpi_is_gpu_aware()) all.push_back({MessagePath::direct, nullptr});
    if (const auto link = test::make_link(world)) all.push_back({MessagePath::linked, link});
    return all;
}

// Three arrays of 3, 2 and 2 heads of this rank's tokens, and an exchange of them.
struct Exchange {
    explicit Exchange(std::int64_t tokens, std::int64_t chunk = 1 << 20) : world(Communicator::world()) {
        world.set_chunk(chunk);
        shards = {tokens, world.size()};
        mine = shards.of(world.rank());
        std::vector<float> values[3];
        for (std::int64_t t = mine.begin; t < mine.end; ++t) {
            for (int h = 0; h < 7; ++h) {
                for (int c = 0; c < head_dim; ++c) {
                    values[h < 3 ? 0 : h < 5 ? 1 : 2].push_back(static_cast<float>(stamp(t, h, c)));
                }
            }
        }
        for (const auto& part : values) arrays.emplace_back(part);
    }
    template <class T>
    HeadSet<T, Mem> heads() const {
        HeadSet<T, Mem> set;
        for (int i = 0; i < 3; ++i) set.parts[i] = arrays[i].heads(mine.count(), i == 0 ? 3 : 2);
        return set;
    }

    Communicator world;
    TokenShards shards;
    IndexRange mine;
    std::vector<Device<float>> arrays;
};

TEST(PacketExchange, HeadsOfAllTokensThereAndSummedBack) {
    std::vector<std::pair<Way, std::int64_t>> runs;
    for (const Way& way : ways(Communicator::world())) {
        runs.emplace_back(way, std::int64_t{1} << 20);
        if (way.link == nullptr) runs.emplace_back(way, 7);
    }
    for (const auto& [way, chunk] : runs) {
        SCOPED_TRACE(concat("path ", static_cast<int>(way.path), ", chunk ", chunk));
        Exchange e(101, chunk);
        const int ranks = e.world.size(), rank = e.world.rank();
        // Head 3 goes to everyone, the others in turn; nobody in particular order.
        std::vector<std::vector<int>> heads(ranks);
        for (const int h : {6, 0, 1, 5, 2, 4}) heads[h % ranks].push_back(h);
        for (auto& list : heads) list.push_back(3);
        TouchedHeads touched(7, false);
        auto route = head_route<Mem>(e.shards, rank, heads, touched);
        const Exec exec;
        upload(exec, {&route});
        EXPECT_EQ(route.target_rows, 101);
        const std::vector<int>& own = heads[rank];
        Device<float> target(101 * own.size() * head_dim);
        PacketExchange<Exec, float> exchange(e.world, way.path, 7, way.link);
        exchange.start(exec, route, e.heads<const float>(), target.matrix(101));
        exchange.finish(exec);
        const auto got = target.host();
        for (std::int64_t t = 0; t < 101; ++t) {
            for (std::size_t i = 0; i < own.size(); ++i) {
                for (int c = 0; c < head_dim; ++c) {
                    ASSERT_EQ(got[(t * own.size() + i) * head_dim + c], static_cast<float>(stamp(t, own[i], c)));
                }
            }
        }
        EXPECT_EQ(exchange.bytes_sent(), route.bytes_out(head_dim, sizeof(float)));
        EXPECT_GE(exchange.messages_sent(), exchange.bytes_sent() / 4 / chunk);

        exchange.start_return(exec, route, target.matrix(101), e.heads<float>());
        exchange.finish_return(exec);
        EXPECT_EQ(exchange.bytes_sent(), route.bytes_out(head_dim, 4) + route.bytes_back(head_dim, 4));
        for (int part = 0; part < 3; ++part) {
            const auto values = e.arrays[part].host();
            const int first = part == 0 ? 0 : part == 1 ? 3 : 5, count = part == 0 ? 3 : 2;
            for (std::size_t i = 0; i < values.size(); ++i) {
                const auto t = e.mine.begin + static_cast<std::int64_t>(i / (count * head_dim));
                const int h = first + static_cast<int>(i / head_dim % count);
                const auto one = static_cast<float>(stamp(t, h, static_cast<int>(i % head_dim)));
                ASSERT_EQ(values[i], h == 3 ? static_cast<float>(ranks) * one : one);
            }
        }
    }
}

TEST(PacketExchange, HalosThereAndAddedBack) {
    std::vector<std::pair<Way, int>> runs;
    for (const Way& way : ways(Communicator::world())) {
        for (const int tokens : {101, 17}) runs.emplace_back(way, tokens);
    }
    for (const auto& [way, tokens] : runs) {
        SCOPED_TRACE(concat("path ", static_cast<int>(way.path), ", tokens ", tokens));
        Exchange e(tokens, 5);
        const int ranks = e.world.size(), rank = e.world.rank();
        const std::vector<std::int32_t> offsets{0, tokens};
        std::vector<std::vector<IndexRange>> needs;
        for (int r = 0; r < ranks; ++r) needs.push_back(halo_rows(e.shards, r, offsets, 3, 12));
        const std::vector<int> heads{4, 6};
        TouchedHeads touched(7, false);
        auto route = halo_route<Mem>(e.shards, rank, needs, heads, touched);
        const Exec exec;
        upload(exec, {&route});
        std::vector<std::int64_t> rows;
        for (const IndexRange& range : needs[rank]) {
            for (std::int64_t t = range.begin; t < range.end; ++t) rows.push_back(t);
        }
        for (std::int64_t t = e.mine.begin; t < e.mine.end; ++t) rows.push_back(t);
        ASSERT_EQ(route.target_rows, static_cast<std::int64_t>(rows.size()));
        Device<float> target(rows.size() * 2 * head_dim);
        PacketExchange<Exec, float> exchange(e.world, way.path, 7, way.link);
        exchange.start(exec, route, e.heads<const float>(), target.matrix(rows.size()));
        exchange.finish(exec);
        const auto got = target.host();
        for (std::size_t i = 0; i < got.size(); ++i) {
            const int head = heads[i / head_dim % 2];
            ASSERT_EQ(got[i], static_cast<float>(stamp(rows[i / head_dim / 2], head, static_cast<int>(i % head_dim))));
        }
        exchange.start_return(exec, route, target.matrix(rows.size()), e.heads<float>());
        exchange.finish_return(exec);
        const auto values = e.arrays[2].host();  // heads 5 and 6
        for (std::size_t i = 0; i < values.size(); ++i) {
            const auto t = e.mine.begin + static_cast<std::int64_t>(i / (2 * head_dim));
            const int h = 5 + static_cast<int>(i / head_dim % 2);
            int holders = 1;
            for (const auto& need : needs) {
                for (const IndexRange& range : need) holders += t >= range.begin && t < range.end ? 1 : 0;
            }
            const auto one = static_cast<float>(stamp(t, h, static_cast<int>(i % head_dim)));
            ASSERT_EQ(values[i], h == 6 ? static_cast<float>(holders) * one : one);
        }
    }
}

TEST(Transfers, BadArgumentsAreNamed) {
    const Communicator world = Communicator::world();
    Transfers transfers(world);
    float value = 0;
    EXPECT_THROW(transfers.send(&value, 1, world.rank(), 0), InvalidArgument);
    EXPECT_THROW(transfers.send(&value, 1, world.size(), 0), InvalidArgument);
    EXPECT_THROW(transfers.receive(&value, 1, -1, 0), InvalidArgument);
    transfers.wait();
}

TEST(PacketExchange, TakesALinkWithItsPathAlone) {
    const Communicator world = Communicator::world();
    EXPECT_THROW((PacketExchange<Exec, float>(world, MessagePath::linked, 7)), InvalidArgument);
    if (const auto link = test::make_link(world)) {
        EXPECT_THROW((PacketExchange<Exec, float>(world, MessagePath::staged, 7, link)), InvalidArgument);
    }
}

}  // namespace
}  // namespace sparseattn
