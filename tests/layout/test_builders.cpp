#include <gmock/gmock.h>

#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/layout/builders.hpp"

namespace sparseattn {
namespace {

template <class Exec>
class Builders : public testing::Test {};
#if defined(KOKKOS_ENABLE_SERIAL)
using Spaces = testing::Types<Kokkos::DefaultHostExecutionSpace, Kokkos::Serial>;
#else
using Spaces = testing::Types<Kokkos::DefaultHostExecutionSpace>;
#endif
TYPED_TEST_SUITE(Builders, Spaces);

const std::vector<HeadMode> all_modes = {HeadMode::dense(),
                                         HeadMode::stream(10, 70),
                                         HeadMode::stream(0, 1),
                                         HeadMode::stream(200, 130),
                                         HeadMode::stream(64, 64, Granularity::block),
                                         HeadMode::stream(0, 100, Granularity::block),
                                         HeadMode::stream(10, 70, Granularity::token, 100),
                                         HeadMode::dense()};

bool wanted(const HeadMode& mode, const TokenRule& all, int block, int i, int j) {
    if (!all.visible(i, j)) return false;
    if (!mode.streaming) return true;
    const int i_key = i + all.shift();
    if (mode.granularity == Granularity::token) {
        return j < mode.sink || j > i_key - mode.local || i >= all.queries - mode.dense_tail;
    }
    const int last =
        std::min((i / block + 1) * block, all.queries) - 1;  // the row's diagonal block is its last query's
    const int diagonal = (std::min(all.key_end(last), all.keys) - 1) / block;
    const int sink = (mode.sink + block - 1) / block, local = (mode.local + block - 1) / block;
    return j / block < sink || j / block > diagonal - local;
}

TYPED_TEST(Builders, KeepExactlyTheWantedPairs) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences({0, 1, 1, 130, 330}, {0, 1, 20, 400, 500});
    for (const bool causal : {true, false}) {
        for (const int block : {64, 128}) {
            const auto layout = build_layout(exec, sequences, block, causal, all_modes);
            validate(exec, sequences, layout);
            EXPECT_EQ(layout.heads, 8);
            EXPECT_EQ(layout.lists, 7);  // the two dense heads share one
            const HostLists lists = copy_lists(exec, layout);
            for (int h = 0; h < layout.heads; ++h) {
                if (!causal && all_modes[h].granularity == Granularity::block) continue;  // its diagonal is causal
                for (int s = 0; s < sequences.count(); ++s) {
                    TokenRule rule{sequences.query_length(s), sequences.key_length(s), causal, layout.windows(h)};
                    TokenRule all = rule;
                    all.window = {};
                    for (int i = 0; i < rule.queries; ++i) {
                        const std::int64_t row =
                            layout.head_list(h) * layout.grid.rows + layout.grid.row_begin(s) + i / block;
                        const auto first = lists.columns.begin() + lists.offsets[row];
                        const auto last = lists.columns.begin() + lists.offsets[row + 1];
                        for (int j = 0; j < rule.keys; ++j) {
                            const bool kept = std::binary_search(first, last, j / block) && rule.visible(i, j);
                            ASSERT_EQ(kept, wanted(all_modes[h], all, block, i, j))
                                << "head " << h << " sequence " << s << " query " << i << " key " << j;
                        }
                    }
                }
            }
        }
    }
}

TYPED_TEST(Builders, NameTheBadMode) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences({0, 100});
    const auto message = [&](int block, const std::vector<HeadMode>& modes) -> std::string {
        try {
            build_layout(exec, sequences, block, true, modes);
        } catch (const InvalidArgument& error) {
            return error.what();
        }
        return "no error";
    };
    EXPECT_EQ(message(64, {HeadMode::dense(), HeadMode::stream(4, 0)}), "modes[1].local is 0, must be at least 1");
    EXPECT_EQ(message(64, {HeadMode::stream(-1, 4)}), "modes[0].sink is -1, must be at least 0");
    EXPECT_EQ(message(32, {HeadMode::dense()}), "block is 32, must be 64 or 128");
    EXPECT_EQ(message(64, {}), "modes.size() is 0, must be at least 1");
}

TYPED_TEST(Builders, EmptyBatch) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences;
    const auto layout = build_layout(exec, sequences, 64, true, all_modes);
    EXPECT_EQ(layout.columns.extent(0), 0U);
    validate(exec, sequences, layout);
    transpose(exec, sequences, layout);
}

}  // namespace
}  // namespace sparseattn
