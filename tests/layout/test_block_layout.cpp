#include <gmock/gmock.h>

#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/layout/detail/transpose.hpp"
#include "support/kokkos_tools.hpp"

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

// The way of a device, run on the host: the same arrays, also where lists are longer than their offsets say.
TEST(BlockLayout, BothWaysToTransposeAgree) {
    const Exec exec;
    using Mem = Exec::memory_space;
    for (const auto& offsets : {std::vector<std::int32_t>{0, 300, 300, 777, 5000}, {0, 1}, {0, 0}, {0, 3100}}) {
        const HostSequences sequences(offsets);
        const HostLists host = random_lists(sequences, 64, true, 3);
        const auto layout = layout_from_lists(exec, sequences, 64, true, host, {0, 1, 2, 1}, std::vector<Window>(4));
        const auto expected = transpose(exec, sequences, layout);
        const auto transposed = [&](int columns, const auto& begin, const auto& list_offsets, const auto& entries) {
            const Array1<std::int32_t, Mem> longer("longer", entries.extent(0) + 9);
            Kokkos::deep_copy(longer, 77);
            for (std::size_t i = 0; i < entries.extent(0); ++i) longer(i) = entries(i);
            const detail::CsrTranspose<Mem> to{Array1<std::int64_t, Mem>("offsets", layout.lists * columns + 1),
                                               Array1<std::int32_t, Mem>("rows", longer.extent(0))};
            detail::transpose_by_bits(exec, "test", 4223 / 64 + 1,
                                      {sequences.count(), layout.lists, layout.grid.rows, columns,
                                       layout.grid.row_begin, layout.grid.row_sequence, begin, list_offsets, longer},
                                      to);
            return to;
        };
        const auto blocks =
            transposed(layout.grid.key_blocks, layout.grid.key_block_begin, layout.offsets, layout.columns);
        for (std::size_t i = 0; i < blocks.offsets.extent(0); ++i) {
            ASSERT_EQ(blocks.offsets(i), expected.offsets(i)) << i;
        }
        for (std::size_t i = 0; i < layout.columns.extent(0); ++i) ASSERT_EQ(blocks.rows(i), expected.rows(i)) << i;
        if (!layout.has_single_keys()) continue;
        const auto keys = transposed(sequences.keys(), sequences.device_key_offsets(), layout.key_offsets, layout.keys);
        for (std::size_t i = 0; i < layout.keys.extent(0); ++i) ASSERT_EQ(keys.rows(i), expected.key_rows(i)) << i;
    }
}

// Other sequences in the same object: no allocation once the longest list of offsets has been there, and grids see it.
TEST(Sequences, TakeOtherOffsetsInTheSameArrays) {
    const Exec exec;
    HostSequences sequences({0, 300, 777, 900});
    BlockGrid<Exec::memory_space> grid;
    make_block_grid(exec, sequences, 64, grid);
    const std::uint64_t before = sequences.id();
    sequences.assign(exec, {0, 300, 777, 900});
    EXPECT_EQ(sequences.id(), before);
    const testing::KokkosRecording recording;
    for (const auto& offsets : {std::vector<std::int32_t>{0, 70}, {0, 0, 64, 129}, {0, 300, 777, 900}}) {
        const std::uint64_t id = sequences.id();
        sequences.assign(exec, offsets);
        EXPECT_NE(sequences.id(), id);
        ASSERT_EQ(sequences.device_query_offsets().extent(0), offsets.size());
        for (std::size_t s = 0; s < offsets.size(); ++s) {
            EXPECT_EQ(sequences.device_query_offsets()(s), offsets[s]);
            EXPECT_EQ(sequences.device_key_offsets()(s), offsets[s]);
        }
        make_block_grid(exec, sequences, 64, grid);
        int rows = 0;
        for (int s = 0; s < sequences.count(); ++s) {
            EXPECT_EQ(grid.row_begin(s), rows);
            for (int row = 0; row * 64 < sequences.query_length(s); ++row) EXPECT_EQ(grid.row_sequence(rows++), s);
        }
        EXPECT_EQ(grid.rows, rows);
        EXPECT_EQ(grid.sequences, sequences.count());
    }
    EXPECT_THAT(recording.allocations(), ::testing::IsEmpty());
    EXPECT_THROW(sequences.assign(exec, {0, 5, 3}), InvalidArgument);
    EXPECT_EQ(sequences.query_offsets(), (std::vector<std::int32_t>{0, 300, 777, 900}));
}

