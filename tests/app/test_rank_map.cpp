#include <gmock/gmock.h>

#include "sparseattn/app/rank_map.hpp"

namespace sparseattn {
namespace {

using testing::ElementsAre;
using testing::MatchesRegex;

TEST(RankMap, OneLineARank) {
    EXPECT_THAT(rank_map({{"n1", "0-3", 4, -1, 0, 0}, {"n1", "4-7", 4, -1, 0, 1}}, 2),
                ElementsAre("ranks 2 = data_parallel 1 x seq_parallel 2",
                            "rank 0: n1, data 0, sequence 0, cores 0-3, 4 threads",
                            "rank 1: n1, data 0, sequence 1, cores 4-7, 4 threads"));
    EXPECT_THAT(rank_map({{"n1", "0", 1, 3, 0, 0}}, 1),
                ElementsAre("ranks 1 = data_parallel 1 x seq_parallel 1",
                            "rank 0: n1, data 0, sequence 0, cores 0, 1 thread, device 3"));
}

TEST(RankMap, ManyRanksGoByHost) {
    std::vector<RankPlace> places;
    for (int rank = 0; rank < 16; ++rank) {
        const int local = rank % 8;
        places.push_back({rank < 8 ? "n1" : "n2", std::to_string(2 * local), 2, local, rank / 4, rank % 4});
    }
    EXPECT_EQ(rank_map(places, 4).size(), 17U);
    EXPECT_THAT(rank_map(places, 4, 15),
                ElementsAre("ranks 16 = data_parallel 4 x seq_parallel 4",
                            "ranks 0-7: n1, data 0-1, cores 0 ... 14, 2 threads each, devices 0 ... 7",
                            "ranks 8-15: n2, data 2-3, cores 0 ... 14, 2 threads each, devices 0 ... 7"));
}

TEST(RankMap, KnowsThisProcess) {
    const auto lines = rank_map(ProcessGrid(Communicator()));
    ASSERT_EQ(lines.size(), 2U);
    EXPECT_THAT(lines[1], MatchesRegex("rank 0: .+, data 0, sequence 0, cores [0-9,-]+, [0-9]+ threads?.*"));
}

}  // namespace
}  // namespace sparseattn
