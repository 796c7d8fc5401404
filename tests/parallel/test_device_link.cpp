// Runs under mpirun: links between devices, where every rank has a device of its own; what is said where there are
// none.
#include <gmock/gmock.h>

#include "sparseattn/core/error.hpp"
#include "sparseattn/parallel/transfers.hpp"
#include "support/arrays.hpp"
#include "support/links.hpp"

namespace sparseattn {
namespace {

using test::Device;
using test::Exec;

void add_one(const Exec& exec, const Span1<const float, test::Mem>& from, const Span1<float, test::Mem>& to) {
    Kokkos::parallel_for(
        "SparseAttn::test", Kokkos::RangePolicy<Exec>(exec, 0, static_cast<int>(to.extent(0))),
        KOKKOS_LAMBDA(int i) { to(i) = from(i) + 1; });
}

TEST(DeviceLink, EveryRankHearsTheSameObstacle) {
    const Communicator world = Communicator::world();
    const std::string mine = device_link_obstacle(world, Exec());
    EXPECT_THAT(world.all_gather(mine), testing::Each(mine));
    const MessageChoice choice = choose_message_path(world, true, true);
    EXPECT_EQ(choice.path == MessagePath::linked, !host_accessible<DeviceLink::Exec> && mine.empty());
    EXPECT_NE(choose_message_path(world, false, true).path, MessagePath::linked);
    EXPECT_THAT(choice.description, testing::StartsWith("messages: "));
    EXPECT_EQ(device_link_library().empty(), mine == "this build has no NCCL");
    if (device_link_library().empty()) {
        EXPECT_THROW((void)link_devices(world, Exec()), NotCompiled);
    }
}

// Messages come behind the work that follow() names, and work that join() names behind the messages, without a wait in
// between: each round computes on what the one before brought.
TEST(DeviceLink, OrdersMessagesAndWork) {
    const Communicator world = Communicator::world();
    const std::shared_ptr<DeviceLink> link = test::make_link(world);
    if (link == nullptr) return;  // ranks share a device: the test above has seen the reason
    const int ranks = world.size(), rank = world.rank();
    constexpr std::int64_t count = 1 << 20;
    const Exec exec;
    const Device<float> mine(count, static_cast<float>(rank)), theirs(count, -1.0F);
    Transfers transfers(world, link);
    const int right = (rank + 1) % ranks, left = (rank + ranks - 1) % ranks;
    for (int round = 0; round < 20 && ranks > 1; ++round) {
        transfers.follow(exec, "SparseAttn::test");
        transfers.send(mine.array.data(), count, right, 0);
        transfers.receive(theirs.array.data(), count, left, 0);
        transfers.start();
        transfers.wait();
        transfers.join(exec);
        add_one(exec, theirs.flat(), mine.flat());
    }
    if (ranks > 1) {
        // The value has gone 20 ranks to the right and grown by 20 on its way.
        const int origin = ((rank - 20) % ranks + ranks) % ranks;
        EXPECT_THAT(mine.host(), testing::Each(static_cast<float>(origin + 20)));
        EXPECT_EQ(transfers.bytes_sent(), 20 * count * 4);
        EXPECT_EQ(transfers.messages_sent(), 20);
    }
    exec.fence();
    world.barrier();
}

class LateLink final : public test::HostLink {
  public:
    using HostLink::HostLink;
    void wait(const Mark&, double, const char* call) override { throw Error(std::string("late: ") + call); }
};

// A device does not know who is late: the ranks ask each other, and where all answer, what the link said stands.
TEST(DeviceLink, LosesPatienceAndNamesWhoIsMissing) {
    const Communicator world = Communicator::world();
    const int last = world.size() - 1;
    for (const bool all_come : {true, false}) {
        Communicator part = world.split(0, world.rank());
        part.set_patience(all_come ? 60 : 2);  // ranks may share cores
        Transfers transfers(part, std::make_shared<LateLink>(part));
        if (!all_come && (last == 0 || world.rank() == last)) break;
        try {
            transfers.wait();
            FAIL() << "waited";
        } catch (const Error& error) {
            const std::string who = concat("rank ", last, " did not come to an exchange of messages within 2 s");
            if (all_come) {
                EXPECT_STREQ(error.what(), "late: an exchange of messages");
            } else if (world.rank() == 0) {
                EXPECT_EQ(error.what(), who);
            }
        }
    }
    world.barrier();
}

}  // namespace
}  // namespace sparseattn
