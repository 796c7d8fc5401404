#include "sparseattn/app/detail/svg.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/xml.hpp"

namespace sparseattn::detail {
namespace {

constexpr double width = 640;
constexpr double height = 300;
constexpr double left = 64;
constexpr double right = 30;
constexpr double top = 14;
constexpr double bottom = 46;
constexpr std::size_t most_points = 1000;
constexpr int colours = 5;  // classes c0 .. c4 of the style sheet

struct Range {
    double low = std::numeric_limits<double>::infinity();
    double high = -std::numeric_limits<double>::infinity();

    void add(double value) {
        if (!std::isfinite(value)) return;
        low = std::min(low, value);
        high = std::max(high, value);
    }
    /// Never empty, and a little wider than the data when `margin`.
    void close(bool margin) {
        if (low > high) *this = {0, 1};
        if (low == high) {
            const double half = low == 0 ? 0.5 : std::abs(low) / 2;
            low -= half;
            high += half;
        }
        const double pad = margin ? 0.04 * (high - low) : 0;
        low -= pad;
        high += pad;
    }
    [[nodiscard]] double share(double value) const { return (value - low) / (high - low); }
};

/// Multiples of 1, 2 or 5 times a power of ten inside the range, about `wanted` of them.
std::vector<double> ticks(const Range& range, int wanted) {
    const double raw = (range.high - range.low) / wanted;
    const double power = std::pow(10, std::floor(std::log10(raw)));
    const double ratio = raw / power;
    const double step = power * (ratio > 5 ? 10 : ratio > 2 ? 5 : ratio > 1 ? 2 : 1);
    std::vector<double> values;
    for (double i = std::ceil(range.low / step); i * step <= range.high && values.size() < 50; ++i)
        values.push_back(i * step);
    return values;
}

struct Point {
    double x;
    double y;
};

/// Means of equal runs of points, so that a long run's curve stays small; a run with a gap is a gap.
std::vector<Point> thinned(const ReportSeries& series) {
    const std::size_t stride = (series.x.size() + most_points - 1) / most_points;
    std::vector<Point> points;
    for (std::size_t begin = 0; begin < series.x.size(); begin += stride) {
        const std::size_t end = std::min(begin + stride, series.x.size());
        Point mean{0, 0};
        for (std::size_t i = begin; i < end; ++i) {
            mean.x += series.x[i] / static_cast<double>(end - begin);
            mean.y += series.y[i] / static_cast<double>(end - begin);
        }
        points.push_back(mean);
    }
    return points;
}

class Chart {
  public:
    explicit Chart(const ReportChart& chart) : chart_(chart) {
        for (const ReportSeries& series : chart.series) {
            require(series.x.size() == series.y.size(), concat("points of series ", series.name), series.y.size(),
                    concat(series.x.size(), ", one per x"));
            for (const double x : series.x) x_.add(x);
            for (const double y : series.y) y_.add(y);
        }
        x_.close(false);
        y_.close(true);
    }

    std::string svg() {
        out_ = concat("<svg viewBox=\"0 0 ", width, ' ', height, "\" role=\"img\" aria-label=\"",
                      escape_xml(chart_.title), "\">\n");
        axes();
        for (std::size_t i = 0; i < chart_.series.size(); ++i) curve(chart_.series[i], concat("c", i % colours));
        return out_ + "</svg>\n";
    }

  private:
    [[nodiscard]] double across(double x) const { return round(left + x_.share(x) * (width - left - right)); }
    [[nodiscard]] double down(double y) const { return round(height - bottom - y_.share(y) * (height - top - bottom)); }
    static double round(double value) { return std::round(value * 10) / 10; }

    void axes() {
        const double floor = height - bottom;
        for (const double y : ticks(y_, 5)) {
            out_ += concat("<line class=\"grid\" x1=\"", left, "\" x2=\"", width - right, "\" y1=\"", down(y),
                           "\" y2=\"", down(y), "\"/>", "<text x=\"", left - 6, "\" y=\"", down(y) + 4,
                           "\" text-anchor=\"end\">", label(y, y_), "</text>\n");
        }
        for (const double x : ticks(x_, 6)) {
            out_ += concat("<line class=\"grid\" x1=\"", across(x), "\" x2=\"", across(x), "\" y1=\"", top, "\" y2=\"",
                           floor, "\"/>", "<text x=\"", across(x), "\" y=\"", floor + 16, "\" text-anchor=\"middle\">",
                           label(x, x_), "</text>\n");
        }
        out_ += concat("<text x=\"", (left + width - right) / 2, "\" y=\"", height - 8, "\" text-anchor=\"middle\">",
                       escape_xml(chart_.x_label), "</text>\n");
        out_ += concat("<text transform=\"translate(13 ", (top + floor) / 2, ") rotate(-90)\" text-anchor=\"middle\">",
                       escape_xml(chart_.y_label), "</text>\n");
    }

