// Steps, evaluations and prefills whose memory has grown: nothing is allocated, and the host waits where the table of
// docs/architecture.md says.
#include <gmock/gmock.h>

#include "model/problem.hpp"
#include "sparseattn/train/detail/pack_runner.hpp"
#include "support/steady.hpp"
#include "train/training_case.hpp"

namespace sparseattn {
namespace {

using namespace testing_train;
using sparseattn::testing::SteadyRecording;
using ::testing::IsEmpty;

const std::vector<std::string> branches = {"streaming", "xattention:stride=8,threshold=0.5",
                                           "flexprefill:gamma=0.4,min_budget=64", "minference:adaptive_budget=0.1"};

struct Run {
    TrainMode mode = TrainMode::dense;
    std::string branch = "streaming";
    Precision precision = Precision::fp32;
};

std::vector<Run> runs() {
    std::vector<Run> all;
    for (const Precision precision : {Precision::fp32, Precision::bf16}) {
        all.push_back({TrainMode::dense, "streaming", precision});
        for (const std::string& branch : branches) all.push_back({TrainMode::masks_and_weights, branch, precision});
    }
    return all;
}

class SteadyTraining : public ::testing::TestWithParam<Run>, public TrainingCase {
  protected:
    static constexpr int packs = 2;
    [[nodiscard]] static bool gated() { return GetParam().mode != TrainMode::dense; }
    [[nodiscard]] TrainOptions options() const {
        TrainOptions options = small_run();
        options.mode = GetParam().mode;
        options.precision = GetParam().precision;
        options.sparsity.sparse_branch = GetParam().branch;
        options.sparsity.gate_init_mean = 0.3;
        options.max_steps = 100;
        options.batch_size = packs;
        options.sequence_length = 480;
        options.evaluation_packs = 3;
        options.evaluate_sparse = true;
        return options;
    }
    void check(const char* what, const SteadyRecording& recording, int waits) const {
        std::printf("%s, %s, %s: %s\n", what, to_string(GetParam().precision).c_str(),
                    gated() ? GetParam().branch.c_str() : "dense", recording.text().c_str());
        EXPECT_FALSE(recording.kernels().empty());
        EXPECT_THAT(recording.memory(), IsEmpty()) << what;
        EXPECT_LE(recording.waits(), waits) << what;
        EXPECT_THAT(recording.hidden_waits(), IsEmpty()) << what;
    }
};

// A step waits once a pack for its loss, once more for the gradients of its gates, and once for the gradients' norm;
// packs have other documents and other gates from step to step.
TEST_P(SteadyTraining, StepsAllocateNothing) {
    const auto run = trainer_alone(options(), "steps");
    for (int step = 0; step < 30; ++step) (void)run->step();
    const SteadyRecording recording;
    for (int step = 0; step < 3; ++step) (void)run->step();
    check("3 steps of 2 packs", recording, 3 * (packs * (gated() ? 2 : 1) + 1));
}

// An evaluation waits once a pack and kind of gates.
TEST_P(SteadyTraining, EvaluationsAllocateNothing) {
    const auto run = trainer_alone(options(), "evaluations");
    (void)run->evaluate();
    (void)run->evaluate();
    const SteadyRecording recording;
    (void)run->evaluate();
    check("evaluation of 3 packs", recording, 3 * (gated() ? 3 : 1));
}

std::string name_of(const ::testing::TestParamInfo<Run>& info) {
    const std::string branch = info.param.branch.substr(0, info.param.branch.find(':'));
    return to_string(info.param.precision) + "_" + (info.param.mode == TrainMode::dense ? "dense" : branch);
}
INSTANTIATE_TEST_SUITE_P(Runs, SteadyTraining, ::testing::ValuesIn(runs()), name_of);

// A prefill: one pass without gradients, by every method, with heads of their own modes and with shared groups.
template <class T>
void check_prefill(const std::string& method, const HeadPlan& plan) {
    using detail::TrainExec;
    ModelConfig config = small_run().model;
    config.vocab_size = 97;
    const auto batch = test::random_batch(config, {0, 900}, 11);
    const auto values = test::random_parameters(config, 12);
    const test::Device<T> parameters(std::vector<T>(values.begin(), values.end()));
    SelectedAttention<TrainExec, T> attention(
        std::vector<LayerSelector>(config.num_hidden_layers, LayerSelector{parse_selector(method), plan}));
    Decoder<TrainExec, T> decoder(TrainExec(), config);
    const auto prefill = [&] { (void)decoder.loss(batch, attention, parameters.flat(), 256); };
    prefill();
    prefill();
    const SteadyRecording recording;
    prefill();
    std::printf("prefill, %s%s%s: %s\n", method.c_str(), plan.fixed.empty() ? "" : ", fixed heads",
                plan.share_groups ? ", shared groups" : "", recording.text().c_str());
    EXPECT_THAT(recording.memory(), IsEmpty()) << method;
    EXPECT_LE(recording.waits(), 1) << method;
    EXPECT_THAT(recording.hidden_waits(), IsEmpty()) << method;
}

TEST(SteadyPrefill, AllocatesNothingAndWaitsForTheLoss) {
    const std::vector<std::optional<HeadMode>> fixed = {HeadMode::stream(64, 128), std::nullopt, std::nullopt,
                                                        HeadMode::dense()};
    for (const std::string method : {"full:block=64", "streaming:sink=8,local=40", "xattention:stride=8,threshold=0.5",
                                     "flexprefill:gamma=0.4,min_budget=64", "minference:adaptive_budget=0.1"}) {
        for (const HeadPlan& plan : {HeadPlan{}, HeadPlan{fixed, false}, HeadPlan{{}, true}, HeadPlan{fixed, true}}) {
            check_prefill<float>(method, plan);
            check_prefill<bf16>(method, plan);
        }
    }
}

}  // namespace
}  // namespace sparseattn
