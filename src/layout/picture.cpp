#include "sparseattn/layout/picture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/xml.hpp"

namespace sparseattn {
namespace {

constexpr int shades = 16;
constexpr int hidden = -1;  // dense attention sees nothing there: the background
constexpr double edge = 360, gap = 24, caption = 22, heading = 30;

int shade(float share) {
    return share < 0 ? hidden : static_cast<int>(std::ceil(std::min(share, 1.0F) * shades));
}

struct Run {
    int begin, end, shade;
    friend bool operator==(const Run&, const Run&) = default;
};

// Neighbours of one shade in one row of cells; the background makes no run.
std::vector<Run> runs_of_row(const DensityMap& map, int row) {
    std::vector<Run> runs;
    const float* share = map.share.data() + static_cast<std::size_t>(row) * map.columns;
    for (int c = 0; c < map.columns; ++c) {
        const int value = shade(share[c]);
        if (value == hidden) continue;
        if (!runs.empty() && runs.back().end == c && runs.back().shade == value) {
            runs.back().end = c + 1;
        } else {
            runs.push_back({c, c + 1, value});
        }
    }
    return runs;
}

// One path per shade, in cells: a run that equals one of the row above makes its rectangle taller.
std::array<std::string, shades + 1> paths(const DensityMap& map) {
    std::array<std::string, shades + 1> path;
    std::vector<std::pair<Run, int>> open;  // with their first rows, by column
    for (int row = 0; row <= map.rows; ++row) {
        const std::vector<Run> runs = row < map.rows ? runs_of_row(map, row) : std::vector<Run>();
        std::vector<std::pair<Run, int>> next;
        auto above = open.begin();
        const auto close_until = [&](int column) {
            for (; above != open.end() && above->first.begin < column; ++above) {
                const auto& [run, top] = *above;
                const int width = run.end - run.begin;
                path[run.shade] += concat('M', run.begin, ' ', top, 'h', width, 'v', row - top, 'h', -width, 'z');
            }
        };
        for (const Run& run : runs) {
            close_until(run.begin);
            if (above != open.end() && above->first == run) {
                next.push_back(*above++);
            } else {
                next.emplace_back(run, row);
            }
        }
        close_until(map.columns);
        open = std::move(next);
    }
    return path;
}

std::string number(double value, const char* format = "%.6g") {
    char text[32];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

// One map in a square of `edge` units.
std::string drawing(const DensityMap& map) {
    const double scale = edge / std::max({map.rows, map.columns, 1});
    std::string out = concat("<g transform=\"scale(", number(scale), ")\" shape-rendering=\"crispEdges\">\n",
                             "<rect class=\"hidden\" width=\"", map.columns, "\" height=\"", map.rows, "\"/>\n");
    const auto path = paths(map);
    for (int s = 0; s <= shades; ++s) {
        if (!path[s].empty()) out += concat("<path class=\"s", s, "\" d=\"", path[s], "\"/>\n");
    }
    std::string borders;
    for (const std::int32_t query : map.query_borders) {
        borders += concat("M0 ", number(double(query) / map.cell), 'h', map.columns);
    }
    for (const std::int32_t key : map.key_borders) {
        borders += concat('M', number(double(key) / map.cell), " 0v", map.rows);
    }
    if (!borders.empty()) {
        out += concat("<path class=\"border\" d=\"", borders, "\" stroke-width=\"", number(1 / scale), "\"/>\n");
    }
    return out + "</g>\n";
}

std::string style() {
    std::string out =
        "<style>text{font:13px "
        "system-ui,sans-serif;fill:#1d2430}.hidden{fill:#d9dde3}.border{stroke:#d35400;fill:none}";
    for (int s = 0; s <= shades; ++s) {
        // The first step is a tenth of the way from white: a cell that keeps one pair shows.
        const double dark = s == 0 ? 0 : 0.1 + 0.9 * s / shades;
        const auto channel = [&](int full) { return static_cast<int>(std::lround(255 - dark * (255 - full))); };
        out += concat(".s", s, "{fill:rgb(", channel(16), ',', channel(42), ',', channel(86), ")}");
    }
    return out + "</style>\n";
}

}  // namespace

std::string svg_picture(const std::string& title, const std::vector<DensityMap>& maps) {
    const int across = std::max(1, static_cast<int>(std::ceil(std::sqrt(static_cast<double>(maps.size())))));
    const int down = std::max(1, (static_cast<int>(maps.size()) + across - 1) / across);
    const double width = gap + across * (edge + gap), height = heading + down * (edge + caption + gap);
    std::string out = concat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", width, "\" height=\"", height,
                             "\" viewBox=\"0 0 ", width, ' ', height, "\">\n<title>", escape_xml(title), "</title>\n",
                             style(), "<rect fill=\"#ffffff\" width=\"", width, "\" height=\"", height,
                             "\"/>\n<text x=\"", gap, "\" y=\"20\">", escape_xml(title), "</text>\n");
    for (std::size_t m = 0; m < maps.size(); ++m) {
        const DensityMap& map = maps[m];
        require(map.share.size() == static_cast<std::size_t>(map.rows) * static_cast<std::size_t>(map.columns),
                "size of the density map", map.share.size(), concat(map.rows, " x ", map.columns));
        const double x = gap + static_cast<double>(m % across) * (edge + gap);
        const double y = heading + static_cast<double>(m / across) * (edge + caption + gap);
        out += concat("<g transform=\"translate(", x, ' ', y, ")\">\n<text y=\"14\">head ", map.head, ", kept ",
                      number(100 * map.density, "%.3g"), " % of ", map.queries, " x ", map.keys,
                      "</text>\n<g transform=\"translate(0 ", caption, ")\">\n", drawing(map), "</g>\n</g>\n");
    }
    return out + "</svg>\n";
}

}  // namespace sparseattn
