#include <gtest/gtest.h>

#include <cmath>

#include "sparseattn/core/rng.hpp"

namespace sparseattn {
namespace {

TEST(RandomStream, IsAPureFunctionOfItsCounter) {
    const RandomStream a(7, RandomPurpose::test, 3);
    const RandomStream b(7, RandomPurpose::test, 3);
    EXPECT_EQ(a.bits(123456789012ULL), b.bits(123456789012ULL));
    EXPECT_NE(a.bits(0), a.bits(1));
    EXPECT_NE(a.bits(0), RandomStream(7, RandomPurpose::test, 4).bits(0));
    EXPECT_NE(a.bits(0), RandomStream(7, RandomPurpose::gate_sample, 3).bits(0));
    EXPECT_NE(a.bits(0), RandomStream(8, RandomPurpose::test, 3).bits(0));
    EXPECT_NE(a.bits(0), RandomStream(7ULL | 1ULL << 40, RandomPurpose::test, 3).bits(0));
}

// Known values: checkpoints and published runs depend on them never changing.
TEST(RandomStream, KeepsItsValues) {
    EXPECT_EQ(RandomStream(1, RandomPurpose::weight_init, 0).bits(0), 1331920078262006920ULL);
    EXPECT_EQ(RandomStream(1, RandomPurpose::gate_sample, 1ULL << 33).bits(5), 2150303045036047177ULL);
}

TEST(RandomStream, HasTheMomentsOfItsDistributions) {
    const RandomStream stream(42, RandomPurpose::test, 0);
    const int n = 200000;
    double sum = 0, squares = 0, fourth = 0, uniform = 0;
    for (int i = 0; i < n; ++i) {
        const double x = stream.normal(i);
        sum += x;
        squares += x * x;
        fourth += x * x * x * x;
        const double u = stream.uniform(i);
        ASSERT_GT(u, 0.0);
        ASSERT_LT(u, 1.0);
        uniform += u;
    }
    EXPECT_NEAR(sum / n, 0.0, 0.01);
    EXPECT_NEAR(squares / n, 1.0, 0.02);
    EXPECT_NEAR(fourth / n, 3.0, 0.15);
    EXPECT_NEAR(uniform / n, 0.5, 0.005);
}

}  // namespace
}  // namespace sparseattn
