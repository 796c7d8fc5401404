#include <gmock/gmock.h>

#include <cmath>
#include <functional>

#include "sparseattn/core/error.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/parallel/partition.hpp"

namespace sparseattn {
namespace {

template <class T>
class Reduction : public testing::Test {};
using Types = testing::Types<float, double, std::int32_t, std::int64_t>;
TYPED_TEST_SUITE(Reduction, Types);

TYPED_TEST(Reduction, SumMaxAndBroadcastForAnyCountAndChunk) {
    Communicator world = Communicator::world();
    const int ranks = world.size();
    for (const std::int64_t chunk : {1, 3, 7, 1000}) {
        world.set_chunk(chunk);
        for (const std::int64_t count : {0, 1, 7, 20}) {
            std::vector<TypeParam> sum(count);
            std::vector<TypeParam> max(count);
            std::vector<TypeParam> copy(count);
            for (std::int64_t i = 0; i < count; ++i) {
                sum[i] = static_cast<TypeParam>(i * (world.rank() + 1));
                max[i] = static_cast<TypeParam>((i + world.rank()) % ranks);
                copy[i] = static_cast<TypeParam>(100 * world.rank() + i);
            }
            world.all_reduce_sum(sum.data(), count);
            world.all_reduce_max(max.data(), count);
            world.broadcast(copy.data(), count, ranks - 1);
            for (std::int64_t i = 0; i < count; ++i) {
                ASSERT_EQ(sum[i], static_cast<TypeParam>(i * ranks * (ranks + 1) / 2)) << "chunk " << chunk;
                ASSERT_EQ(max[i], static_cast<TypeParam>(ranks - 1)) << "chunk " << chunk;
                ASSERT_EQ(copy[i], static_cast<TypeParam>(100 * (ranks - 1) + i)) << "chunk " << chunk;
            }
        }
    }
}

TEST(Communicator, IntegersBeyond32Bits) {
    const Communicator world = Communicator::world();
    std::int64_t value = std::int64_t{1} << 40;
    world.all_reduce_sum(&value, 1);
    EXPECT_EQ(value, world.size() * (std::int64_t{1} << 40));
}

TEST(Communicator, TextOfAnyLengthTravels) {
    Communicator world = Communicator::world();
    for (const std::int64_t chunk : {4, 1 << 20}) {
        world.set_chunk(chunk);
        // Rank 0 sends nothing, the others more than a chunk, with a zero byte inside.
        const std::string mine = std::string(static_cast<std::size_t>(world.rank()) * 11, 'a') +
                                 (world.rank() > 0 ? std::string("\0z", 2) : std::string());
        for (int root = 0; root < world.size(); ++root) {
            const std::vector<std::string> all = world.gather(mine, root);
            EXPECT_EQ(all.size(), world.rank() == root ? static_cast<std::size_t>(world.size()) : 0U);
            if (world.rank() == root) {
                EXPECT_EQ(all, world.all_gather(mine));
            } else {
                EXPECT_EQ(world.all_gather(mine).at(static_cast<std::size_t>(world.rank())), mine);
            }
            std::string text = world.rank() == root ? "deck of " + std::to_string(root) : "something longer than that";
            world.broadcast(text, root);
            EXPECT_EQ(text, "deck of " + std::to_string(root));
        }
    }
}

TEST(Communicator, SplitOrdersByKey) {
    const Communicator world = Communicator::world();
    const Communicator reversed = world.split(0, -world.rank());
    EXPECT_EQ(reversed.size(), world.size());
    EXPECT_EQ(reversed.rank(), world.size() - 1 - world.rank());
    const Communicator parity = world.split(world.rank() % 2, world.rank());
    EXPECT_EQ(parity.rank(), world.rank() / 2);
    std::int32_t members = 1;
    parity.all_reduce_sum(&members, 1);
    EXPECT_EQ(members, parity.size());
    parity.barrier();
}

TEST(Communicator, BadArgumentsAreNamed) {
    Communicator world = Communicator::world();
    double value = 0;
    EXPECT_THROW(world.all_reduce_sum(&value, -1), InvalidArgument);
    EXPECT_THROW(world.broadcast(&value, 1, world.size()), InvalidArgument);
    EXPECT_THROW((void)world.gather("", -1), InvalidArgument);
    EXPECT_THROW((void)world.split(-1, 0), InvalidArgument);
    EXPECT_THROW(world.set_chunk(0), InvalidArgument);
}

TEST(Communicator, MpiReturnsItsErrors) {
    const Communicator world = Communicator::world();
    // The handler of the duplicate returns codes instead of ending the job.
    MPI_Errhandler handler = MPI_ERRHANDLER_NULL;
    MPI_Comm_get_errhandler(world.handle(), &handler);
    EXPECT_EQ(handler, MPI_ERRORS_RETURN);
}

template <class Thrown>
void expect_agreed(const Communicator& world, int failing, int code, const std::function<void()>& fail) {
    std::exception_ptr mine;
    if (world.rank() >= failing) {
        try {
            fail();
        } catch (...) {
            mine = std::current_exception();
        }
    }
    try {
        world.agree(mine);
        FAIL() << "nothing was thrown";
    } catch (const Thrown& error) {
        EXPECT_EQ(std::string(error.what()), concat("rank ", failing, ": a reason of rank ", failing));
        EXPECT_EQ(error.exit_code(), code);
        const auto* agreed = dynamic_cast<const AgreedFailure*>(&error);
        ASSERT_NE(agreed, nullptr);
        EXPECT_EQ(agreed->rank(), failing);
        EXPECT_EQ(agreed->ranks(), world.size());
    }
}

TEST(Communicator, AgreeThrowsTheFirstFailureEverywhere) {
    const Communicator world = Communicator::world();
    EXPECT_NO_THROW(world.agree(nullptr));
    const std::string reason = concat("a reason of rank ", world.rank());
    for (int failing = 0; failing < world.size(); ++failing) {
        expect_agreed<CheckpointError>(world, failing, 3, [&] { throw CheckpointError(reason); });
        expect_agreed<FileError>(world, failing, 3, [&] { throw FileError(reason); });
        expect_agreed<DeckError>(world, failing, 2, [&] { throw DeckError(reason); });
        expect_agreed<NumericalError>(world, failing, 4, [&] { throw NumericalError(reason); });
        expect_agreed<InvalidArgument>(world, failing, 70, [&] { throw InvalidArgument(reason); });
        expect_agreed<NotCompiled>(world, failing, 70, [&] { throw NotCompiled(reason); });
        expect_agreed<Error>(world, failing, 70, [&] { throw std::runtime_error(reason); });
    }
    EXPECT_NO_THROW(world.agree(nullptr));
}

TEST(Communicator, AgreedTwiceNamesTheRankOnce) {
    const Communicator world = Communicator::world();
    std::exception_ptr mine;
    try {
        world.agree(std::make_exception_ptr(FileError("gone")));
    } catch (...) {
        mine = std::current_exception();
    }
    try {
        world.agree(mine);
        FAIL();
    } catch (const FileError& error) {
        EXPECT_STREQ(error.what(), "rank 0: gone");
    }
}

TEST(Communicator, TogetherGoesOnOrThrowsEverywhere) {
    const Communicator world = Communicator::world();
    int calls = 0;
    world.together([&] { ++calls; });
    EXPECT_EQ(calls, 1);
    const auto fail_on_last = [&] {
        world.together([&] {
            if (world.rank() == world.size() - 1) throw FileError("gone");
        });
    };
    EXPECT_THROW(fail_on_last(), FileError);
}

TEST(Communicator, PatienceEndsAndNamesWhoDidNotCome) {
    Communicator world = Communicator::world();
    EXPECT_THROW(world.set_patience(-1), InvalidArgument);
    world.set_patience(0.3);
    double one = 1;
    world.all_reduce_sum(&one, 1);
    EXPECT_EQ(one, world.size());
    // The last rank stays away, from a communicator that is given up then.
    Communicator lost = world.split(0, world.rank());
    const int last = world.size() - 1;
    if (world.size() > 1 && world.rank() != last) {
        try {
            lost.barrier();
            ADD_FAILURE() << "nobody was missed";
        } catch (const Error& error) {
            const std::string who = world.rank() == 0 ? concat("rank ", last) : "rank 0";
            const std::string how_long = world.rank() == 0 ? "0.3" : "0.6";
            EXPECT_EQ(std::string(error.what()), concat(who, " did not come to barrier within ", how_long, " s"));
        }
    }
    world.set_patience(0);
    world.barrier();
}

TEST(Communicator, UnwindingLeavesTheOthersAlone) {
    // Rank 0 alone loses its communicator to an exception; the others keep theirs and go on.
    const Communicator world = Communicator::world();
    const Communicator kept = world.split(0, 0);
    try {
        const Communicator lost = kept;
        const Communicator gone = world.split(0, 0);
        if (world.rank() == 0) throw Error("left");
    } catch (const Error&) {
    }
    std::int32_t ones = 1;
    kept.all_reduce_sum(&ones, 1);
    EXPECT_EQ(ones, world.size());
}

}  // namespace
}  // namespace sparseattn
