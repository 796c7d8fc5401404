#include <gmock/gmock.h>

#include <functional>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/metrics.hpp"
#include "sparseattn/train/detail/checkpointing.hpp"
#include "train/training_case.hpp"

namespace sparseattn {
namespace {

using namespace testing_train;
using testing::HasSubstr;

class Restart : public testing::Test, public TrainingCase {
  protected:
    [[nodiscard]] fs::path checkpoint(const std::string& run, std::int64_t step) const {
        return folder.path() / run / "checkpoints" / checkpoint_name(step);
    }
    static void expect_same(const fs::path& a, const fs::path& b) {
        const auto first = tensors_of(a);
        const auto second = tensors_of(b);
        ASSERT_EQ(first.size(), second.size());
        for (const auto& [name, values] : first) EXPECT_TRUE(same_bits(values, second.at(name))) << name;
    }
};

TrainOptions with_gates() {
    TrainOptions options = small_run();
    options.sparsity.gate_init_mean = 0.5;
    options.checkpoint_interval = 3;
    return options;
}

TEST_F(Restart, FromTheMiddleEndsWithTheSameBits) {
    for (const TrainMode mode : {TrainMode::masks_and_weights, TrainMode::masks_only, TrainMode::dense}) {
        SCOPED_TRACE(to_string(mode));
        TrainOptions options = with_gates();
        options.mode = mode;
        const std::string whole = "whole_" + to_string(mode);
        const std::string second_half = "half_" + to_string(mode);
        EXPECT_TRUE(trainer(options, whole)->run().finished);
        const auto again = trainer(options, second_half);
        again->restart(checkpoint(whole, 3));
        EXPECT_EQ(again->steps_done(), 3);
        EXPECT_TRUE(again->run().finished);
        expect_same(checkpoint(whole, 6), checkpoint(second_half, 6));

        const MetricsTable a = read_metrics(folder.path() / whole / "metrics.csv");
        const MetricsTable b = read_metrics(folder.path() / second_half / "metrics.csv");
        ASSERT_EQ(a.rows.size(), 6U);
        ASSERT_EQ(b.rows.size(), 3U);
        for (const char* column : {"step", "loss", "learning_rate", "sampled_sparsity", "lambda1", "gradient_norm"}) {
            const auto x = a.column(column);
            EXPECT_TRUE(same_bits({x.begin() + 3, x.end()}, b.column(column))) << column;
        }
    }
}

TEST_F(Restart, InTheSameFolderCutsTheMetricsBack) {
    const TrainOptions options = with_gates();
    (void)trainer(options, "run")->run();
    try {
        (void)trainer(options, "run")->run();
        ADD_FAILURE() << "a run was overwritten";
    } catch (const FileError& error) {
        EXPECT_THAT(error.what(), HasSubstr("holds a run already"));
    }
    const auto again = trainer(options, "run");
    again->restart(checkpoint("run", 3));
    (void)again->step();
    ranks.barrier();  // rank 0 writes the file
    EXPECT_EQ(read_metrics(folder.path() / "run" / "metrics.csv").rows.size(), 4U);
}

// The state read on one rank count and written again is the same to the bit.
TEST_F(Restart, OnAnotherNumberOfRanksLoadsTheSameState) {
    TrainOptions options = with_gates();
    (void)trainer(options, "run")->run();
    const auto alone = trainer_alone(options, "alone");
    alone->restart(checkpoint("run", 6));
    expect_same(checkpoint("run", 6), alone->save_checkpoint().directory);
    const fs::path written_alone = checkpoint("alone0", 6);
    ranks.barrier();
    const auto together = trainer(options, "together");
    together->restart(written_alone);
    expect_same(written_alone, together->save_checkpoint().directory);
}

TEST_F(Restart, RefusesOtherSettingsByName) {
    TrainOptions options = with_gates();
    (void)trainer(options, "run")->run();
    const std::vector<std::pair<std::function<void(TrainOptions&)>, std::string>> cases = {
        {[](auto& o) { o.seed = 2; }, "run.seed is 2 in this run, must be 1 as in the checkpoint"},
        {[](auto& o) { o.model.hidden_size = 96; }, "model.hidden_size is 96 in this run, must be 64"},
        {[](auto& o) { o.sequence_length = 128; }, "data.sequence_length is 128 in this run, must be 160"},
        {[](auto& o) { o.batch_size = 8; }, "train.batch_size is 8 in this run, must be 4"},
        {[](auto& o) { o.mode = TrainMode::dense; }, "train.mode is \"dense\" in this run"},
        {[](auto& o) { o.sparsity.sparse_branch = "minference"; },
         "sparsity.sparse_branch is \"minference\" in this run, must be \"streaming\""},
    };
    for (const auto& [change, text] : cases) {
        TrainOptions changed = options;
        change(changed);
        try {
            trainer(changed, "other")->restart(checkpoint("run", 6));
            ADD_FAILURE() << "accepted: " << text;
        } catch (const CheckpointError& error) {
            EXPECT_THAT(error.what(), HasSubstr(text));
        }
    }
    EXPECT_THROW(trainer(options, "other")->restart(folder.path() / "absent"), CheckpointError);
}

TEST_F(Restart, InitFromTakesWeightsOnly) {
    TrainOptions options = with_gates();
    (void)trainer(options, "run")->run();
    options.init_from = checkpoint("run", 6);
    options.seed = 9;
    const auto fresh = trainer(options, "fresh");
    const auto start = tensors_of(fresh->save_checkpoint().directory);
    const auto trained = tensors_of(checkpoint("run", 6));
    EXPECT_EQ(fresh->steps_done(), 0);
    EXPECT_TRUE(same_bits(start.at("model.embed_tokens.weight"), trained.at("model.embed_tokens.weight")));
    EXPECT_FALSE(same_bits(start.at("gates.log_alpha"), trained.at("gates.log_alpha")));
    for (const double m : start.at("adamw.m.model.norm.weight")) EXPECT_EQ(m, 0.0);

    options.mode = TrainMode::weights_only;
    const auto fixed = tensors_of(trainer(options, "fixed")->save_checkpoint().directory);
    EXPECT_TRUE(same_bits(fixed.at("gates.log_alpha"), trained.at("gates.log_alpha")));
}

// One rank cannot write: all throw, what was there stays, nothing half-written remains.
TEST_F(Restart, AFailedWriteLeavesThePreviousCheckpoint) {
    const fs::path root = folder.path() / "checkpoints";
    const std::vector<float> values(10, 1.5F);
    const TensorPart good{{"w", DType::float32, {10}}, 0, 10, values.data()};
    const TensorPart bad{{"w", DType::float32, {10}}, 8, 10, values.data()};  // beyond the end
    const bool first = ranks.rank() == 0;
    const bool last = ranks.rank() == ranks.size() - 1;
    const auto write = [&](std::int64_t step, const TensorPart& part, bool mine) {
        CheckpointMeta meta;
        meta.step = step;
        meta.state = nlohmann::json::object();
        const std::vector<TensorPart> parts(mine ? 1 : 0, part);
        return detail::write_checkpoint(root, meta, parts, 2, ranks);
    };
    EXPECT_EQ(write(1, good, first).directory, root / checkpoint_name(1));
    EXPECT_THROW((void)write(2, bad, last), Error);
    ranks.barrier();
    const auto found = list_checkpoints(root);
    ASSERT_EQ(found.size(), 1U);
    EXPECT_EQ(found[0], root / checkpoint_name(1));
    EXPECT_TRUE(CheckpointReader(found[0]).verify().ok());
    std::size_t entries = 0;
    for (const auto& entry : fs::directory_iterator(root)) entries += entry.path().filename() == "" ? 0 : 1;
    EXPECT_EQ(entries, 1U);
    ranks.barrier();
    EXPECT_EQ(write(2, good, first).directory, root / checkpoint_name(2));
}

TEST_F(Restart, KeepsTheNewestCheckpoints) {
    TrainOptions options = with_gates();
    options.checkpoint_interval = 1;
    (void)trainer(options, "run")->run();
    const auto found = list_checkpoints(folder.path() / "run" / "checkpoints");
    ASSERT_EQ(found.size(), 2U);
    EXPECT_EQ(found[0], checkpoint("run", 5));
    EXPECT_EQ(found[1], checkpoint("run", 6));
}

}  // namespace
}  // namespace sparseattn
