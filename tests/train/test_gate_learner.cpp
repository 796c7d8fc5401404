#include <gmock/gmock.h>

#include <cmath>
#include <vector>

#include "sparseattn/core/rng.hpp"
#include "sparseattn/train/detail/gate_learner.hpp"
#include "sparseattn/train/learning_rate.hpp"

namespace sparseattn {
namespace {

using detail::GateLearner;

TrainOptions options(int steps) {
    TrainOptions o;
    o.max_steps = steps;
    o.batch_size = 4;
    return o;
}

HeadGates start(const TrainOptions& o, int layers = 4, int heads = 8) {
    return HeadGates::initial(layers, heads, o.sparsity, o.seed);
}

// d(R)/d(log alpha) of one pack by differences of R = lambda1 (s - t) + lambda2 (s - t)^2.
TEST(GateLearner, PenaltyGradientIsTheDifferenceQuotient) {
    for (const SparsityEstimate estimate : {SparsityEstimate::sampled, SparsityEstimate::deterministic}) {
        TrainOptions o = options(100);
        o.batch_size = 1;
        o.sparsity.estimate = estimate;
        o.sparsity.gate_init_mean = 1.0;
        o.sparsity.gate_init_std = 0.3;
        GateLearner learner(o, start(o, 2, 3));
        learner.lambdas.values = {0.4, 1.7};
        const auto r = [&](const GateLearner& l) {
            const GateValues z =
                estimate == SparsityEstimate::sampled ? l.gates(30, 0) : l.head_gates().deterministic();
            const double gap = head_sparsity(z.z) - l.target(30);
            return 0.4 * gap + 1.7 * gap * gap;
        };
        learner.learn(30, learner.gates(30, 0), HeadMap(2, 3));
        const double step = 1e-6;
        for (std::size_t i = 0; i < 6; ++i) {
            GateLearner above = learner;
            GateLearner below = learner;
            above.log_alpha.values[i] += step;
            below.log_alpha.values[i] -= step;
            const HeadMap z = learner.deployed();
            if (estimate == SparsityEstimate::deterministic && z.values[i] == 0) continue;  // straight through
            EXPECT_NEAR(learner.sums[i], (r(above) - r(below)) / (2 * step), 1e-7) << i;
        }
    }
}

TEST(GateLearner, LossGradientGoesThroughTheSample) {
    TrainOptions o = options(100);
    o.sparsity.gate_init_mean = 0.5;
    GateLearner learner(o, start(o, 1, 8));  // multipliers are 0: no penalty
    HeadMap dgate(1, 8, 2.0);
    const GateValues used = learner.gates(3, 2);
    learner.learn(3, used, dgate);
    learner.learn(3, used, dgate);
    for (std::size_t i = 0; i < 8; ++i) EXPECT_DOUBLE_EQ(learner.sums[i], 4.0 * used.slope.values[i]);
    EXPECT_DOUBLE_EQ(learner.sampled_sparsity(), 2 * head_sparsity(used.z) / o.batch_size);
}

// The controller alone, with the optimizer of a run: from the end of the warm-up on, sparsity stays on the target.
TEST(GateLearner, TracksTheScheduleWithoutALoss) {
    for (const std::uint64_t seed : {1U, 2U, 3U}) {
        TrainOptions o = options(600);
        o.seed = seed;
        o.sparsity.sparsity_warmup_ratio = 0.6;
        o.sparsity.mask_learning_rate = 0.1;
        o.sparsity.reg_learning_rate = 0.1;
        GateLearner learner(o, start(o));
        const LearningRateSchedule schedule(o.max_steps, 0.05, 0.1);
        double late = 0;
        int counted = 0;
        for (int step = 0; step < o.max_steps; ++step) {
            learner.clear();
            for (int slot = 0; slot < o.batch_size; ++slot) {
                learner.learn(step, learner.gates(step, slot), HeadMap(4, 8));
            }
            if (step >= 400) {
                late += std::abs(learner.sampled_sparsity() - 0.7);
                ++counted;
            }
            learner.update(schedule.factor(step));
        }
        EXPECT_LT(late / counted, 0.03) << seed;
        EXPECT_NEAR(head_sparsity(learner.deployed()), 0.7, 0.05) << seed;
    }
}

TEST(GateLearner, FixedMasksAreNotSampled) {
    TrainOptions o = options(10);
    o.mode = TrainMode::weights_only;
    const GateLearner learner(o, HeadGates::from_masks(HeadMap(2, 2, 0.0)));
    EXPECT_EQ(learner.gates(0, 0).z, HeadMap(2, 2, 0.0));
    EXPECT_EQ(learner.gates(0, 0).z, learner.gates(5, 3).z);
}

}  // namespace
}  // namespace sparseattn
