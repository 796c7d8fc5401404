#include <gmock/gmock.h>

#include <cmath>

#include "sparseattn/core/error.hpp"
#include "sparseattn/sparsity/head_masks.hpp"
#include "sparseattn/train/evaluator.hpp"
#include "sparseattn/train/memory_plan.hpp"
#include "train/training_case.hpp"

namespace sparseattn {
namespace {

using namespace testing_train;
using testing::HasSubstr;

class Training : public testing::Test, public TrainingCase {};

bool is_weight(const std::string& name) {
    return name.starts_with("model.") || name.starts_with("lm_head.");
}

TEST_F(Training, OverfitsATinyDataSet) {
    TrainOptions options = small_run();
    options.mode = TrainMode::dense;
    options.max_steps = 60;
    const auto trainer = Training::trainer(options, "run");
    const double first = trainer->step().loss;
    EXPECT_NEAR(first, std::log(259.0), 0.3);
    const TrainResult result = trainer->run();
    EXPECT_TRUE(result.finished);
    EXPECT_LT(result.last_step.loss, 0.45 * first);
    EXPECT_EQ(result.last_step.tokens, 60LL * options.batch_size * options.sequence_length);
}

// Tensors that differ between the start and after three steps.
TEST_F(Training, EveryModeTrainsWhatItSaysAndNothingElse) {
    const fs::path masks = folder.path() / "masks.tsv";
    if (ranks.rank() == 0) {
        HeadMap map(2, 2, 1.0);
        map(0, 1) = 0.0;
        write_head_masks(masks, map, {8, 16});
    }
    ranks.barrier();
    for (const TrainMode mode :
         {TrainMode::masks_and_weights, TrainMode::masks_only, TrainMode::weights_only, TrainMode::dense}) {
        SCOPED_TRACE(to_string(mode));
        TrainOptions options = small_run();
        options.mode = mode;
        options.sparsity.start_head_sparsity = 0.3;
        options.sparsity.gate_init_mean = 0.5;  // so that gates are neither 0 nor 1
        if (mode == TrainMode::weights_only) options.masks = masks;
        const auto trainer = Training::trainer(options, to_string(mode));
        const fs::path before = trainer->save_checkpoint().directory;
        for (int step = 0; step < 3; ++step) EXPECT_FALSE(trainer->step().skipped);
        const auto start = tensors_of(before);
        const auto end = tensors_of(trainer->save_checkpoint().directory);
        ranks.barrier();  // nobody writes the next while another one reads
        for (const auto& [name, values] : end) {
            const bool changed = !same_bits(values, start.at(name));
            const bool learns = is_weight(name) || name.find(".model.") != std::string::npos ||
                                        name.find(".lm_head.") != std::string::npos
                                    ? learns_weights(mode)
                                    : learns_masks(mode);
            EXPECT_EQ(changed, learns) << name;
        }
        EXPECT_EQ(end.contains("adamw.m.model.norm.weight"), learns_weights(mode));
        EXPECT_EQ(end.contains("gates.log_alpha"), has_gates(mode));
        EXPECT_EQ(end.contains("gates.lambda"), learns_masks(mode));
    }
}

TEST_F(Training, FixedMasksAreDeployedAsTheyAre) {
    const fs::path masks = folder.path() / "masks.tsv";
    HeadMap map(2, 2, 1.0);
    map(0, 1) = 0.0;
    if (ranks.rank() == 0) write_head_masks(masks, map, {4, 16});
    ranks.barrier();
    TrainOptions options = small_run();
    options.mode = TrainMode::weights_only;
    options.masks = masks;
    std::string warning;
    const auto trainer =
        Training::trainer(options, "run", {.warning = [&](const std::string& text) { warning = text; }});
    EXPECT_NEAR(trainer->step().deployed_sparsity, 0.25, 1e-4);
    EXPECT_THAT(warning, ranks.rank() == 0 ? HasSubstr("learned with sink 4 and local 16") : HasSubstr(""));
}

TEST_F(Training, AnyNumberOfRanksGivesTheSameRun) {
    for (const TrainMode mode : {TrainMode::masks_and_weights, TrainMode::dense}) {
        TrainOptions options = small_run();
        options.mode = mode;
        options.batch_size = 5;  // shared unevenly
        options.sparsity.gate_init_mean = 0.5;
        const auto together = trainer(options, "together_" + to_string(mode));
        const auto alone = trainer_alone(options, "alone_" + to_string(mode));
        for (int step = 0; step < 4; ++step) {
            const StepReport a = together->step();
            const StepReport b = alone->step();
            EXPECT_NEAR(a.loss, b.loss, 2e-5 * b.loss);
            EXPECT_NEAR(a.gradient_norm, b.gradient_norm, 2e-4 * b.gradient_norm);
            if (mode == TrainMode::dense) continue;
            EXPECT_NEAR(a.sampled_sparsity, b.sampled_sparsity, 1e-6);
            EXPECT_NEAR(a.lambda1, b.lambda1, 1e-4);
        }
    }
}

TEST_F(Training, TheSameRunGivesTheSameBits) {
    TrainOptions options = small_run();
    options.sparsity.gate_init_mean = 0.5;
    options.max_steps = 4;
    const auto first = tensors_of(trainer(options, "first")->run().last_checkpoint);
    // Buckets decide when gradients travel, not what is summed.
    options.bucket_bytes = 1 << 20;
    const auto second = tensors_of(trainer(options, "second")->run().last_checkpoint);
    options.bucket_bytes = 40000;
    const auto third = tensors_of(trainer(options, "third")->run().last_checkpoint);
    for (const auto& [name, values] : first) {
        EXPECT_TRUE(same_bits(values, third.at(name))) << name;
        EXPECT_EQ(values.size(), second.at(name).size()) << name;
        for (std::size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(values[i], second.at(name)[i], 1e-6) << name;
    }
}

TEST_F(Training, SparsityFollowsTheSchedule) {
    TrainOptions options = small_run();
    options.max_steps = 120;
    options.sparsity.sparsity_warmup_ratio = 0.5;
    options.sparsity.mask_learning_rate = 0.5;
    options.sparsity.reg_learning_rate = 0.5;
    options.sparsity.end_head_sparsity = 0.5;  // 2 of 4 heads
    options.evaluation_packs = 2;
    double gap = 0;
    int counted = 0;
    const auto trainer = Training::trainer(options, "run", {.step = [&](const StepReport& report) {
                                               if (report.step <= 80) return;
                                               gap += report.sampled_sparsity - report.target_sparsity;
                                               ++counted;
                                           }});
    const TrainResult result = trainer->run();
    EXPECT_LT(std::abs(gap / counted), 0.05);
    EXPECT_NEAR(result.last_evaluation.deployed_sparsity, 0.5, 0.15);
    EXPECT_TRUE(std::isfinite(result.last_evaluation.deployed));
    EXPECT_TRUE(std::isfinite(result.last_evaluation.dense));
}

TEST_F(Training, NonFiniteStepsChangeNothingAndEndTheRun) {
    TrainOptions options = small_run();
    options.learning_rate = 1e30;
    options.max_steps = 10;
    std::vector<StepReport> steps;
    const auto trainer = Training::trainer(options, "run", {.step = [&](const StepReport& r) { steps.push_back(r); }});
    EXPECT_FALSE(trainer->step().skipped);
    EXPECT_TRUE(trainer->step().skipped);
    const auto first = tensors_of(trainer->save_checkpoint().directory);
    EXPECT_EQ(trainer->step().skipped_steps, 2);
    const auto second = tensors_of(trainer->save_checkpoint().directory);
    for (const auto& [name, values] : second) EXPECT_TRUE(same_bits(values, first.at(name))) << name;
    try {
        (void)trainer->run();
        ADD_FAILURE() << "no error";
    } catch (const NumericalError& error) {
        EXPECT_THAT(error.what(), HasSubstr("3 non-finite steps in a row"));
        EXPECT_EQ(error.exit_code(), 4);
    }
    EXPECT_EQ(steps.size(), 4U);
}

TEST_F(Training, StopsOnEveryRankWhenOneAsks) {
    TrainOptions options = small_run();
    int polls = 0;
    const bool last = ranks.rank() == ranks.size() - 1;
    const auto trainer = Training::trainer(options, "run", {.poll = [&] {
                                               ++polls;
                                               return StopRequest{last && polls == 1, last && polls == 3};
                                           }});
    const TrainResult result = trainer->run();
    EXPECT_FALSE(result.finished);
    EXPECT_EQ(result.step, 3);
    const auto found = list_checkpoints(folder.path() / "run" / "checkpoints");
    ASSERT_EQ(found.size(), 2U);  // the asked one, and the one of the stop
    EXPECT_EQ(found[0].filename(), checkpoint_name(1));
    EXPECT_EQ(found[1], result.last_checkpoint);
}

TEST_F(Training, EvaluatorAndTrainerAgree) {
    TrainOptions options = small_run();
    options.evaluation_packs = 3;
    options.evaluate_sparse = true;
    options.sparsity.gate_init_mean = 0.5;
    const TrainResult result = Training::trainer(options, "run")->run();
    EvaluationOptions evaluation;
    evaluation.checkpoint = result.last_checkpoint;
    evaluation.packs = 3;
    const EvaluationResult again = evaluate_checkpoint(evaluation, *data, ranks);
    EXPECT_NEAR(again.dense, result.last_evaluation.dense, 1e-6);
    EXPECT_NEAR(again.sparse, result.last_evaluation.sparse, 1e-6);
    EXPECT_NEAR(again.deployed, result.last_evaluation.deployed, 1e-6);
    EXPECT_EQ(again.labels, result.last_evaluation.labels);
    EXPECT_EQ(again.head_map.layers, 2);
    EXPECT_EQ(again.to_json()["head_map"].size(), 2U);
    EXPECT_EQ(again.step, 6);
    evaluation.masks = folder.path() / "all.tsv";
    if (ranks.rank() == 0) write_head_masks(evaluation.masks, HeadMap(2, 2, 0.0), {8, 16});
    ranks.barrier();
    EXPECT_NEAR(evaluate_checkpoint(evaluation, *data, ranks).deployed, again.sparse, 1e-9);
}

TEST_F(Training, SaysWhatDoesNotFit) {
    TrainOptions options = small_run();
    options.batch_size = ranks.size();
    if (ranks.size() > 1) {
        options.batch_size = ranks.size() - 1;
        EXPECT_THROW((void)trainer(options, "a"), InvalidArgument);
    }
    options = small_run();
    options.model.vocab_size = 100;
    try {
        (void)trainer(options, "b");
        ADD_FAILURE() << "accepted";
    } catch (const InvalidArgument& error) {
        EXPECT_THAT(error.what(), HasSubstr("model.vocab_size is 100, must be at least 259"));
    }
    options = small_run();
    options.masks = folder.path() / "absent.tsv";
    EXPECT_THROW((void)trainer(options, "c"), FileError);
    options = small_run();
    options.init_from = folder.path() / "absent";
    EXPECT_THROW((void)trainer(options, "d"), CheckpointError);
}

}  // namespace
}  // namespace sparseattn
