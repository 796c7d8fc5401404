#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "sparseattn/app/detail/svg.hpp"
#include "sparseattn/app/report.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

ReportData example() {
    ReportData data;
    data.title = "A & B <run>";
    data.subtitle = "two \"ranks\"\x01";
    TextTable table({"result", "value"});
    table.add_row({"loss", "1 < 2"});
    data.tables = {table};
    ReportSeries training{"training", {}, {}};
    for (int step = 1; step <= 2500; ++step) {
        training.x.push_back(step);
        training.y.push_back(5.5 * std::exp(-step / 600.0) + 0.8);
    }
    training.y[100] = std::nan("");
    const ReportSeries validation{"validation", {500, 1500, 2500}, {2.5, 1.4, 1.0}, false, true};
    const ReportSeries empty{"nothing", {}, {}};
    const ReportSeries constant{"constant", {1, 2}, {0, 0}, true};
    data.charts = {
        {"Loss", "step", "nats", {training, validation}}, {"Flat", "x", "y", {constant}}, {"None", "x", "y", {empty}}};
    data.head_map = {2, 3, {0, 0.25, 0.5, 0.75, 1, 1}};
    data.deck = "[run]\nseed = 1 # <&>\n";
    data.environment = "host: x";
    return data;
}

/// Every element closed in order, every & an entity: what an XML reader insists on. Enough for the tags a report has.
void expect_well_formed(const std::string& text) {
    std::vector<std::string> open;
    for (std::size_t at = 0; at < text.size(); ++at) {
        if (text[at] == '&') {
            const std::string rest = text.substr(at, 7);
            EXPECT_THAT(rest, testing::AnyOf(testing::StartsWith("&amp;"), testing::StartsWith("&lt;"),
                                             testing::StartsWith("&gt;"), testing::StartsWith("&quot;")));
        }
        if (text[at] != '<') continue;
        const std::size_t end = text.find('>', at);
        ASSERT_NE(end, std::string::npos);
        const std::string tag = text.substr(at + 1, end - at - 1);
        EXPECT_EQ(tag.find('<'), std::string::npos) << tag;
        if (tag[0] == '/') {
            ASSERT_FALSE(open.empty()) << tag;
            ASSERT_EQ("/" + open.back(), tag);
            open.pop_back();
        } else if (tag[0] != '!' && tag.back() != '/') {
            open.push_back(tag.substr(0, tag.find(' ')));
        }
        at = end;
    }
    EXPECT_THAT(open, testing::IsEmpty());
}

TEST(Report, IsWellFormedAndSelfContained) {
    const std::string html = report_html(example());
    expect_well_formed(html);
    EXPECT_THAT(html, testing::HasSubstr("A &amp; B &lt;run&gt;"));
    EXPECT_THAT(html, testing::HasSubstr("seed = 1 # &lt;&amp;&gt;"));
    EXPECT_THAT(html, testing::Not(testing::HasSubstr("\x01")));
    EXPECT_THAT(html, testing::Not(testing::HasSubstr("nan")));
    EXPECT_THAT(html, testing::Not(testing::HasSubstr("inf\"")));
    for (const char* foreign : {"<script", "<link", "src=", "url(", "@import"}) {
        EXPECT_THAT(html, testing::Not(testing::HasSubstr(foreign)));
    }
    EXPECT_LT(html.size(), 60000U);
    if (const char* keep = std::getenv("SPARSEATTN_KEEP_REPORT")) std::ofstream(keep) << html;
}

TEST(Report, CurvesAreDrawnInsideTheFrame) {
    const std::string svg = detail::svg_chart({"t", "x", "y", {{"s", {0, 10}, {1, 3}}}});
    // From the left edge to the right edge; the larger value higher up.
    const std::size_t at = svg.find(" d=\"M64 ");
    ASSERT_NE(at, std::string::npos) << svg;
    double x1 = 0;
    double y1 = 0;
    double x2 = 0;
    double y2 = 0;
    ASSERT_EQ(std::sscanf(svg.c_str() + at, " d=\"M%lf %lfL%lf %lf", &x1, &y1, &x2, &y2), 4);
    EXPECT_EQ(x2, 610);
    EXPECT_LT(y2, y1);
    EXPECT_GT(y2, 14);
    EXPECT_LT(y1, 254);
}

TEST(Report, SizesMustFit) {
    EXPECT_THROW((void)detail::svg_chart({"t", "x", "y", {{"s", {0, 10}, {1}}}}), InvalidArgument);
    EXPECT_THROW((void)detail::svg_head_map({2, 2, {1}}), InvalidArgument);
}

TEST(Report, IsWrittenWhole) {
    const std::filesystem::path folder = std::filesystem::temp_directory_path() / "sparseattn_test_report";
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    write_report(folder / "report.html", example());
    std::ifstream in(folder / "report.html");
    std::ostringstream text;
    text << in.rdbuf();
    EXPECT_EQ(text.str(), report_html(example()));
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
    EXPECT_THROW(write_report(folder / "missing" / "report.html", example()), FileError);
    std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace sparseattn
