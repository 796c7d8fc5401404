#include <gmock/gmock.h>

#include <algorithm>
#include <set>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/layout/combine.hpp"
#include "support/kokkos_tools.hpp"

namespace sparseattn {
namespace {

template <class Exec>
class Combine : public ::testing::Test {};
#if defined(KOKKOS_ENABLE_SERIAL)
using Spaces = ::testing::Types<Kokkos::DefaultHostExecutionSpace, Kokkos::Serial>;
#else
using Spaces = ::testing::Types<Kokkos::DefaultHostExecutionSpace>;
#endif
TYPED_TEST_SUITE(Combine, Spaces);

const std::vector<std::int32_t> query_offsets = {0, 150, 150, 151, 500};
const std::vector<std::int32_t> key_offsets = {0, 260, 290, 300, 700};

// Random blocks, and random single keys where asked, with one list for each head.
template <class Exec>
BlockLayout<typename Exec::memory_space> random_layout(int heads, bool singles, std::uint64_t seed) {
    const RandomStream random(seed, RandomPurpose::test, 0);
    std::uint64_t at = 0;
    HostLists lists{{0}, {}, {}, {}};
    if (singles) lists.key_offsets = {0};
    std::vector<std::int32_t> head_list;
    for (int h = 0; h < heads; ++h) {
        head_list.push_back(h);
        for (std::size_t s = 0; s + 1 < query_offsets.size(); ++s) {
            const int nq = query_offsets[s + 1] - query_offsets[s], nk = key_offsets[s + 1] - key_offsets[s];
            for (int row = 0; row * 64 < nq; ++row) {
                const int end = std::min((row + 1) * 64, nq) + nk - nq;
                for (int J = 0; J * 64 < end; ++J) {
                    if (random.uniform(at++) < 0.4) {
                        lists.columns.push_back(J);
                        continue;
                    }
                    for (int key = J * 64; singles && key < std::min((J + 1) * 64, end); ++key) {
                        if (random.uniform(at++) < 0.1) lists.keys.push_back(key);
                    }
                }
                lists.offsets.push_back(static_cast<std::int64_t>(lists.columns.size()));
                if (singles) lists.key_offsets.push_back(static_cast<std::int64_t>(lists.keys.size()));
            }
        }
    }
    const Sequences<typename Exec::memory_space> sequences(query_offsets, key_offsets);
    return layout_from_lists(Exec(), sequences, 64, true, lists, head_list, std::vector<Window>(heads));
}

// Blocks and single keys of every (head, row).
struct Row {
    std::set<int> blocks, keys;
    friend bool operator==(const Row&, const Row&) = default;
};
template <class Exec>
std::vector<std::vector<Row>> rows_of(const BlockLayout<typename Exec::memory_space>& layout) {
    const HostLists lists = copy_lists(Exec(), layout);
    std::vector<std::vector<Row>> heads(layout.heads);
    for (int h = 0; h < layout.heads; ++h) {
        for (int row = 0; row < layout.grid.rows; ++row) {
            const std::size_t at = static_cast<std::size_t>(layout.head_list(h)) * layout.grid.rows + row;
            Row& to = heads[h].emplace_back();
            for (auto e = lists.offsets[at]; e < lists.offsets[at + 1]; ++e) to.blocks.insert(lists.columns[e]);
            if (lists.keys.empty()) continue;
            for (auto e = lists.key_offsets[at]; e < lists.key_offsets[at + 1]; ++e) to.keys.insert(lists.keys[e]);
        }
    }
    return heads;
}

Row united(const std::vector<Row>& rows) {
    Row sum;
    for (const Row& row : rows) sum.blocks.insert(row.blocks.begin(), row.blocks.end());
    for (const Row& row : rows) {
        for (const int key : row.keys) {
            if (sum.blocks.count(key / 64) == 0) sum.keys.insert(key);
        }
    }
    return sum;
}

TYPED_TEST(Combine, PicksListsAndWindowsHeadByHead) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences(query_offsets, key_offsets);
    const auto a = random_layout<Exec>(4, true, 1), b = random_layout<Exec>(4, false, 2);
    const auto c =
        build_layout(exec, sequences, 64, true,
                     {HeadMode::stream(4, 100), HeadMode::stream(4, 100), HeadMode::dense(), HeadMode::dense()});
    const auto layout = combine(exec, sequences, {&a, &b, &c}, {2, 2, 0, 1});
    validate(exec, sequences, layout);
    EXPECT_EQ(layout.lists, 3);  // the streaming heads go on sharing theirs
    const auto rows = rows_of<Exec>(layout);
    EXPECT_EQ(rows[0], rows_of<Exec>(c)[0]);
    EXPECT_EQ(rows[1], rows_of<Exec>(c)[1]);
    EXPECT_EQ(rows[2], rows_of<Exec>(a)[2]);
    EXPECT_EQ(rows[3], rows_of<Exec>(b)[3]);
    EXPECT_TRUE(layout.windows(1) == c.windows(1) && layout.windows(1).bounded());
    EXPECT_FALSE(layout.windows(2).bounded());
}

TYPED_TEST(Combine, UnionsHoldWhatAnyLayoutHolds) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences(query_offsets, key_offsets);
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
        const auto a = random_layout<Exec>(3, true, 10 + seed), b = random_layout<Exec>(3, seed % 2 == 0, 20 + seed);
        const auto c = random_layout<Exec>(3, false, 30 + seed);
        const auto layout = unite(exec, sequences, {&a, &b, &c});
        validate(exec, sequences, layout);
        const auto of_a = rows_of<Exec>(a), of_b = rows_of<Exec>(b), of_c = rows_of<Exec>(c),
                   all = rows_of<Exec>(layout);
        for (int h = 0; h < 3; ++h) {
            for (std::size_t row = 0; row < all[h].size(); ++row) {
                ASSERT_EQ(all[h][row], united({of_a[h][row], of_b[h][row], of_c[h][row]}));
            }
        }
    }
}

