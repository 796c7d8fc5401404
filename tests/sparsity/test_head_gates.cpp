#include <gmock/gmock.h>

#include <cmath>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/sparsity/head_gates.hpp"

namespace sparseattn {
namespace {

using testing::ElementsAre;

TEST(HardConcrete, SlopeIsTheDifferenceQuotient) {
    const RandomStream random(11, RandomPurpose::test, 0);
    const double step = 1e-6;
    int inside = 0;
    for (std::uint64_t i = 0; i < 2000; ++i) {
        const double alpha = 3.0 * random.normal(2 * i);
        const double u = random.uniform(2 * i + 1);
        const double below = hard_concrete::sample(alpha - step, u);
        const double above = hard_concrete::sample(alpha + step, u);
        const double slope = hard_concrete::sample_slope(alpha, u);
        const bool clamped = below == above;
        if (!clamped && (below == 0 || above == 1)) continue;  // the kink
        inside += clamped ? 0 : 1;
        EXPECT_NEAR(slope, (above - below) / (2 * step), 1e-7) << alpha << ' ' << u;
        if (clamped) {
            EXPECT_EQ(slope, 0.0);
        }
    }
    EXPECT_GT(inside, 200);
    for (const double alpha : {-5.0, -0.3, 0.0, 2.0, 4.0}) {
        const double quotient =
            (hard_concrete::deterministic(alpha + step) - hard_concrete::deterministic(alpha - step)) / (2 * step);
        EXPECT_NEAR(hard_concrete::deterministic_slope(alpha), quotient, 1e-8);
    }
}

// The share of u with z = 0 and the mean of z, by the midpoint rule over u.
TEST(HardConcrete, ZeroProbabilityAndMeanMatchQuadrature) {
    const int points = 200000;
    for (const double alpha : {-6.0, -1.0, 0.0, 0.7, 4.0}) {
        double zeros = 0;
        double mean = 0;
        for (int i = 0; i < points; ++i) {
            const double z = hard_concrete::sample(alpha, (i + 0.5) / points);
            ASSERT_TRUE(z >= 0 && z <= 1);
            zeros += z == 0 ? 1 : 0;
            mean += z;
        }
        EXPECT_NEAR(hard_concrete::zero_probability(alpha), zeros / points, 2.0 / points);
        EXPECT_NEAR(hard_concrete::mean(alpha), mean / points, 1e-7);
    }
}

TEST(HeadGates, InitialValuesFollowTheirDistributionAndTheSeed) {
    SparsityOptions options;
    const HeadGates gates = HeadGates::initial(200, 200, options, 3);
    double sum = 0;
    double squares = 0;
    for (const double a : gates.log_alpha().values) {
        sum += a;
        squares += (a - 4.0) * (a - 4.0);
    }
    EXPECT_NEAR(sum / 40000, 4.0, 1e-3);
    EXPECT_NEAR(std::sqrt(squares / 40000), 0.01, 2e-4);
    EXPECT_EQ(gates.log_alpha(), HeadGates::initial(200, 200, options, 3).log_alpha());
    EXPECT_NE(gates.log_alpha(), HeadGates::initial(200, 200, options, 4).log_alpha());
}

TEST(HeadGates, SamplesDependOnSeedStepSlotAndHeadOnly) {
    HeadGates gates{HeadMap(3, 4, 0.2)};
    const GateValues sample = gates.sample(1, 5, 2);
    EXPECT_EQ(sample.z, gates.sample(1, 5, 2).z);
    EXPECT_NE(sample.z, gates.sample(2, 5, 2).z);
    EXPECT_NE(sample.z, gates.sample(1, 6, 2).z);
    EXPECT_NE(sample.z, gates.sample(1, 5, 3).z);
    gates.log_alpha()(0, 0) = -20;
    const GateValues changed = gates.sample(1, 5, 2);
    EXPECT_EQ(changed.z(0, 0), 0.0);
    EXPECT_EQ(changed.slope(0, 0), 0.0);
    EXPECT_EQ(changed.z(2, 3), sample.z(2, 3));
}

TEST(HeadGates, MeanSampleApproachesTheExpectation) {
    const HeadGates gates{HeadMap(1, 1, 1.0)};
    double zeros = 0;
    const int draws = 20000;
    for (int i = 0; i < draws; ++i) zeros += gates.sample(7, i / 100, i % 100).z(0, 0) == 0 ? 1 : 0;
    const double p = hard_concrete::zero_probability(1.0);
    EXPECT_NEAR(zeros / draws, p, 4 * std::sqrt(p * (1 - p) / draws));
}

TEST(HeadGates, DeterministicZeroesTheExpectedNumberPerLayer) {
    HeadMap alpha(3, 4);
    alpha.values = {9,  -9, 9,  -9,   // two surely 0
                    9,  9,  9,  9,    // none
                    -9, -9, -9, -9};  // all
    alpha(0, 2) = 8;
    const GateValues gates = HeadGates(alpha).deterministic();
    EXPECT_EQ(gates.z(0, 1), 0.0);
    EXPECT_EQ(gates.z(0, 3), 0.0);
    EXPECT_EQ(gates.z(0, 0), hard_concrete::deterministic(9));
    EXPECT_EQ(gates.z(0, 2), hard_concrete::deterministic(8));
    for (int h = 0; h < 4; ++h) {
        EXPECT_GT(gates.z(1, h), 0.99);
        EXPECT_EQ(gates.z(2, h), 0.0);
        EXPECT_EQ(gates.slope(2, h), hard_concrete::deterministic_slope(-9));
    }
    // Equal gates: P(z = 0) at 0.4 is 0.119; of 9 heads one is zeroed, the first.
    const GateValues equal = HeadGates(HeadMap(1, 9, 0.4)).deterministic();
    EXPECT_EQ(std::lround(9 * hard_concrete::zero_probability(0.4)), 1);
    EXPECT_EQ(equal.z(0, 0), 0.0);
    EXPECT_GT(equal.z(0, 1), 0.0);
}

TEST(HeadGates, MasksComeBackAsDeployedGates) {
    HeadMap masks(1, 4);
    masks.values = {0, 1, 1, 0};
    const HeadGates gates = HeadGates::from_masks(masks);
    EXPECT_THAT(gates.log_alpha().values, ElementsAre(-10, 10, 10, -10));
    const HeadMap z = gates.deterministic().z;
    for (int h = 0; h < 4; ++h) EXPECT_NEAR(z(0, h), masks(0, h), 1e-5);
    EXPECT_EQ(z(0, 0), 0.0);
}

TEST(HeadMap, ExpandsToQueryHeadsAndSumsBack) {
    HeadMap gates(2, 2);
    gates.values = {0.0, 0.25, 0.5, 1.0};
    EXPECT_DOUBLE_EQ(head_sparsity(gates), 1 - 1.75 / 4);
    const std::vector<float> expanded = expand_to_query_heads(gates, 3);
    EXPECT_THAT(expanded, ElementsAre(0, 0, 0, .25F, .25F, .25F, .5F, .5F, .5F, 1, 1, 1));
    EXPECT_THAT(sum_over_groups(expanded, 2, 2, 3).values, ElementsAre(0, 0.75, 1.5, 3));
    EXPECT_THROW(static_cast<void>(sum_over_groups(expanded, 2, 2, 2)), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
