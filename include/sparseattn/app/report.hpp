#pragma once
/// \file
/// The report of a run: one HTML file with inline pictures that needs nothing else to look at.

#include <filesystem>
#include <string>
#include <vector>

#include "sparseattn/app/text.hpp"

namespace sparseattn {

/// One curve. Points with NaN are gaps.
struct ReportSeries {
    std::string name;
    std::vector<double> x;
    std::vector<double> y;  // as many as x
    bool dashed = false;    // a target rather than a measurement
    bool marked = false;    // few points: show each
};

struct ReportChart {
    std::string title;
    std::string x_label;
    std::string y_label;
    std::vector<ReportSeries> series;
};

/// Gates [layers, heads] in [0, 1], row-major: 1 full attention, 0 streaming.
struct ReportHeadMap {
    int layers = 0;
    int heads = 0;
    std::vector<double> gates;
};

struct ReportData {
    std::string title;
    std::string subtitle;
    std::vector<TextTable> tables;
    std::vector<ReportChart> charts;
    ReportHeadMap head_map;   // no picture when empty
    std::string deck;         // merged deck
    std::string environment;  // environment_report()
};

/// The report as XHTML-clean HTML text, light or dark as the reader's system is. Errors: InvalidArgument when sizes do
/// not fit together.
[[nodiscard]] std::string report_html(const ReportData& data);

/// Writes the report; the file appears complete or not at all. FileError when it cannot be written.
void write_report(const std::filesystem::path& file, const ReportData& data);

}  // namespace sparseattn