// Written anew into what was there: nothing is allocated or waited for once the arrays are large enough, whatever was
// there before, and the lists are those of a fresh one.
TEST(BlockLayout, ArraysAreKeptFromCallToCall) {
    const Exec exec;
    const HostSequences sequences({0, 300, 777}), others({0, 500});
    const std::vector<HeadMode> large = {HeadMode::dense(), HeadMode::stream(64, 200)}, small = {HeadMode::dense()};
    BlockLayout<Exec::memory_space> layout;
    TransposedLayout<Exec::memory_space> transposed;
    const auto make = [&](const HostSequences& of, const std::vector<HeadMode>& modes) {
        build_layout(exec, of, 64, true, modes, layout);
        transpose(exec, of, layout, transposed);
    };
    make(sequences, large);
    make(others, small);
    make(sequences, large);
    {
        const testing::KokkosRecording recording;
        make(sequences, large);
        EXPECT_THAT(recording.allocations(), ::testing::IsEmpty());
        EXPECT_TRUE(recording.fences().empty()) << recording.fences()[0];
    }
    for (const auto& [of, modes] : {std::pair{others, small}, {sequences, large}}) {
        make(of, modes);
        const auto fresh = build_layout(exec, of, 64, true, modes);
        EXPECT_GE(layout.columns.extent(0), fresh.columns.extent(0));
        const HostLists was = copy_lists(exec, layout), must = copy_lists(exec, fresh);
        EXPECT_EQ(was.offsets, must.offsets);
        EXPECT_EQ(was.columns, must.columns);
        EXPECT_EQ(statistics(exec, of, layout).visited_blocks, statistics(exec, of, fresh).visited_blocks);
        validate(exec, of, layout);
        const auto fresh_transposed = transpose(exec, of, fresh);
        for (std::size_t i = 0; i < fresh_transposed.rows.extent(0); ++i) {
            ASSERT_EQ(transposed.rows(i), fresh_transposed.rows(i));
        }
    }
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
                ::testing::HasSubstr("layout list 0, sequence 0, query block 1, entry 1 is 0, must be above"));
    bad = good;
    bad.columns[0] = 1;
    EXPECT_THAT(message(bad), ::testing::HasSubstr("query block 0, entry 0 is 1, must be a visible key block, 0..0"));
    bad = good;
    bad.offsets.pop_back();
    EXPECT_THAT(message(bad), ::testing::HasSubstr("layout.offsets.size() is 4, must be"));
    bad = good;
    bad.key_offsets = {0, 0, 0, 1, 1};
    bad.keys = {1};
    EXPECT_THAT(message(bad), ::testing::HasSubstr("query block 2, single key 0 is 1, must be outside"));
    bad.keys = {70};
    EXPECT_EQ(message(bad), "no error");
    bad.key_offsets = {0, 1, 1, 1, 1};
    EXPECT_THAT(message(bad), ::testing::HasSubstr("query block 0, single key 0 is 70, must be a visible key"));
}

TEST(Sequences, RejectBadOffsets) {
    EXPECT_THROW(HostSequences({1, 2}), InvalidArgument);
    EXPECT_THROW(HostSequences({0, 5, 4}), InvalidArgument);
    EXPECT_THROW(HostSequences(std::vector<std::int32_t>{}), InvalidArgument);
    EXPECT_THROW(HostSequences({0, 5}, {0, 5, 6}), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
