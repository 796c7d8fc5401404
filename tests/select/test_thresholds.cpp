#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "select/support.hpp"
#include "sparseattn/select/xattention.hpp"

namespace sparseattn::test {
namespace {

class Thresholds : public testing::Test {
  protected:
    std::string path_ =
        (std::filesystem::path(testing::TempDir()) / concat("sparseattn_thresholds_", ::getpid(), ".tsv")).string();
    void TearDown() override { std::filesystem::remove(path_); }
    void write(const std::string& text) const { std::ofstream(path_) << text; }
    std::string message() const {
        return message_of([&] { (void)read_xattention_thresholds(path_); });
    }
};

TEST_F(Thresholds, ReadBackExactly) {
    const XAttentionThresholds thresholds{{{0.1, 0.95, 1.0}, {0.3333333333333333, 0.9, 2.5}}};
    write_xattention_thresholds(path_, thresholds);
    EXPECT_EQ(read_xattention_thresholds(path_).layers, thresholds.layers);
}

TEST_F(Thresholds, CommentsBlanksAndSpacesAreAllowed) {
    write("# head 0, head 1\n\n0.5 0.6\r\n\t0.7\t0.8\n");
    EXPECT_EQ(read_xattention_thresholds(path_).layers, (std::vector<std::vector<double>>{{0.5, 0.6}, {0.7, 0.8}}));
}

TEST_F(Thresholds, BadFilesAreNamedByLine) {
    write("0.5\t0.6\n0.5\tx\n");
    EXPECT_EQ(message(), path_ + ":2: threshold of head 1 is 'x', must be a finite number above 0");
    write("# c\n0.5 nan\n");
    EXPECT_EQ(message(), path_ + ":2: threshold of head 1 is 'nan', must be a finite number above 0");
    write("0.5 0.5z\n");
    EXPECT_EQ(message(), path_ + ":1: threshold of head 1 is '0.5z', must be a finite number above 0");
    write("-0.5\n");
    EXPECT_EQ(message(), path_ + ":1: threshold of head 0 is '-0.5', must be a finite number above 0");
    write("0.5 0.6\n\n0.5\n");
    EXPECT_EQ(message(), path_ + ":3: the line has 1 thresholds, must be 2 as in the first layer");
    write("# only this\n");
    EXPECT_EQ(message(), path_ + ": no thresholds, must be one line for each layer");
    std::filesystem::remove(path_);
    EXPECT_EQ(message(), path_ + ": cannot be opened for reading");
    EXPECT_EQ(message_of([] { write_xattention_thresholds("/nonexistent/x.tsv", {}); }),
              "/nonexistent/x.tsv: cannot be written");
}

TEST_F(Thresholds, LayersAndHeadsAreChecked) {
    const XAttentionThresholds thresholds{{{0.1, 0.2}}};
    EXPECT_EQ(thresholds.layer(0, 2), (std::vector<double>{0.1, 0.2}));
    EXPECT_EQ(message_of([&] { (void)thresholds.layer(1, 2); }),
              "layer is 1, must be one of the 1 layers of the thresholds");
    EXPECT_EQ(message_of([&] { (void)thresholds.layer(0, 4); }),
              "thresholds of layer 0 is 2, must be 4, the number of query heads");
}

}  // namespace
}  // namespace sparseattn::test
