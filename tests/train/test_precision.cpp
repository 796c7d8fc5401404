// Training and evaluation in bf16: beside fp32, over checkpoints, in every mode, on ranks.
#include <gmock/gmock.h>

#include <cmath>

#include "sparseattn/core/error.hpp"
#include "sparseattn/train/evaluator.hpp"
#include "sparseattn/train/memory_plan.hpp"
#include "support/kokkos_tools.hpp"
#include "train/training_case.hpp"

namespace sparseattn {
namespace {

using namespace testing_train;

class PrecisionOfTraining : public ::testing::Test, public TrainingCase {
  protected:
    [[nodiscard]] static TrainOptions options(Precision precision, TrainMode mode = TrainMode::masks_and_weights) {
        TrainOptions options = small_run();
        options.precision = precision;
        options.mode = mode;
        options.sparsity.gate_init_mean = 0.5;
        return options;
    }
    [[nodiscard]] std::vector<double> losses(const TrainOptions& options, const std::string& name) const {
        const auto run = trainer(options, name);
        std::vector<double> losses;
        while (run->steps_done() < options.max_steps) losses.push_back(run->step().loss);
        return losses;
    }
};

double mean(const std::vector<double>& values, std::size_t begin, std::size_t end) {
    double sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += values[i];
    return sum / static_cast<double>(end - begin);
}

// The same data, order and initial weights. Over ten steps' means the curves stay within one percent (measured: 0.04
// %).
TEST_F(PrecisionOfTraining, LossFollowsThatOfFp32) {
    for (const TrainMode mode : {TrainMode::dense, TrainMode::masks_and_weights}) {
        SCOPED_TRACE(to_string(mode));
        TrainOptions single = options(Precision::fp32, mode), rounded = options(Precision::bf16, mode);
        for (TrainOptions* run : {&single, &rounded}) {
            run->max_steps = 100;
            run->learning_rate = 1e-3;  // faster, rounding grows along the way to another curve of the same height
            run->warmup_ratio = 0.1;
        }
        const auto wanted = losses(single, "fp32" + to_string(mode)), got = losses(rounded, "bf16" + to_string(mode));
        ASSERT_EQ(got.size(), 100U);
        EXPECT_LT(mean(got, 90, 100), 0.6 * mean(got, 0, 5)) << "nothing was learned";
        double worst = 0;
        for (std::size_t begin = 0; begin < got.size(); begin += 10) {
            const double ratio = mean(got, begin, begin + 10) / mean(wanted, begin, begin + 10);
            worst = std::max(worst, std::abs(ratio - 1));
            EXPECT_NEAR(ratio, 1.0, 0.01) << "steps from " << begin;
        }
        RecordProperty("worst_ratio_" + to_string(mode), concat(worst));
        EXPECT_NE(got.back(), wanted.back()) << "not computed in bf16";
    }
}

TEST_F(PrecisionOfTraining, RestartEndsWithTheSameBits) {
    TrainOptions run = options(Precision::bf16);
    run.checkpoint_interval = 3;
    const fs::path end = trainer(run, "whole")->run().last_checkpoint;
    const fs::path middle = folder.path() / "whole" / "checkpoints" / checkpoint_name(3);
    const auto again = trainer(run, "half");
    again->restart(middle);
    const auto wanted = tensors_of(end), got = tensors_of(again->run().last_checkpoint);
    ASSERT_EQ(wanted.size(), got.size());
    for (const auto& [name, values] : wanted) EXPECT_TRUE(same_bits(values, got.at(name))) << name;

    // Weights are kept in fp32: most of them lie between the numbers of bf16.
    const CheckpointReader reader(end);
    const std::string name = "model.layers.0.mlp.gate_proj.weight";
    std::size_t between = 0;
    for (const double w : wanted.at(name)) {
        between += static_cast<float>(bf16(static_cast<float>(w))) != static_cast<float>(w) ? 1 : 0;
    }
    EXPECT_GT(between, wanted.at(name).size() / 2);
    for (const TensorInfo& tensor : reader.tensors()) {
        EXPECT_TRUE(tensor.name != name || tensor.dtype == DType::float32) << name;
    }
}

// A checkpoint of either precision goes on in the other, and says so.
TEST_F(PrecisionOfTraining, ChangesOverACheckpoint) {
    for (const Precision first : {Precision::fp32, Precision::bf16}) {
        const Precision second = first == Precision::fp32 ? Precision::bf16 : Precision::fp32;
        const std::string name = to_string(first);
        TrainOptions before = options(first), after = options(second);
        before.max_steps = after.max_steps = 20;
        const auto run = trainer(before, name);
        for (int i = 0; i < 3; ++i) (void)run->step();
        const fs::path middle = run->save_checkpoint().directory;
        std::vector<std::string> warnings;
        TrainObserver observer;
        observer.warning = [&](const std::string& text) { warnings.push_back(text); };
        const auto other = trainer(after, name + "_then", observer);
        other->restart(middle);
        const auto loaded = tensors_of(other->save_checkpoint().directory);
        for (const auto& [tensor, values] : tensors_of(middle)) {
            EXPECT_TRUE(same_bits(values, loaded.at(tensor))) << tensor;
        }
        if (ranks.rank() == 0) {
            ASSERT_EQ(warnings.size(), 1U);
            EXPECT_THAT(warnings[0], ::testing::HasSubstr("precision is " + to_string(second) + ", was " + name));
        }
        // The next step of both: nearly the same loss, not the same bits.
        const double wanted = run->step().loss, got = other->step().loss;
        EXPECT_NEAR(got, wanted, 5e-3 * wanted);
        EXPECT_NE(got, wanted);
    }
}

TEST_F(PrecisionOfTraining, EveryModeAndBranchRuns) {
    const auto first = trainer(options(Precision::bf16), "first");
    (void)first->step();
    const fs::path masks = first->save_checkpoint().directory;
    for (const TrainMode mode : {TrainMode::masks_and_weights, TrainMode::masks_only, TrainMode::weights_only}) {
        for (const char* branch : {"streaming", "xattention:stride=8,threshold=0.6"}) {
            for (const bool recompute : {false, true}) {
                SCOPED_TRACE(to_string(mode) + ' ' + branch);
                std::vector<double> values;
                for (const Precision precision : {Precision::fp32, Precision::bf16}) {
                    TrainOptions run = options(precision, mode);
                    run.sparsity.sparse_branch = branch;
                    run.recompute = recompute;
                    if (mode == TrainMode::weights_only) run.init_from = masks;
                    const auto one = trainer(run, concat(to_string(mode), branch[0], recompute, to_string(precision)));
                    (void)one->step();
                    values.push_back(one->step().loss);
                }
                EXPECT_NEAR(values[1], values[0], 5e-3 * values[0]);
            }
        }
    }
}

TEST_F(PrecisionOfTraining, EvaluationTakesThatOfTheRunOrAnother) {
    const auto run = trainer(options(Precision::bf16), "run");
    (void)run->step();
    EvaluationOptions evaluation;
    evaluation.checkpoint = run->save_checkpoint().directory;
    evaluation.packs = 3;
    const EvaluationResult rounded = evaluate_checkpoint(evaluation, *data, ranks);
    EXPECT_EQ(rounded.precision, Precision::bf16);
    evaluation.precision = Precision::fp32;
    const EvaluationResult single = evaluate_checkpoint(evaluation, *data, ranks);
    EXPECT_EQ(single.precision, Precision::fp32);
    EXPECT_NE(rounded.dense, single.dense);
    for (const auto& [a, b] : {std::pair(rounded.dense, single.dense), std::pair(rounded.deployed, single.deployed)}) {
        EXPECT_NEAR(a, b, 5e-3 * b);
    }
}

TEST(TrainMemoryPlan, CountsTheRoundedWeightsAndHalfTheActivations) {
    TrainOptions single = small_run();
    single.sequence_length = 2048;
    TrainOptions rounded = single;
    rounded.precision = Precision::bf16;
    const auto part = [](const TrainOptions& options, const std::string& wanted) {
        for (const auto& [name, bytes] : train_memory_plan(options).parts) {
            if (name == wanted) return static_cast<double>(bytes);
        }
        return -1.0;
    };
    EXPECT_EQ(part(single, "parameters in bf16"), 0);
    EXPECT_EQ(part(rounded, "parameters in bf16"), part(rounded, "parameters") / 2);
    for (const char* same : {"parameters", "gradients", "optimizer moments"}) {
        EXPECT_EQ(part(rounded, same), part(single, same)) << same;
    }
    EXPECT_NEAR(part(rounded, "activations") / part(single, "activations"), 0.5, 0.02);
}

// The arrays of steps whose closed gates select, against the plan: temporaries are those of the kernels that serve the
// calls.
TEST_F(PrecisionOfTraining, PlanCountsWhatSelectionTakes) {
    for (const std::string& branch :
         {std::string("xattention:stride=8,threshold=0.6"), std::string("flexprefill:gamma=0.6"),
          std::string("minference:adaptive_budget=0.1")}) {
        for (const Precision precision : {Precision::fp32, Precision::bf16}) {
            SCOPED_TRACE(branch + ' ' + to_string(precision));
            TrainOptions run = options(precision);
            run.sequence_length = 2048;
            run.batch_size = ranks.size();
            run.sparsity.sparse_branch = branch;
            const auto planned = static_cast<double>(train_memory_plan(run, ranks.size()).total());
            const testing::KokkosPeak<Kokkos::DefaultExecutionSpace::memory_space> peak;
            const auto one = trainer(run, concat("plan", branch[0], to_string(precision)));
            for (int i = 0; i < 2; ++i) (void)one->step();
            const double taken = static_cast<double>(peak.bytes()) / planned;
            RecordProperty("taken_over_planned_" + branch.substr(0, 4) + to_string(precision), concat(taken));
            EXPECT_NEAR(taken, 1.0, 0.1);
        }
    }
}

TEST(Precision, HasNames) {
    EXPECT_EQ(parse_precision(to_string(Precision::bf16)), Precision::bf16);
    EXPECT_EQ(parse_precision(to_string(Precision::fp32)), Precision::fp32);
    EXPECT_THROW((void)parse_precision("fp16"), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
