#include <gmock/gmock.h>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/version.hpp"

namespace sparseattn {
namespace {

TEST(Error, RequireNamesArgumentValueAndDemand) {
    EXPECT_NO_THROW(require(true, "block", 64, "64 or 128"));
    try {
        require(false, "block", 65, "64 or 128");
        FAIL();
    } catch (const InvalidArgument& error) {
        EXPECT_STREQ(error.what(), "block is 65, must be 64 or 128");
        EXPECT_EQ(error.exit_code(), 70);
    }
}

TEST(Error, ExitCodes) {
    EXPECT_EQ(DeckError("").exit_code(), 2);
    EXPECT_EQ(FileError("").exit_code(), 3);
    EXPECT_EQ(CheckpointError("").exit_code(), 3);
    EXPECT_EQ(NumericalError("").exit_code(), 4);
    EXPECT_EQ(NotCompiled("").exit_code(), 70);
}

TEST(Version, NamesTheBuild) {
    EXPECT_THAT(version_with_commit(), testing::StartsWith(version()));
    EXPECT_THAT(build_report(), testing::HasSubstr("Kokkos: "));
}

}  // namespace
}  // namespace sparseattn
