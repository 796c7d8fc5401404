#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/sparsity/head_masks.hpp"

namespace sparseattn {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class HeadMasks : public testing::Test {
  protected:
    HeadMasks() { fs::create_directories(folder_); }
    ~HeadMasks() override { fs::remove_all(folder_); }

    // What reading a 2 x 3 map from `text` says.
    std::string complaint(const std::string& text) {
        std::ofstream(path_) << text;
        try {
            (void)read_head_masks(path_, 2, 3);
        } catch (const FileError& error) {
            return error.what();
        }
        return "accepted";
    }

    fs::path folder_ = fs::temp_directory_path() / ("sparseattn_masks_" + std::to_string(getpid()));
    fs::path path_ = folder_ / "masks.tsv";
};

TEST_F(HeadMasks, RoundTripIsExact) {
    const RandomStream random(5, RandomPurpose::test, 0);
    HeadMap masks(5, 7);
    for (std::size_t i = 0; i < masks.values.size(); ++i) masks.values[i] = random.uniform(i);
    masks.values[0] = 0;
    masks.values[1] = 1;
    write_head_masks(path_, masks, {64, 256});
    EXPECT_EQ(read_head_masks(path_, 5, 7), masks);
    EXPECT_EQ(read_window_sizes(path_), (WindowSizes{64, 256}));
}

TEST_F(HeadMasks, AcceptsCarriageReturnsAndAMissingLastNewline) {
    EXPECT_EQ(complaint("1\t0\t0.5\r\n0\t1\t1e-3"), "accepted");
}

TEST_F(HeadMasks, NamesFileLineAndColumn) {
    const std::string file = path_.string();
    EXPECT_EQ(complaint("1\t0\t1\n1\tx\t0\n"), file + ":2: column 2 is 'x', must be a number between 0 and 1");
    EXPECT_EQ(complaint("1\t0\t1.5\n1\t0\t0\n"), file + ":1: column 3 is '1.5', must be a number between 0 and 1");
    EXPECT_EQ(complaint("1\t0\tnan\n1\t0\t0\n"), file + ":1: column 3 is 'nan', must be a number between 0 and 1");
    EXPECT_EQ(complaint("1\t\t1\n1\t0\t0\n"), file + ":1: column 2 is '', must be a number between 0 and 1");
    EXPECT_EQ(complaint("1\t0\n1\t0\t0\n"), file + ":1: 2 columns, must be 3 (one per key/value head)");
    EXPECT_EQ(complaint("1\t0\t1\n"), file + ": 1 rows, must be 2 (one per layer)");
    EXPECT_EQ(complaint("1\t0\t1\n1\t0\t1\n1\t0\t1\n"), file + ": 3 rows, must be 2 (one per layer)");
    EXPECT_EQ(complaint(""), file + ": 0 rows, must be 2 (one per layer)");
    EXPECT_THROW((void)read_head_masks(folder_ / "absent.tsv", 2, 3), FileError);
    EXPECT_THROW((void)read_head_masks(folder_, 2, 3), FileError);
}

TEST_F(HeadMasks, BadWindowFilesAreNamed) {
    EXPECT_THROW((void)read_window_sizes(path_), FileError);
    std::ofstream(folder_ / "masks.json") << R"({"sink": 4})";
    try {
        (void)read_window_sizes(path_);
        ADD_FAILURE() << "accepted";
    } catch (const FileError& error) {
        EXPECT_THAT(error.what(), HasSubstr("masks.json: local is missing"));
    }
    std::ofstream(folder_ / "masks.json") << R"({"sink": 4, "local": 0})";
    EXPECT_THROW((void)read_window_sizes(path_), FileError);
    std::ofstream(folder_ / "masks.json") << "{";
    EXPECT_THROW((void)read_window_sizes(path_), FileError);
}

TEST_F(HeadMasks, WritingChecksValuesAndPlace) {
    EXPECT_THROW(write_head_masks(path_, HeadMap(1, 1, 1.1), {}), InvalidArgument);
    EXPECT_THROW(write_head_masks(folder_ / "absent" / "masks.tsv", HeadMap(1, 1, 1.0), {}), FileError);
}

TEST(RoundToSparsity, KeepsTheLargestOverAllLayers) {
    HeadMap gates(2, 3);
    gates.values = {0.9, 0.2, 0.5, 0.5, 0.1, 0.5};
    EXPECT_THAT(round_to_sparsity(gates, 0.5).values, ElementsAre(1, 0, 1, 1, 0, 0));  // ties: lower (layer, head)
    EXPECT_THAT(round_to_sparsity(gates, 0.0).values, ElementsAre(1, 1, 1, 1, 1, 1));
    EXPECT_THAT(round_to_sparsity(gates, 1.0).values, ElementsAre(0, 0, 0, 0, 0, 0));
    EXPECT_THAT(round_to_sparsity(gates, 0.7).values, ElementsAre(1, 0, 0, 0, 0, 0));  // int(1.8)
    EXPECT_EQ(head_sparsity(round_to_sparsity(HeadMap(1, 10, 0.3), 0.9)), 0.9);
    EXPECT_THROW((void)round_to_sparsity(gates, 1.1), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
