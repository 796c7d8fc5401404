#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "sparseattn/app/log.hpp"
#include "sparseattn/app/text.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

TEST(Duration, SecondsAndClockTimes) {
    EXPECT_EQ(parse_duration("90", "t"), 90);
    EXPECT_EQ(parse_duration("0.5", "t"), 0.5);
    EXPECT_EQ(parse_duration("01:02:03", "t"), 3723);
    EXPECT_EQ(parse_duration("100:00:00", "t"), 360000);
    for (const char* bad :
         {"", "abc", "0", "-3", "nan", "inf", "1:30", "00:60:00", "00:00:61", "1:2:3", "::", "10s", "1:-2:03"}) {
        try {
            (void)parse_duration(bad, "--time-limit");
            FAIL() << bad;
        } catch (const DeckError& error) {
            EXPECT_EQ(std::string(error.what()),
                      concat("--time-limit is ", *bad ? bad : "empty", ", must be seconds (above 0) or HH:MM:SS"));
        }
    }
}

TEST(IndexList, NumbersAndRanges) {
    using testing::ElementsAre;
    EXPECT_THAT(parse_index_list("0", "--layers", 1), ElementsAre(0));
    EXPECT_THAT(parse_index_list("7-9,3,0,8", "--layers", 10), ElementsAre(0, 3, 7, 8, 9));
    for (const char* bad : {"", "x", "-1", "3-", "-", "5-3", "1,,2", "1,", "10", "0-10", "1 2", "1.5"}) {
        try {
            (void)parse_index_list(bad, "--layers", 10);
            FAIL() << bad;
        } catch (const DeckError& error) {
            EXPECT_EQ(std::string(error.what()), concat("--layers is ", *bad ? bad : "empty",
                                                        ", must be numbers and ranges like 0,3,7-9, all below 10"));
        }
    }
}

TEST(Format, DurationsBytesNumbers) {
    EXPECT_EQ(format_duration(0.04), "0.0 s");
    EXPECT_EQ(format_duration(7.26), "7.3 s");
    EXPECT_EQ(format_duration(9.97), "10 s");
    EXPECT_EQ(format_duration(185), "3 min 05 s");
    EXPECT_EQ(format_duration(7620), "2 h 07 min");
    EXPECT_EQ(format_duration(3 * 86400 + 4 * 3600), "3 d 04 h");
    EXPECT_EQ(format_duration(std::nan("")), "-");
    EXPECT_EQ(format_bytes(0), "0 B");
    EXPECT_EQ(format_bytes(1536), "1.5 KiB");
    EXPECT_EQ(format_bytes((std::int64_t{1} << 20) - 1), "1.0 MiB");
    EXPECT_EQ(format_bytes(std::int64_t{5} << 60), "5.0 EiB");
    EXPECT_EQ(format_number(1.23456789), "1.235");
    EXPECT_EQ(format_number(std::nan("")), "-");
}

TEST(TextTable, AlignsColumns) {
    TextTable table({"name", "value"});
    table.add_row({"a", "1.5"});
    table.add_row({"größer", "10"});
    EXPECT_EQ(table.text(),
              "name    value\n"
              "-------------\n"
              "a         1.5\n"
              "größer     10\n");
    EXPECT_THROW(table.add_row({"one"}), InvalidArgument);
}

TEST(Progress, ShowsShareRateAndTimeLeft) {
    EXPECT_EQ(progress_text(50, 100, 12000, "tokens", 185),
              "[============>           ] 50/100  1.2e+04 tokens/s  3 min 05 s left");
    EXPECT_EQ(progress_text(100, 100, 1, "x", 0), "[========================] 100/100  1 x/s  0.0 s left");
    EXPECT_THAT(progress_text(0, 0, 0, "x", std::nan("")), testing::StartsWith("[>"));
}

TEST(Log, RootWritesTerminalAndFile) {
    const std::filesystem::path folder = std::filesystem::temp_directory_path() / "sparseattn_test_log";
    std::filesystem::remove_all(folder);
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    {
        Log other(false, folder / "never");
        other.info("of another rank");
        Log log(true, folder / "run");
        log.info("step=1 loss=2");
        log.warning("look");
        log.progress(1, 2, 3, "tokens", 4);
    }
    { Log(true, folder / "run").block("a\nb\n"); }
    EXPECT_EQ(testing::internal::GetCapturedStdout(), "step=1 loss=2\na\nb\n");
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "warning: look\n");
    std::ifstream in(folder / "run" / "log.txt");
    std::ostringstream text;
    text << in.rdbuf();
    EXPECT_THAT(text.str(),
                testing::ContainsRegex(
                    "^[0-9-]+ [0-9:]+ info: step=1 loss=2\n[0-9-]+ [0-9:]+ warning: look\n.* info: a\nb\n$"));
    EXPECT_FALSE(std::filesystem::exists(folder / "never"));
    std::ofstream(folder / "file").close();
    EXPECT_THROW(Log(true, folder / "file"), FileError);
    std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace sparseattn