    static std::string label(double value, const Range& range) {
        // A rounding error of the tick's sum must not show as 1e-17.
        return format_number(std::abs(value) < 1e-9 * (range.high - range.low) ? 0.0 : value, 6);
    }

    void curve(const ReportSeries& series, const std::string& colour) {
        std::string path;
        std::string marks;
        bool down_pen = false;
        for (const Point& point : thinned(series)) {
            if (!std::isfinite(point.x) || !std::isfinite(point.y)) {
                down_pen = false;
                continue;
            }
            path += concat(down_pen ? 'L' : 'M', across(point.x), ' ', down(point.y));
            down_pen = true;
            if (series.marked)
                marks += concat("<circle cx=\"", across(point.x), "\" cy=\"", down(point.y), "\" r=\"3\"/>");
        }
        if (path.empty()) return;
        out_ += concat("<g class=\"", colour, "\"><path class=\"curve", series.dashed ? " dashed" : "", "\" d=\"", path,
                       "\"/>", marks, "</g>\n");
    }

    const ReportChart& chart_;
    Range x_;
    Range y_;
    std::string out_;
};

/// From orange (0, streaming) over grey to blue (1, full attention).
std::string gate_colour(double gate) {
    const double z = std::clamp(std::isfinite(gate) ? gate : 0.0, 0.0, 1.0);
    constexpr double ends[3][3] = {{230, 126, 34}, {200, 200, 200}, {41, 98, 175}};
    const int part = z < 0.5 ? 0 : 1;
    const double share = 2 * z - part;
    int rgb[3];
    for (int c = 0; c < 3; ++c)
        rgb[c] = static_cast<int>(std::lround(ends[part][c] + share * (ends[part + 1][c] - ends[part][c])));
    return concat("rgb(", rgb[0], ',', rgb[1], ',', rgb[2], ')');
}

}  // namespace

std::string svg_chart(const ReportChart& chart) {
    return Chart(chart).svg();
}

std::string svg_head_map(const ReportHeadMap& map) {
    require(map.gates.size() == static_cast<std::size_t>(map.layers) * static_cast<std::size_t>(map.heads),
            "gates of the head map", map.gates.size(), concat(map.layers, " x ", map.heads));
    constexpr double margin = 56;
    const double cell = std::clamp(560.0 / std::max(map.heads, 1), 6.0, 40.0);
    const bool numbers = cell >= 26;
    const double high = std::min(cell, 26.0);
    std::string out =
        concat("<svg class=\"map\" viewBox=\"0 0 ", margin + cell * map.heads + 4, ' ', 26 + high * map.layers,
               "\" style=\"max-width:", margin + cell * map.heads + 4, "px\" role=\"img\" aria-label=\"head map\">\n");
    out += concat("<text x=\"", margin, "\" y=\"14\">key/value head</text>\n");
    for (int layer = 0; layer < map.layers; ++layer) {
        const double y = 22 + high * layer;
        if (high >= 12)
            out += concat("<text x=\"", margin - 6, "\" y=\"", y + high / 2 + 4, "\" text-anchor=\"end\">layer ", layer,
                          "</text>\n");
        for (int head = 0; head < map.heads; ++head) {
            const double gate = map.gates[static_cast<std::size_t>(layer) * map.heads + head];
            out += concat("<rect x=\"", margin + cell * head, "\" y=\"", y, "\" width=\"", cell - 1, "\" height=\"",
                          high - 1, "\" fill=\"", gate_colour(gate), "\"><title>layer ", layer, ", head ", head, ": ",
                          format_number(gate, 3), "</title></rect>\n");
            if (numbers) {
                out += concat("<text class=\"gate", gate > 0.75 ? " light" : "", "\" x=\"",
                              margin + cell * (head + 0.5) - 0.5, "\" y=\"", y + high / 2 + 4,
                              "\" text-anchor=\"middle\">", format_number(gate, 2), "</text>\n");
            }
        }
    }
    return out + "</svg>\n";
}

}  // namespace sparseattn::detail