TYPED_TEST(Combine, WindowsThatDifferBecomeWhole) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences(query_offsets, key_offsets);
    const auto a = build_layout(exec, sequences, 64, true, {HeadMode::stream(4, 100), HeadMode::stream(4, 100)});
    const auto b = build_layout(exec, sequences, 64, true, {HeadMode::stream(4, 100), HeadMode::stream(4, 70)});
    const auto layout = unite(exec, sequences, {&a, &b});
    EXPECT_TRUE(layout.windows(0) == a.windows(0));
    EXPECT_FALSE(layout.windows(1).bounded());
    validate(exec, sequences, layout);
}

TYPED_TEST(Combine, GroupsShareOneList) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences(query_offsets, key_offsets);
    const auto from = random_layout<Exec>(6, true, 40);
    const auto layout = share_in_groups(exec, sequences, from, 3);
    validate(exec, sequences, layout);
    EXPECT_EQ(layout.lists, 2);
    const auto before = rows_of<Exec>(from), after = rows_of<Exec>(layout);
    for (int h = 0; h < 6; ++h) {
        const int first = h / 3 * 3;
        EXPECT_EQ(layout.head_list(h), h / 3);
        for (std::size_t row = 0; row < after[h].size(); ++row) {
            ASSERT_EQ(after[h][row], united({before[first][row], before[first + 1][row], before[first + 2][row]}));
        }
    }
    EXPECT_EQ(rows_of<Exec>(share_in_groups(exec, sequences, from, 1)), before);
}

// Into a layout made before, by another operation and of other lists: nothing is allocated or waited for, and the
// result is that of a fresh one.
TYPED_TEST(Combine, WritesIntoALayoutWithoutAllocating) {
    using Exec = TypeParam;
    using Mem = typename Exec::memory_space;
    const Exec exec;
    const Sequences<Mem> sequences(query_offsets, key_offsets);
    const auto a = random_layout<Exec>(4, true, 50), b = random_layout<Exec>(4, false, 51);
    Workspace<Mem> workspace;
    BlockLayout<Mem> layout;
    const std::vector<int> pick = {1, 1, 1, 1};
    const auto all = [&](const auto& after) {
        unite(exec, sequences, {&a, &b}, workspace, layout);
        after(unite(exec, sequences, {&a, &b}));
        combine(exec, sequences, {&a, &b}, pick, workspace, layout);
        after(combine(exec, sequences, {&a, &b}, pick));
        share_in_groups(exec, sequences, a, 2, workspace, layout);
        after(share_in_groups(exec, sequences, a, 2));
    };
    for (int round = 0; round < 2; ++round) {
        all([&](const BlockLayout<Mem>& fresh) {
            validate(exec, sequences, layout);
            EXPECT_EQ(rows_of<Exec>(layout), rows_of<Exec>(fresh));
            EXPECT_EQ(layout.has_single_keys(), fresh.has_single_keys());
            EXPECT_EQ(layout.host_head_list, fresh.host_head_list);
        });
    }
    const sparseattn::testing::KokkosRecording recording;
    unite(exec, sequences, {&a, &b}, workspace, layout);
    combine(exec, sequences, {&a, &b}, pick, workspace, layout);
    share_in_groups(exec, sequences, a, 2, workspace, layout);
    EXPECT_THAT(recording.allocations(), ::testing::IsEmpty());
    EXPECT_THAT(recording.fences(), ::testing::IsEmpty());
    EXPECT_THAT(recording.copies(), ::testing::IsEmpty());
}

