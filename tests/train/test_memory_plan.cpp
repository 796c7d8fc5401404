#include <gmock/gmock.h>

#include <fstream>
#include <string>

#include "sparseattn/model/parameter_table.hpp"
#include "sparseattn/train/memory_plan.hpp"
#include "support/kokkos_tools.hpp"
#include "train/training_case.hpp"

namespace sparseattn {
namespace {

using namespace testing_train;

// A line of the kernel's account of this process, in bytes.
double resident(const std::string& key) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with(key + ":")) return 1024.0 * std::stod(line.substr(key.size() + 1));
    }
    return 0;
}

class MemoryPlans : public ::testing::Test, public TrainingCase {};

// A step of a run that shares each pack among all ranks (under mpirun), or of one rank. The only test of its program
// that computes: the peak is the process'.
TEST_F(MemoryPlans, AreWithinATenthOfTheMemoryTaken) {
    using Mem = Kokkos::DefaultExecutionSpace::memory_space;
    TrainOptions options = small_run();
    options.model.hidden_size = 256;
    options.model.num_hidden_layers = 4;
    options.model.intermediate_size = 640;
    options.sequence_length = 2048 * ranks.size();
    options.batch_size = 1;
    options.seq_parallel_size = ranks.size();
    // What MPI maps to talk to its neighbours is not the run's.
    std::vector<float> first_words(1 << 16);
    ranks.all_reduce_sum(first_words.data(), static_cast<std::int64_t>(first_words.size()));
    const double before = resident("VmRSS");
    ASSERT_GT(before, 0);
    const testing::KokkosPeak<Mem> peak;
    (void)trainer(options, "run")->step();
    const double grown = resident("VmHWM") - before;
    const auto planned = static_cast<double>(train_memory_plan(options, ranks.size()).total());
    const auto taken = static_cast<double>(peak.bytes());
    RecordProperty("taken_over_planned", std::to_string(taken / planned));
    EXPECT_NEAR(taken / planned, 1.0, 0.1) << "planned " << planned << ", taken " << taken;
    if (std::is_same_v<Mem, Kokkos::HostSpace>) {  // elsewhere the process' own memory holds little of the run
        RecordProperty("grown_over_planned", std::to_string(grown / planned));
        EXPECT_NEAR(grown / planned, 1.0, 0.1) << "planned " << planned << ", grown " << grown;
    }
    EXPECT_GT(planned, 60e6);
}

TEST(TrainMemoryPlan, FollowsTheMode) {
    TrainOptions options = small_run();
    const auto bytes = [&](const std::string& name, int ranks = 1) {
        for (const auto& [part, size] : train_memory_plan(options, ranks).parts) {
            if (part == name) return size;
        }
        return std::int64_t{-1};
    };
    const std::int64_t weights = 4 * ParameterTable(options.model).total();
    EXPECT_EQ(bytes("parameters"), weights);
    EXPECT_EQ(bytes("gradients"), weights);
    EXPECT_EQ(bytes("optimizer moments"), 2 * weights);
    EXPECT_GT(bytes("gates"), 0);
    // Moments are shared by the ranks, all else is not.
    options.batch_size = 8;
    EXPECT_NEAR(static_cast<double>(bytes("optimizer moments", 8)), 2.0 / 8 * static_cast<double>(weights), 200);
    EXPECT_EQ(bytes("gradients", 8), weights);
    EXPECT_EQ(bytes("messages"), 0);
    EXPECT_GT(bytes("messages", 8), 0);
    const std::int64_t kept = bytes("activations");
    options.recompute = true;
    EXPECT_LT(bytes("activations"), kept);
    const std::int64_t streaming = bytes("attention") + bytes("activations");
    options.sparsity.sparse_branch = "xattention";
    EXPECT_GT(bytes("attention") + bytes("activations"), streaming);
    options.mode = TrainMode::masks_only;
    EXPECT_EQ(bytes("optimizer moments"), 0);
    options.mode = TrainMode::dense;
    EXPECT_EQ(bytes("gates"), 0);
}

}  // namespace
}  // namespace sparseattn
