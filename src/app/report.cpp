#include "sparseattn/app/report.hpp"

#include "sparseattn/app/detail/svg.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/xml.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace {

const char style[] = R"(
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2430; --faint: #d9dde3; --soft: #5b6675;
        --c0: #2962af; --c1: #d35400; --c2: #1e8449; --c3: #8e44ad; --c4: #b7950b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181f; --ink: #e3e7ee; --faint: #343c48; --soft: #9aa5b4;
          --c0: #6fa8ff; --c1: #ff9f5a; --c2: #62d394; --c3: #c79bea; --c4: #e6c84f; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1360px; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
p.sub { color: var(--soft); margin-top: .2rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 0 2rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; font-family: system-ui, sans-serif; }
.grid { stroke: var(--faint); stroke-width: 1; } .curve { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.dashed { stroke-dasharray: 6 4; } circle { fill: currentColor; }
svg text.gate { fill: #14181f; font-size: 11px; } svg text.gate.light { fill: #ffffff; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); } .c4 { color: var(--c4); }
.legend span { margin-right: 1.2rem; white-space: nowrap; } .legend b { font-weight: 400; color: var(--ink); }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; } th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
pre { background: color-mix(in srgb, var(--ink) 6%, var(--paper)); padding: .8rem; overflow-x: auto; font-size: 13px; }
)";

std::string html_row(const std::vector<std::string>& cells, const char* tag) {
    std::string row = "<tr>";
    for (const std::string& cell : cells) row += concat('<', tag, '>', escape_xml(cell), "</", tag, '>');
    return row + "</tr>\n";
}

std::string html_table(const TextTable& table) {
    std::string out = "<table>\n<thead>" + html_row(table.header(), "th") + "</thead>\n<tbody>\n";
    for (const auto& row : table.rows()) out += html_row(row, "td");
    return out + "</tbody>\n</table>\n";
}

std::string html_chart(const ReportChart& chart) {
    std::string out = concat("<div>\n<h2>", escape_xml(chart.title), "</h2>\n<div class=\"legend\">");
    for (std::size_t i = 0; i < chart.series.size(); ++i) {
        const ReportSeries& series = chart.series[i];
        out += concat("<span class=\"c", i % 5, "\">", series.dashed ? "- - " : "\u2014 ", "<b>",
                      escape_xml(series.name), "</b></span>");
    }
    return out + "</div>\n" + detail::svg_chart(chart) + "</div>\n";
}

std::string html_details(const char* title, const std::string& text) {
    if (text.empty()) return "";
    return concat("<details><summary>", title, "</summary><pre>", escape_xml(text), "</pre></details>\n");
}

}  // namespace

std::string report_html(const ReportData& data) {
    std::string out = concat(
        "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta "
        "charset=\"utf-8\"/>\n",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>", escape_xml(data.title),
        "</title>\n<style>", style, "</style>\n</head>\n<body>\n<h1>", escape_xml(data.title),
        "</h1>\n<p class=\"sub\">", escape_xml(data.subtitle), "</p>\n");
    for (const TextTable& table : data.tables) out += html_table(table);
    out += "<div class=\"charts\">\n";
    for (const ReportChart& chart : data.charts) out += html_chart(chart);
    out += "</div>\n";
    if (!data.head_map.gates.empty()) {
        out +=
            "<h2>Head map</h2>\n<p class=\"sub\">Deployed gates: blue (1) keeps full attention, orange (0) "
            "the sparse branch.</p>\n";
        out += detail::svg_head_map(data.head_map);
    }
    out += html_details("Deck", data.deck);
    out += html_details("Build and environment", data.environment);
    return out + "</body>\n</html>\n";
}

void write_report(const std::filesystem::path& file, const ReportData& data) {
    write_file_atomically(file, report_html(data));
}

}  // namespace sparseattn
