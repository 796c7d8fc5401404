#pragma once
/// \file
/// What sparseattn-eval does between its command line and its exit code.

#include <filesystem>
#include <string>

#include "sparseattn/app/runtime.hpp"
#include "sparseattn/train/evaluator.hpp"

namespace sparseattn {

struct EvalArguments {
    std::filesystem::path checkpoint;  // a checkpoint, a folder of checkpoints, or a run's folder
    std::filesystem::path data;        // empty: as the checkpoint's deck says
    std::string granularity;           // empty: as the checkpoint was trained
    std::string implementation = "automatic";
    std::string precision;  // empty: that of the run
    bool json = false;
    EvaluationOptions options;  // the rest; checkpoint, granularity, implementation and precision: above
};

/// Measures and prints on rank 0. Collective over runtime.world(). Returns exit_code::done or throws.
[[nodiscard]] int eval_program(EvalArguments arguments, const Runtime& runtime);

}  // namespace sparseattn