TYPED_TEST(Combine, HeadsThatShareInGroupsAreFound) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences(query_offsets, key_offsets);
    const auto from = random_layout<Exec>(12, true, 60);
    EXPECT_EQ(heads_sharing(from), 1);
    for (const int group : {1, 2, 3, 4, 6, 12}) {
        EXPECT_EQ(heads_sharing(share_in_groups(exec, sequences, from, group)), group);
    }
    const HeadMode near = HeadMode::stream(4, 100), far = HeadMode::stream(4, 300), all = HeadMode::dense();
    const auto sharing = [&](const std::vector<HeadMode>& modes) {
        return heads_sharing(build_layout(exec, sequences, 64, true, modes));
    };
    EXPECT_EQ(sharing({all, all, all, all}), 4);
    EXPECT_EQ(sharing({all, all, near, near}), 2);
    EXPECT_EQ(sharing({all, near, near, all}), 1);
    EXPECT_EQ(sharing({all, all, near, near, near, near, far, far}), 2);
    EXPECT_EQ(sharing({all, all, all, near, near, near}), 3);
    EXPECT_EQ(sharing({near}), 1);
}

TYPED_TEST(Combine, EmptyBatch) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> none;
    const auto layout = build_layout(exec, none, 64, true, {HeadMode::dense()});
    validate(exec, none, unite(exec, none, {&layout, &layout}));
}

TYPED_TEST(Combine, NamesWhatDoesNotFit) {
    using Exec = TypeParam;
    const Exec exec;
    const Sequences<typename Exec::memory_space> sequences(query_offsets, key_offsets), other({0, 100});
    const auto a = random_layout<Exec>(2, false, 1), three = random_layout<Exec>(3, false, 1);
    const auto wide = build_layout(exec, sequences, 128, true, {HeadMode::dense(), HeadMode::dense()});
    const auto full = build_layout(exec, sequences, 64, false, {HeadMode::dense(), HeadMode::dense()});
    const auto message = [&](const auto& call) -> std::string {
        try {
            call();
        } catch (const InvalidArgument& error) {
            return error.what();
        }
        return "no error";
    };
    EXPECT_EQ(message([&] { unite(exec, sequences, {}); }), "layouts.size() is 0, must be at least 1");
    EXPECT_EQ(message([&] {
                  unite(exec, sequences, {&a, &wide});
              }),
              "layouts[1].grid.block is 128, must be 64 as in layouts[0]");
    EXPECT_EQ(message([&] {
                  unite(exec, sequences, {&a, &full});
              }),
              "layouts[1].causal is 0, must be 1 as in layouts[0]");
    EXPECT_EQ(message([&] {
                  unite(exec, sequences, {&a, &three});
              }),
              "layouts[1].heads is 3, must be 2 as in layouts[0]");
    EXPECT_EQ(message([&] { unite(exec, other, {&a}); }),
              "layouts[0].grid.rows is 10, must be 2, the query blocks of the sequences");
    EXPECT_EQ(message([&] { combine(exec, sequences, {&a}, {0}); }),
              "pick.size() is 1, must be 2, the number of heads");
    EXPECT_EQ(message([&] { combine(exec, sequences, {&a}, {0, 1}); }), "pick[1] is 1, must be a layout, 0..0");
    EXPECT_EQ(message([&] { share_in_groups(exec, sequences, three, 2); }),
              "group is 2, must be a divisor of the heads, 3");
}

}  // namespace
}  // namespace sparseattn
