// Training whose closed gates attend to what a selector keeps.
#include <gmock/gmock.h>

#include "sparseattn/core/error.hpp"
#include "sparseattn/sparsity/head_masks.hpp"
#include "sparseattn/sparsity/sparse_branch.hpp"
#include "sparseattn/train/detail/pack_runner.hpp"
#include "sparseattn/train/evaluator.hpp"
#include "train/training_case.hpp"

namespace sparseattn {
namespace {

using namespace testing_train;
using testing::HasSubstr;

class BranchTraining : public testing::Test, public TrainingCase {};

// Documents of several blocks, and a selector that leaves some of them out.
TrainOptions branch_run(const std::string& branch) {
    TrainOptions options = small_run();
    options.sequence_length = 480;
    options.sparsity.sparse_branch = branch;
    options.sparsity.gate_init_mean = 0.0;
    return options;
}

const std::vector<std::string> selecting = {"xattention:stride=16,threshold=0.3", "minference:adaptive_budget=0.02",
                                            "flexprefill:gamma=0.3,min_budget=0"};

TEST(SparseBranch, IsReadFromText) {
    TrainOptions options = small_run();
    const auto read = [&](const std::string& text, int block) {
        options.sparsity.sparse_branch = text;
        return make_sparse_branch(options.sparsity, options.model, block);
    };
    EXPECT_EQ(read("streaming", 64).mode, HeadMode::stream(8, 16));
    EXPECT_FALSE(read("streaming", 64).selects());
    const SparseBranch tri = read("streaming:sink=3,local=9,dense_tail=7", 128);
    EXPECT_EQ(tri.mode, HeadMode::stream(3, 9, Granularity::token, 7));
    EXPECT_FALSE(tri.selects());
    for (const int block : {64, 128}) {
        const SparseBranch branch = read(selecting[0], block);
        ASSERT_EQ(branch.layers.size(), 2U);
        EXPECT_EQ(std::get<XAttentionOptions>(branch.layers[1]).block, block);
        EXPECT_EQ(std::get<XAttentionOptions>(branch.layers[1]).threshold, 0.3);
        EXPECT_EQ(std::get<MInferenceOptions>(read("minference", block).layers[0]).block, block);
    }
    EXPECT_EQ(std::get<XAttentionOptions>(read("xattention:block=128", 128).layers[0]).block, 128);
    EXPECT_THROW((void)read("minference:table=absent.json", 64), FileError);
}

// The branch is neither dense nor streaming: the loss with closed gates is its own.
TEST_F(BranchTraining, ClosedGatesSelect) {
    const TrainOptions options = branch_run(selecting[0]);
    const detail::TrainExec exec;
    const Array1<float, detail::TrainMem> parameters("parameters", ParameterTable(options.model).total());
    Decoder<detail::TrainExec, float>::initialise(exec, options.model, 7, parameters);
    const PackStream stream(data->train(), options.sequence_length, 1, true);
    const HeadMap closed(2, 2, 0.0);
    std::vector<double> losses;
    for (const std::string& branch : {std::string("streaming"), selecting[0], selecting[1], selecting[2]}) {
        SparsityOptions sparsity = options.sparsity;
        sparsity.sparse_branch = branch;
        const auto runner = detail::PackRunner::make(
            exec, options.model, {64, {}, make_sparse_branch(sparsity, options.model, 64), {false, 64}},
            ProcessGrid(Communicator()));
        runner->use(parameters);
        const double closed_loss = runner->loss(stream.pack(0), &closed);
        const double dense_loss = runner->loss(stream.pack(0), nullptr);
        EXPECT_NE(closed_loss, dense_loss) << branch;
        EXPECT_NEAR(closed_loss, dense_loss, 0.05 * dense_loss) << branch;
        losses.push_back(closed_loss);
    }
    std::sort(losses.begin(), losses.end());
    EXPECT_EQ(std::adjacent_find(losses.begin(), losses.end()), losses.end());
}

TEST_F(BranchTraining, Learns) {
    for (const std::string& branch : selecting) {
        SCOPED_TRACE(branch);
        TrainOptions options = branch_run(branch);
        options.max_steps = 20;
        options.sparsity.mask_learning_rate = 0.3;
        options.sparsity.reg_learning_rate = 0.3;
        options.sparsity.start_head_sparsity = 0.5;
        options.sparsity.end_head_sparsity = 0.5;
        options.evaluation_packs = 2;
        options.evaluate_sparse = true;
        double first = 0;
        const auto run = trainer(options, "learns_" + branch.substr(0, 4), {.step = [&](const StepReport& report) {
                                     if (report.step == 1) first = report.loss;
                                 }});
        const TrainResult result = run->run();
        EXPECT_GT(first, 5.0);
        EXPECT_LT(result.last_step.loss, 0.6 * first);
        EXPECT_LT(result.last_evaluation.sparse, 0.65 * first);
        EXPECT_GT(result.last_step.sampled_sparsity, 0.1);

        EvaluationOptions evaluation;
        evaluation.checkpoint = result.last_checkpoint;
        evaluation.packs = 2;
        const EvaluationResult again = evaluate_checkpoint(evaluation, *data, ranks);
        EXPECT_EQ(again.sparse_branch, branch);
        EXPECT_NEAR(again.sparse, result.last_evaluation.sparse, 1e-6);
        EXPECT_NEAR(again.deployed, result.last_evaluation.deployed, 1e-6);
        evaluation.sparse_branch = "streaming";
        EXPECT_NE(evaluate_checkpoint(evaluation, *data, ranks).sparse, again.sparse);
        evaluation.sparse_branch.clear();
        evaluation.local = 20;
        EXPECT_THROW((void)evaluate_checkpoint(evaluation, *data, ranks), InvalidArgument);
    }
}

TEST_F(BranchTraining, RestartEndsWithTheSameBits) {
    TrainOptions options = branch_run(selecting[0]);
    options.checkpoint_interval = 3;
    const auto at = [&](const std::string& run, std::int64_t step) {
        return folder.path() / run / "checkpoints" / checkpoint_name(step);
    };
    (void)trainer(options, "whole")->run();
    const auto again = trainer(options, "half");
    again->restart(at("whole", 3));
    (void)again->run();
    const auto whole = tensors_of(at("whole", 6)), half = tensors_of(at("half", 6));
    for (const auto& [name, values] : whole) EXPECT_TRUE(same_bits(values, half.at(name))) << name;
    // The gates have moved, so the branch took part.
    const auto before = tensors_of(at("whole", 3));
    EXPECT_FALSE(same_bits(whole.at("gates.log_alpha"), before.at("gates.log_alpha")));
}

TEST_F(BranchTraining, FixedMasksTrainTheSelectedModel) {
    TrainOptions options = branch_run(selecting[0]);
    options.mode = TrainMode::weights_only;
    options.masks = folder.path() / "closed.tsv";
    options.max_steps = 20;
    if (ranks.rank() == 0) write_head_masks(options.masks, HeadMap(2, 2, 0.0), {8, 16});
    ranks.barrier();
    double first = 0;
    const auto run = trainer(options, "closed", {.step = [&](const StepReport& report) {
                                 if (report.step == 1) first = report.loss;
                             }});
    const double last = run->run().last_step.loss;
    EXPECT_LT(last, 0.6 * first);
}

}  // namespace
}  // namespace sparseattn
