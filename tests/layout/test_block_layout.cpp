#include <gmock/gmock.h>

#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/builders.hpp"

namespace sparseattn {
namespace {

using Exec = Kokkos::DefaultHostExecutionSpace;
using HostSequences = Sequences<Exec::memory_space>;

// Random lists with single keys over ragged sequences.
HostLists random_lists(const HostSequences& sequences, int block, bool causal, int lists) {
    const RandomStream random(11, RandomPurpose::test, 0);
    std::uint64_t draw = 0;
    HostLists host{{0}, {}, {0}, {}};
    for (int list = 0; list < lists; ++list) {
        for (int s = 0; s < sequences.count(); ++s) {
            const TokenRule rule{sequences.query_length(s), sequences.key_length(s), causal, {}};
            for (int i = 0; i < rule.queries; i += block) {
                const int key_end = rule.key_end(std::min(i + block, rule.queries) - 1);
                for (int j = 0; j * block < key_end; ++j) {
                    if (random.uniform(draw++) < 0.5) {
                        host.columns.push_back(j);
                    } else {
                        for (int key = j * block; key < std::min((j + 1) * block, key_end); ++key) {
                            if (random.uniform(draw++) < 0.05) host.keys.push_back(key);
                        }
                    }
                }
                host.offsets.push_back(static_cast<std::int64_t>(host.columns.size()));
                host.key_offsets.push_back(static_cast<std::int64_t>(host.keys.size()));
            }
        }
    }
    return host;
}

TEST(BlockLayout, TransposeHoldsTheSamePairsInOrder) {
    const Exec exec;
    const HostSequences sequences({0, 300, 300, 777}, {0, 400, 410, 900});
    const HostLists host = random_lists(sequences, 64, true, 3);
    const auto layout = layout_from_lists(exec, sequences, 64, true, host, {0, 1, 2, 1}, std::vector<Window>(4));
    const auto transposed = transpose(exec, sequences, layout);
    ASSERT_EQ(transposed.rows.extent(0), host.columns.size());
    ASSERT_EQ(transposed.key_rows.extent(0), host.keys.size());
    std::size_t seen = 0, keys_seen = 0;
    for (int list = 0; list < 3; ++list) {
        for (int s = 0; s < sequences.count(); ++s) {
            const std::int64_t first_row = std::int64_t{list} * layout.grid.rows + layout.grid.row_begin(s);
            for (int b = layout.grid.key_block_begin(s); b < layout.grid.key_block_begin(s + 1); ++b) {
                const std::int64_t segment = std::int64_t{list} * layout.grid.key_blocks + b;
                for (auto e = transposed.offsets(segment); e < transposed.offsets(segment + 1); ++e, ++seen) {
                    EXPECT_TRUE(e == transposed.offsets(segment) || transposed.rows(e) > transposed.rows(e - 1));
                    const auto row = first_row + transposed.rows(e);
                    EXPECT_TRUE(std::binary_search(host.columns.begin() + host.offsets[row],
                                                   host.columns.begin() + host.offsets[row + 1],
                                                   b - layout.grid.key_block_begin(s)));
                }
            }
            for (int key = 0; key < sequences.key_length(s); ++key) {
                const std::int64_t segment = std::int64_t{list} * sequences.keys() + sequences.key_offsets()[s] + key;
                for (auto e = transposed.key_offsets(segment); e < transposed.key_offsets(segment + 1);
                     ++e, ++keys_seen) {
                    const auto row = first_row + transposed.key_rows(e);
                    EXPECT_TRUE(std::binary_search(host.keys.begin() + host.key_offsets[row],
                                                   host.keys.begin() + host.key_offsets[row + 1], key));
                }
            }
        }
    }
    EXPECT_EQ(seen, host.columns.size());
    EXPECT_EQ(keys_seen, host.keys.size());
}

TEST(BlockLayout, StatisticsCountPairs) {
    const Exec exec;
    const HostSequences sequences({0, 200, 333}, {0, 300, 433});
    const HostLists host = random_lists(sequences, 64, true, 2);
    const std::vector<Window> windows = {{}, {10, 50, 0}, {}};
    const auto layout = layout_from_lists(exec, sequences, 64, true, host, {0, 1, 1}, windows);
    const LayoutStatistics counted = statistics(exec, sequences, layout);
    double kept = 0, all = 0;
    for (int h = 0; h < 3; ++h) {
        for (int s = 0; s < sequences.count(); ++s) {
            const TokenRule rule{sequences.query_length(s), sequences.key_length(s), true, windows[h]};
            const TokenRule dense{rule.queries, rule.keys, true, {}};
            for (int i = 0; i < rule.queries; ++i) {
                const std::int64_t row = layout.head_list(h) * layout.grid.rows + layout.grid.row_begin(s) + i / 64;
                for (int j = 0; j < rule.keys; ++j) {
                    all += dense.visible(i, j);
                    const bool listed = std::binary_search(host.columns.begin() + host.offsets[row],
                                                           host.columns.begin() + host.offsets[row + 1], j / 64) ||
                                        std::binary_search(host.keys.begin() + host.key_offsets[row],
                                                           host.keys.begin() + host.key_offsets[row + 1], j);
                    kept += listed && rule.visible(i, j);
                }
            }
        }
    }
    EXPECT_EQ(counted.kept_pairs, kept);
    EXPECT_EQ(counted.all_pairs, all);
    EXPECT_GT(counted.single_keys, 0);
    const auto dense = build_layout(exec, sequences, 128, true, {HeadMode::dense()});
    EXPECT_EQ(statistics(exec, sequences, dense).density(), 1.0);
}

TEST(BlockLayout, ValidateNamesTheFirstBadEntry) {
    const Exec exec;
    const HostSequences sequences({0, 200});
    const auto message = [&](const HostLists& lists, int block = 64) -> std::string {
        try {
            layout_from_lists(exec, sequences, block, true, lists, {0}, {Window{}});
        } catch (const InvalidArgument& error) {
            return error.what();
        }
        return "no error";
    };
    const HostLists good{{0, 1, 3, 5, 7}, {0, 0, 1, 0, 2, 1, 3}, {}, {}};
    EXPECT_EQ(message(good), "no error");
    HostLists bad = good;
    bad.columns[1] = 1;
    bad.columns[2] = 0;
    EXPECT_THAT(message(bad),
                testing::HasSubstr("layout list 0, sequence 0, query block 1, entry 1 is 0, must be above"));
    bad = good;
    bad.columns[0] = 1;
    EXPECT_THAT(message(bad), testing::HasSubstr("query block 0, entry 0 is 1, must be a visible key block, 0..0"));
    bad = good;
    bad.offsets.pop_back();
    EXPECT_THAT(message(bad), testing::HasSubstr("layout.offsets.size() is 4, must be"));
    bad = good;
    bad.key_offsets = {0, 0, 0, 1, 1};
    bad.keys = {1};
    EXPECT_THAT(message(bad), testing::HasSubstr("query block 2, single key 0 is 1, must be outside"));
    bad.keys = {70};
    EXPECT_EQ(message(bad), "no error");
    bad.key_offsets = {0, 1, 1, 1, 1};
    EXPECT_THAT(message(bad), testing::HasSubstr("query block 0, single key 0 is 70, must be a visible key"));
}

TEST(Sequences, RejectBadOffsets) {
    EXPECT_THROW(HostSequences({1, 2}), InvalidArgument);
    EXPECT_THROW(HostSequences({0, 5, 4}), InvalidArgument);
    EXPECT_THROW(HostSequences(std::vector<std::int32_t>{}), InvalidArgument);
    EXPECT_THROW(HostSequences({0, 5}, {0, 5, 6}), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
