// Training on every grid of the ranks against training on one rank.
#include <gmock/gmock.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/links.hpp"
#include "train/training_case.hpp"

namespace sparseattn {
namespace {

using namespace testing_train;

class TrainingGrid : public testing::Test, public TrainingCase {
  protected:
    // All ways to divide the ranks.
    [[nodiscard]] std::vector<int> groups() const {
        std::vector<int> sizes;
        for (int size = 1; size <= ranks.size(); ++size) {
            if (ranks.size() % size == 0) sizes.push_back(size);
        }
        return sizes;
    }
    [[nodiscard]] static TrainOptions options(TrainMode mode) {
        TrainOptions options = small_run();
        options.mode = mode;
        options.sequence_length = 161;  // no number of ranks divides it
        options.batch_size = 5;
        options.max_steps = 5;
        options.evaluation_packs = 3;
        options.sparsity.gate_init_mean = 0.5;
        options.sparsity.gate_init_std = 0.5;
        options.sparsity.start_head_sparsity = 0.3;
        options.messages = test::chosen_path();
        return options;
    }
};

// Steps of a run and what it leaves behind.
struct Course {
    std::vector<StepReport> steps;
    EvaluationReport evaluation;
    std::map<std::string, std::vector<double>> tensors;
};

Course course_of(Trainer& trainer) {
    Course course;
    while (trainer.steps_done() < 4) course.steps.push_back(trainer.step());
    course.evaluation = trainer.evaluate();
    course.tensors = tensors_of(trainer.save_checkpoint().directory);
    return course;
}

// To rounding: float sums in another order. A weight whose gradient is as small as its rounding moves by Adam's
// step-size in either direction, so tensors are compared by the length of their difference.
void expect_same_course(const Course& a, const Course& b) {
    ASSERT_EQ(a.steps.size(), b.steps.size());
    for (std::size_t i = 0; i < a.steps.size(); ++i) {
        SCOPED_TRACE("step " + std::to_string(i + 1));
        EXPECT_NEAR(a.steps[i].loss, b.steps[i].loss, 2e-5 * b.steps[i].loss);
        EXPECT_EQ(std::isnan(a.steps[i].gradient_norm), std::isnan(b.steps[i].gradient_norm));  // frozen weights
        if (!std::isnan(b.steps[i].gradient_norm)) {
            EXPECT_NEAR(a.steps[i].gradient_norm, b.steps[i].gradient_norm, 2e-4 * b.steps[i].gradient_norm);
        }
        if (std::isnan(b.steps[i].lambda1)) continue;
        EXPECT_NEAR(a.steps[i].sampled_sparsity, b.steps[i].sampled_sparsity, 1e-6);
        EXPECT_NEAR(a.steps[i].expected_sparsity, b.steps[i].expected_sparsity, 1e-4);
        EXPECT_NEAR(a.steps[i].lambda1, b.steps[i].lambda1, 1e-4);
        EXPECT_NEAR(a.steps[i].lambda2, b.steps[i].lambda2, 1e-4);
    }
    EXPECT_NEAR(a.evaluation.deployed, b.evaluation.deployed, 1e-4);
    EXPECT_NEAR(a.evaluation.dense, b.evaluation.dense, 1e-4);
    EXPECT_EQ(a.evaluation.labels, b.evaluation.labels);
    ASSERT_EQ(a.tensors.size(), b.tensors.size());
    for (const auto& [name, values] : b.tensors) {
        const std::vector<double>& others = a.tensors.at(name);
        double difference = 0, length = 0;
        for (std::size_t i = 0; i < values.size(); ++i) {
            difference += (values[i] - others[i]) * (values[i] - others[i]);
            length += values[i] * values[i];
        }
        EXPECT_LE(std::sqrt(difference), 2e-3 * std::sqrt(length)) << name;
    }
}

TEST_F(TrainingGrid, EveryGridTrainsLikeOneRank) {
    for (const TrainMode mode : {TrainMode::masks_and_weights, TrainMode::masks_only, TrainMode::dense}) {
        const auto alone = course_of(*trainer_alone(options(mode), "alone_" + to_string(mode)));
        for (const int size : groups()) {
            SCOPED_TRACE(to_string(mode) + ", sequence groups of " + std::to_string(size));
            TrainOptions shared = options(mode);
            shared.seq_parallel_size = size;
            const std::string name = to_string(mode) + std::to_string(size);
            expect_same_course(course_of(*trainer(shared, name)), alone);
        }
    }
}

// Gates whose sparse branch selects. A block at its selector's threshold may come or go with the last bit of a query.
TEST_F(TrainingGrid, ASelectedBranchTrainsOnEveryGrid) {
    TrainOptions chosen = options(TrainMode::masks_and_weights);
    chosen.sparsity.sparse_branch = "xattention:stride=8,threshold=0.6";
    const auto alone = trainer_alone(chosen, "alone");
    std::vector<StepReport> steps;
    for (int step = 0; step < 3; ++step) steps.push_back(alone->step());
    for (const int size : groups()) {
        SCOPED_TRACE("sequence groups of " + std::to_string(size));
        chosen.seq_parallel_size = size;
        const auto shared = trainer(chosen, "selected" + std::to_string(size));
        for (const StepReport& wanted : steps) {
            const StepReport report = shared->step();
            EXPECT_NEAR(report.loss, wanted.loss, 1e-3 * wanted.loss);
            EXPECT_NEAR(report.gradient_norm, wanted.gradient_norm, 2e-2 * wanted.gradient_norm);
            EXPECT_NEAR(report.lambda1, wanted.lambda1, 1e-4);
        }
    }
}

// To the rounding of bf16: with attention spread over ranks, gradients of keys and values are rounded once more.
TEST_F(TrainingGrid, EveryGridTrainsInBf16) {
    TrainOptions rounded = options(TrainMode::masks_and_weights);
    rounded.precision = Precision::bf16;
    const auto alone = trainer_alone(rounded, "alone_bf16");
    std::vector<StepReport> steps;
    for (int step = 0; step < 4; ++step) steps.push_back(alone->step());
    for (const int size : groups()) {
        SCOPED_TRACE("sequence groups of " + std::to_string(size));
        rounded.seq_parallel_size = size;
        const auto shared = trainer(rounded, "bf16_" + std::to_string(size));
        for (const StepReport& wanted : steps) {
            const StepReport report = shared->step();
            EXPECT_NEAR(report.loss, wanted.loss, 2e-3 * wanted.loss);
            EXPECT_NEAR(report.gradient_norm, wanted.gradient_norm, 2e-2 * wanted.gradient_norm);
            EXPECT_NEAR(report.lambda1, wanted.lambda1, 1e-3);
            EXPECT_NEAR(report.sampled_sparsity, wanted.sampled_sparsity, 1e-3);
        }
        const auto loss = shared->evaluate(), whole = alone->evaluate();
        EXPECT_NEAR(loss.dense, whole.dense, 5e-3 * whole.dense);
    }
}

TEST_F(TrainingGrid, EveryGridRepeatsItself) {
    for (const int size : groups()) {
        SCOPED_TRACE("sequence groups of " + std::to_string(size));
        TrainOptions shared = options(TrainMode::masks_and_weights);
        shared.seq_parallel_size = size;
        const auto first = course_of(*trainer(shared, "first" + std::to_string(size)));
        const auto second = course_of(*trainer(shared, "second" + std::to_string(size)));
        for (const auto& [name, values] : first.tensors)
            EXPECT_TRUE(same_bits(values, second.tensors.at(name))) << name;
    }
}

// Sums are formed in the order of the ranks on every path.
TEST_F(TrainingGrid, LinksAndHostMemoryGiveTheSameBits) {
    for (const int size : groups()) {
        TrainOptions options = TrainingGrid::options(TrainMode::masks_and_weights);
        options.seq_parallel_size = size;
        if (options.messages == MessagePath::direct) return;  // host memory: there is one path
        const std::string name = "path" + std::to_string(size);
        const auto chosen = course_of(*trainer(options, name));
        options.messages = MessagePath::staged;
        const auto staged = course_of(*trainer(options, name + "staged"));
        for (std::size_t i = 0; i < chosen.steps.size(); ++i) EXPECT_EQ(chosen.steps[i].loss, staged.steps[i].loss);
        for (const auto& [tensor, values] : chosen.tensors) {
            EXPECT_TRUE(same_bits(values, staged.tensors.at(tensor))) << tensor;
        }
    }
}

// A checkpoint of one grid goes on on any other, with the same state to the bit and the same course to rounding.
TEST_F(TrainingGrid, GoesOnOnAnyOtherGrid) {
    TrainOptions options = TrainingGrid::options(TrainMode::masks_and_weights);
    const auto whole = course_of(*trainer_alone(options, "whole"));
    for (const int before : groups()) {
        options.seq_parallel_size = before;
        const std::string name = "before" + std::to_string(before);
        const auto first = trainer(options, name);
        for (int step = 0; step < 2; ++step) (void)first->step();
        const fs::path middle = first->save_checkpoint().directory;
        for (const int after : groups()) {
            SCOPED_TRACE(name + " after" + std::to_string(after));
            options.seq_parallel_size = after;
            const auto second = trainer(options, name + "after" + std::to_string(after));
            second->restart(middle);
            const auto loaded = tensors_of(second->save_checkpoint().directory);
            for (const auto& [tensor, values] : tensors_of(middle)) EXPECT_TRUE(same_bits(values, loaded.at(tensor)));
            Course course = course_of(*second);
            course.steps.insert(course.steps.begin(), whole.steps.begin(), whole.steps.begin() + 2);
            expect_same_course(course, whole);
        }
    }
}

TEST_F(TrainingGrid, SaysWhatDoesNotFit) {
    TrainOptions options = TrainingGrid::options(TrainMode::dense);
    options.seq_parallel_size = ranks.size() + 1;
    EXPECT_THROW((void)trainer(options, "a"), InvalidArgument);
    options.seq_parallel_size = ranks.size();
    options.sequence_length = ranks.size() - 1;
    EXPECT_THROW((void)trainer(options, "b"), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
