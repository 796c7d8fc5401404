#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "sparseattn/core/error.hpp"
#include "sparseattn/sparsity/controller.hpp"
#include "sparseattn/sparsity/head_gates.hpp"

namespace sparseattn {
namespace {

using testing::HasSubstr;

TEST(SparsityTarget, LinearAndLogarithmic) {
    SparsityOptions options;
    options.start_head_sparsity = 0.1;
    options.end_head_sparsity = 0.9;
    options.sparsity_warmup_ratio = 0.5;
    const SparsityTarget linear(options, 201);
    EXPECT_EQ(linear.warmup_steps(), 101);  // rounded up
    EXPECT_DOUBLE_EQ(linear.at(0), 0.1);
    EXPECT_DOUBLE_EQ(linear.at(25), 0.1 + 0.8 * 25 / 101);
    EXPECT_EQ(linear.at(101), 0.9);
    EXPECT_EQ(linear.at(5000), 0.9);

    options.schedule = SparsitySchedule::logarithmic;
    const SparsityTarget logarithmic(options, 200);
    EXPECT_NEAR(logarithmic.at(0), 0.1, 1e-15);
    EXPECT_NEAR(logarithmic.at(50), 1 - std::sqrt(0.9 * 0.1), 1e-15);  // halfway in ln(1 - t)
    EXPECT_EQ(logarithmic.at(100), 0.9);
    for (int step = 1; step <= 100; ++step) EXPECT_GT(logarithmic.at(step), logarithmic.at(step - 1));
}

TEST(SparsityTarget, NoWarmupIsTheEndAtOnce) {
    SparsityOptions options;
    options.sparsity_warmup_ratio = 0;
    EXPECT_EQ(SparsityTarget(options, 100).at(0), options.end_head_sparsity);
}

TEST(LagrangianController, DerivativesAreDifferenceQuotients) {
    LagrangianController controller(false);
    controller.lambda1 = 0.7;
    controller.lambda2 = -1.3;
    const auto penalty = controller.penalty(0.4, 0.65);
    EXPECT_DOUBLE_EQ(penalty.value, 0.7 * -0.25 - 1.3 * 0.0625);
    const double step = 1e-6;
    EXPECT_NEAR(penalty.by_sparsity,
                (controller.penalty(0.4 + step, 0.65).value - controller.penalty(0.4 - step, 0.65).value) / (2 * step),
                1e-9);
    LagrangianController more = controller;
    more.lambda1 += 1;
    EXPECT_NEAR(more.penalty(0.4, 0.65).value - penalty.value, penalty.by_lambda1, 1e-12);
    more = controller;
    more.lambda2 += 1;
    EXPECT_NEAR(more.penalty(0.4, 0.65).value - penalty.value, penalty.by_lambda2, 1e-12);
    EXPECT_EQ(LagrangianController(true).penalty(0.4, 0.65).by_lambda1, 0.0);
}

// With no other loss, plain descent of log-alpha and ascent of the multipliers keep the sparsity on the target.
TEST(LagrangianController, TracksTheTargetWithoutAnotherLoss) {
    for (const bool disable_linear : {false, true}) {
        SparsityOptions options;
        const int steps = 3000;
        const SparsityTarget target(options, steps);
        HeadGates gates = HeadGates::initial(4, 8, options, 1);
        LagrangianController controller(disable_linear);
        double gap = 0;
        for (int step = 0; step < steps; ++step) {
            const GateValues z = gates.deterministic();
            double soft = 0;
            for (const double a : gates.log_alpha().values) soft += hard_concrete::deterministic(a) / 32;
            const auto penalty = controller.penalty(1 - soft, target.at(step));
            for (std::size_t i = 0; i < z.z.values.size(); ++i) {
                gates.log_alpha().values[i] += 5.0 * penalty.by_sparsity * z.slope.values[i] / 32;
            }
            controller.lambda1 += 0.5 * penalty.by_lambda1;
            controller.lambda2 += 20.0 * penalty.by_lambda2;
            if (step >= target.warmup_steps()) gap = std::max(gap, std::abs(1 - soft - options.end_head_sparsity));
        }
        EXPECT_LT(gap, 0.06) << disable_linear;
    }
}

TEST(SparsityOptions, NamesTheFieldOutOfRange) {
    const auto message = [](auto change) {
        SparsityOptions options;
        change(options);
        try {
            options.validate();
        } catch (const InvalidArgument& error) {
            return std::string(error.what());
        }
        return std::string("accepted");
    };
    EXPECT_EQ(message([](auto&) {}), "accepted");
    EXPECT_THAT(message([](auto& o) { o.end_head_sparsity = 1.5; }), HasSubstr("end_head_sparsity is 1.5"));
    EXPECT_THAT(message([](auto& o) { o.start_head_sparsity = -0.1; }), HasSubstr("start_head_sparsity is -0.1"));
    EXPECT_THAT(message([](auto& o) { o.sparsity_warmup_ratio = std::numeric_limits<double>::quiet_NaN(); }),
                HasSubstr("sparsity_warmup_ratio is nan"));
    EXPECT_THAT(message([](auto& o) { o.local = 0; }), HasSubstr("local is 0, must be at least 1"));
    EXPECT_THAT(message([](auto& o) { o.sink = -1; }), HasSubstr("sink is -1"));
    EXPECT_THAT(message([](auto& o) { o.mask_learning_rate = -1; }), HasSubstr("mask_learning_rate"));
    EXPECT_THAT(message([](auto& o) {
                    o.schedule = SparsitySchedule::logarithmic;
                    o.end_head_sparsity = 1;
                }),
                HasSubstr("below 1 with the logarithmic schedule"));
}

}  // namespace
}  // namespace sparseattn
