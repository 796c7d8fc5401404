#pragma once
// The CSV files of a run.

#include <filesystem>
#include <optional>

#include "sparseattn/io/metrics.hpp"
#include "sparseattn/train/reports.hpp"

namespace sparseattn::detail {

// metrics.csv (one row per step) and evaluation.csv (one row per evaluation) in a run's directory.
class RunLog {
  public:
    // Continues the files of `run_dir` with the rows up to `step`.
    RunLog(const std::filesystem::path& run_dir, std::int64_t step);
    void append(const StepReport& report);
    void append(const EvaluationReport& report);

  private:
    MetricsWriter steps_;
    MetricsWriter evaluations_;
};

}  // namespace sparseattn::detail
