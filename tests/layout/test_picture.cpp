#include "sparseattn/layout/picture.hpp"

#include <gmock/gmock.h>

#include <cmath>
#include <sstream>

#include "sparseattn/core/error.hpp"
#include "sparseattn/layout/builders.hpp"
#include "support/arrays.hpp"

namespace sparseattn {
namespace {

using test::Exec;
using test::Mem;
using testing::HasSubstr;

const Exec exec;

struct Counts {
    std::vector<double> kept, all;
};

// Token by token.
Counts count_cells(const Sequences<Mem>& sequences, const BlockLayout<Mem>& layout, int head, int cell, int columns) {
    const HostLists lists = copy_lists(exec, layout);
    const auto head_list = detail::to_host(exec, layout.head_list);
    const auto windows = detail::to_host(exec, layout.windows);
    const int rows = (sequences.queries() + cell - 1) / cell;
    Counts counts;
    counts.kept.assign(static_cast<std::size_t>(rows) * columns, 0);
    counts.all = counts.kept;
    std::int64_t row_begin = static_cast<std::int64_t>(head_list[head]) * layout.grid.rows;
    for (int s = 0; s < sequences.count(); ++s) {
        const TokenRule rule{sequences.query_length(s), sequences.key_length(s), layout.causal, windows[head]};
        for (int i = 0; i < rule.queries; ++i) {
            const std::int64_t row = row_begin + i / layout.grid.block;
            for (int j = 0; j < std::min(rule.key_end(i), rule.keys); ++j) {
                const std::size_t at = static_cast<std::size_t>((sequences.query_offsets()[s] + i) / cell) * columns +
                                       (sequences.key_offsets()[s] + j) / cell;
                counts.all[at] += 1;
                bool listed = false;
                for (auto e = lists.offsets[row]; e < lists.offsets[row + 1]; ++e)
                    listed |= lists.columns[e] == j / layout.grid.block;
                for (auto e = lists.keys.empty() ? 0 : lists.key_offsets[row];
                     e < (lists.keys.empty() ? 0 : lists.key_offsets[row + 1]); ++e)
                    listed |= lists.keys[e] == j;
                if (listed && rule.visible(i, j)) counts.kept[at] += 1;
            }
        }
        row_begin += (rule.queries + layout.grid.block - 1) / layout.grid.block;
    }
    return counts;
}

BlockLayout<Mem> layout_with_singles(const Sequences<Mem>& sequences) {
    // Rows of one sequence of 300 queries and keys: own block, block 0, one column in between for the last ones.
    HostLists lists;
    lists.offsets = {0, 1, 3, 5, 7, 9};
    lists.columns = {0, 0, 1, 0, 2, 0, 3, 0, 4};
    lists.key_offsets = {0, 0, 0, 1, 3, 4};
    lists.keys = {100, 70, 150, 150};
    return layout_from_lists(exec, sequences, 64, true, lists, {0}, {Window{}});
}

TEST(Picture, SharesAreCountedExactly) {
    const Sequences<Mem> sequences({0, 1, 1, 130, 430}, {0, 1, 20, 300, 620});
    const std::vector<HeadMode> modes = {HeadMode::dense(), HeadMode::stream(10, 70),
                                         HeadMode::stream(64, 64, Granularity::block),
                                         HeadMode::stream(10, 70, Granularity::token, 100)};
    for (const bool causal : {true, false}) {
        for (const int most : {7, 100, 1024}) {
            const auto layout = build_layout(exec, sequences, 64, causal, modes);
            const LayoutStatistics counted = statistics(exec, sequences, layout);
            const auto maps = density_maps(exec, sequences, layout, {0, 1, 2, 3}, most);
            for (const DensityMap& map : maps) {
                EXPECT_LE(map.columns, most);
                EXPECT_NEAR(map.density, counted.head_density[map.head], 1e-12);
                const Counts counts = count_cells(sequences, layout, map.head, map.cell, map.columns);
                ASSERT_EQ(map.share.size(), counts.all.size());
                for (std::size_t i = 0; i < counts.all.size(); ++i) {
                    const double wanted = counts.all[i] == 0 ? -1 : counts.kept[i] / counts.all[i];
                    ASSERT_NEAR(map.share[i], wanted, 1e-6) << "head " << map.head << ", cell " << i;
                }
            }
            EXPECT_EQ(maps[0].query_borders, (std::vector<std::int32_t>{1, 1, 130}));
        }
    }
}

TEST(Picture, SingleKeysShow) {
    const Sequences<Mem> sequences({0, 300});
    const auto layout = layout_with_singles(sequences);
    const DensityMap map = density_maps(exec, sequences, layout, {0})[0];
    EXPECT_EQ(map.cell, 4);
    const Counts counts = count_cells(sequences, layout, 0, 4, map.columns);
    for (std::size_t i = 0; i < counts.all.size(); ++i) {
        ASSERT_NEAR(map.share[i], counts.all[i] == 0 ? -1 : counts.kept[i] / counts.all[i], 1e-6) << i;
    }
    EXPECT_FLOAT_EQ(map.share[static_cast<std::size_t>(200 / 4) * map.columns + 150 / 4], 0.25F);
    // Column 150 of rows 192..299 is one rectangle of shade 4, a cell wide: down to the next block, whose neighbour
    // column 70 ends.
    EXPECT_THAT(svg_picture("t", {map}), HasSubstr(concat("M", 150 / 4, " ", 192 / 4, "h1v", (300 - 192) / 4, "h-1z")));
}

// Draws the rectangles back onto cells.
std::vector<int> shades_of(const std::string& svg, const DensityMap& map) {
    std::vector<int> cells(map.share.size(), -1);
    for (std::size_t at = svg.find("<path class=\"s"); at != std::string::npos;
         at = svg.find("<path class=\"s", at + 1)) {
        std::istringstream in(svg.substr(at + 14, svg.find("\"/>", at) - at - 14));
        int shade = 0;
        std::string skipped;
        in >> shade;
        std::getline(in, skipped, 'M');
        int x = 0, y = 0, w = 0, h = 0;
        char letter = 0;
        while (in >> x >> y >> letter >> w >> letter >> h) {
            for (int r = y; r < y + h; ++r) {
                for (int c = x; c < x + w; ++c) {
                    int& cell = cells[static_cast<std::size_t>(r) * map.columns + c];
                    EXPECT_EQ(cell, -1) << "drawn twice: " << r << ", " << c;
                    cell = shade;
                }
            }
            std::getline(in, skipped, 'M');
        }
    }
    return cells;
}

TEST(Picture, RectanglesDrawTheMap) {
    const Sequences<Mem> sequences({0, 130, 430});
    const auto layout =
        build_layout(exec, sequences, 64, true, {HeadMode::dense(), HeadMode::stream(30, 90), HeadMode::stream(5, 3)});
    for (const DensityMap& map : density_maps(exec, sequences, layout, {0, 1, 2}, 200)) {
        const std::vector<int> cells = shades_of(svg_picture("t", {map}), map);
        for (std::size_t i = 0; i < cells.size(); ++i) {
            const float share = map.share[i];
            ASSERT_EQ(cells[i], share < 0 ? -1 : static_cast<int>(std::ceil(share * 16))) << "cell " << i;
        }
    }
}

TEST(Picture, TextIsRepeatableAndEscaped) {
    const Sequences<Mem> sequences({0, 200});
    const auto layout = build_layout(exec, sequences, 64, true, {HeadMode::dense(), HeadMode::stream(1, 8)});
    const auto maps = density_maps(exec, sequences, layout, {0, 1});
    const std::string svg = svg_picture("layer 3: a < b & \"c\"", maps);
    EXPECT_EQ(svg, svg_picture("layer 3: a < b & \"c\"", density_maps(exec, sequences, layout, {0, 1})));
    EXPECT_THAT(svg, HasSubstr("layer 3: a &lt; b &amp; &quot;c&quot;"));
    EXPECT_THAT(svg, HasSubstr("head 0, kept 100 % of 200 x 200"));
    EXPECT_THAT(svg, HasSubstr(">head 1, kept "));
    EXPECT_THAT(svg_picture("nothing", {}), HasSubstr("</svg>"));
}

TEST(Picture, SizeIsBounded) {
    constexpr int n = 1 << 15;
    const Sequences<Mem> sequences({0, n});
    const auto layout = build_layout(exec, sequences, 128, true, {HeadMode::stream(100, 300)});
    const auto maps = density_maps(exec, sequences, layout, {0}, 1024);
    EXPECT_EQ(maps[0].cell, 32);
    EXPECT_EQ(maps[0].columns, 1024);
    EXPECT_LT(svg_picture("t", maps).size(), std::size_t(300) << 10);
}

TEST(Picture, RefusesWhatDoesNotFit) {
    const Sequences<Mem> sequences({0, 200});
    const auto layout = build_layout(exec, sequences, 64, true, {HeadMode::dense()});
    EXPECT_THROW(static_cast<void>(density_maps(exec, sequences, layout, {1})), InvalidArgument);
    EXPECT_THROW(static_cast<void>(density_maps(exec, sequences, layout, {0}, 0)), InvalidArgument);
    EXPECT_THROW(static_cast<void>(density_maps(exec, sequences, layout, {0}, 1025)), InvalidArgument);
    DensityMap map = density_maps(exec, sequences, layout, {0})[0];
    map.rows += 1;
    EXPECT_THROW(static_cast<void>(svg_picture("t", {map})), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
