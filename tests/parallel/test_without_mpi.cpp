// Runs outside mpirun: the test program's main does not initialise MPI then.
#include <gmock/gmock.h>

#include "sparseattn/core/error.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/parallel/flat_shards.hpp"
#include "sparseattn/parallel/partition.hpp"
#include "sparseattn/parallel/process_grid.hpp"

namespace sparseattn {
namespace {

TEST(SingleProcess, EveryCallWorksLocally) {
    int initialised = 1;
    MPI_Initialized(&initialised);
    ASSERT_EQ(initialised, 0);
    const Communicator self;
    EXPECT_EQ(self.rank(), 0);
    EXPECT_EQ(self.size(), 1);
    EXPECT_EQ(self.split(3, 1).size(), 1);
    self.barrier();
    double value = 2.5;
    self.all_reduce_sum(&value, 1);
    self.all_reduce_max(&value, 1);
    self.broadcast(&value, 1, 0);
    EXPECT_EQ(value, 2.5);
    std::string text = "deck";
    self.broadcast(text, 0);
    EXPECT_EQ(text, "deck");
    EXPECT_THAT(self.gather("mine", 0), testing::ElementsAre("mine"));
    EXPECT_THAT(self.all_gather("mine"), testing::ElementsAre("mine"));
    EXPECT_NO_THROW(self.agree(nullptr));
    EXPECT_THROW(self.broadcast(&value, 1, 1), InvalidArgument);
    try {
        self.agree(std::make_exception_ptr(FileError("no such file")));
        FAIL();
    } catch (const FileError& error) {
        EXPECT_STREQ(error.what(), "rank 0: no such file");
    }
}

TEST(SingleProcess, WorldNeedsMpi) {
    EXPECT_THROW((void)Communicator::world(), Error);
}

TEST(Partition, CoversTheRangeWithEvenShares) {
    for (const std::int64_t items : {0, 1, 5, 6, 7, 1000}) {
        for (const int parts : {1, 2, 3, 7, 16}) {
            std::int64_t next = 0;
            std::int64_t longest = partition(items, 0, parts).count();
            for (int part = 0; part < parts; ++part) {
                const IndexRange range = partition(items, part, parts);
                EXPECT_EQ(range.begin, next);
                EXPECT_LE(range.count(), longest);
                EXPECT_GE(range.count(), items / parts);
                longest = range.count();
                next = range.end;
            }
            EXPECT_EQ(next, items);
        }
    }
    const std::int64_t many = std::int64_t{1} << 40;
    EXPECT_EQ(partition(many, 2, 3).end, many);
    EXPECT_THROW((void)partition(-1, 0, 1), InvalidArgument);
    EXPECT_THROW((void)partition(1, 1, 1), InvalidArgument);
    EXPECT_THROW((void)partition(1, 0, 0), InvalidArgument);
}

TEST(Buckets, BeginAtCutsAndHaveASize) {
    using testing::ElementsAre;
    const std::vector<std::int64_t> cuts = {0, 10, 30, 50, 51};
    EXPECT_THAT(bucket_borders(cuts, 60, 1), ElementsAre(0, 10, 30, 50, 51, 60));
    EXPECT_THAT(bucket_borders(cuts, 60, 10), ElementsAre(0, 10, 30, 50, 60));
    EXPECT_THAT(bucket_borders(cuts, 60, 25), ElementsAre(0, 30, 60));
    EXPECT_THAT(bucket_borders(cuts, 60, 1000), ElementsAre(0, 60));
    EXPECT_THROW((void)bucket_borders({}, 60, 1), InvalidArgument);
    EXPECT_THROW((void)bucket_borders({0, 60}, 60, 1), InvalidArgument);
}

TEST(FlatShards, EveryElementHasOneOwner) {
    const std::vector<std::int64_t> borders = {0, 1, 10, 10, 107};
    for (const int ranks : {1, 2, 3, 5}) {
        std::vector<int> owners(107, 0);
        for (int rank = 0; rank < ranks; ++rank) {
            const FlatShards shards(borders, rank, ranks);
            std::int64_t packed = 0;
            for (int b = 0; b < shards.buckets(); ++b) {
                EXPECT_EQ(shards.packed(b).begin, packed);
                packed += shards.share(b).count();
                EXPECT_EQ(shards.packed(b).end, packed);
                for (std::int64_t i = shards.share(b).begin; i < shards.share(b).end; ++i) ++owners[i];
            }
            EXPECT_EQ(shards.packed_size(), packed);
            EXPECT_LE(std::abs(packed - 107 / ranks), shards.buckets());
        }
        EXPECT_THAT(owners, testing::Each(1));
    }
    EXPECT_THROW(FlatShards({0}, 0, 1), InvalidArgument);
    EXPECT_THROW(FlatShards({0, 3, 2}, 0, 1), InvalidArgument);
}

TEST(SingleProcess, IsAGridOfOne) {
    const ProcessGrid grid{Communicator()};
    EXPECT_EQ(grid.data_parallel(), 1);
    EXPECT_EQ(grid.tokens(9).count(), 9);
    EXPECT_THROW(ProcessGrid(Communicator(), 2), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
