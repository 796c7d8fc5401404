#pragma once
/// \file
/// What a training run tells its caller, and what the caller may ask of it while it runs.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>

namespace sparseattn {

/// One optimizer step. Losses are in nats per label, over all ranks; sparsities are shares of query heads; fields that
/// the mode does not have are NaN.
struct StepReport {
    static constexpr double none = std::numeric_limits<double>::quiet_NaN();
    std::int64_t step = 0;  // steps done, this one included
    std::int64_t max_steps = 0;
    double loss = none;  // before the update
    double learning_rate = none;
    double mask_learning_rate = none;
    double target_sparsity = none;
    double expected_sparsity = none;  // of the gates' distribution before the update
    double sampled_sparsity = none;   // mean over the step's packs: the same with the noise of a few samples
    double deployed_sparsity = none;  // of the deterministic gates before the update
    double lambda1 = none;
    double lambda2 = none;
    double gradient_norm = none;  // of the weights, before clipping
    double seconds = 0;
    double tokens_per_second = 0;  // over all ranks
    std::int64_t tokens = 0;       // since the first step of the run, restarts included
    bool skipped = false;          // loss or gradient not finite: nothing was updated
    std::int64_t skipped_steps = 0;
};

/// Validation losses in nats per label; NaN where not measured.
struct EvaluationReport {
    std::int64_t step = 0;
    double deployed = StepReport::none;  // deterministic gates (mode dense: every head dense)
    double dense = StepReport::none;     // every head dense
    double sparse = StepReport::none;    // every head streaming
    double deployed_sparsity = StepReport::none;
    std::int64_t labels = 0;
    double seconds = 0;
};

struct CheckpointReport {
    std::int64_t step = 0;
    std::filesystem::path directory;
    std::int64_t bytes = 0;  // written by all ranks
    double seconds = 0;
};

/// What a signal or a clock asks for between two steps.
struct StopRequest {
    bool checkpoint = false;  // write a checkpoint and go on
    bool stop = false;        // write a checkpoint and return
};

/// Callbacks of a run; empty ones are not called. Reports come on every rank with the same content but the times.
struct TrainObserver {
    std::function<void(const StepReport&)> step = {};
    std::function<void(const EvaluationReport&)> evaluation = {};
    std::function<void(const CheckpointReport&)> checkpoint = {};
    std::function<void(const std::string&)> warning = {};
    /// Asked once per step on every rank; what any rank asks for happens on all of them. A request to checkpoint is
    /// taken as given once returned.
    std::function<StopRequest()> poll = {};
};

/// How a run ended.
struct TrainResult {
    bool finished = false;  // false: stopped on request, with a checkpoint
    std::int64_t step = 0;
    StepReport last_step;
    EvaluationReport last_evaluation;
    std::filesystem::path last_checkpoint;
    double seconds = 0;  // of this call
};

}  // namespace sparseattn
