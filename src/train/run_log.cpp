#include "sparseattn/train/detail/run_log.hpp"

#include <array>
#include <string>
#include <vector>

namespace sparseattn::detail {
namespace {
const std::vector<std::string> step_columns = {"loss",
                                               "learning_rate",
                                               "mask_learning_rate",
                                               "target_sparsity",
                                               "expected_sparsity",
                                               "sampled_sparsity",
                                               "deployed_sparsity",
                                               "lambda1",
                                               "lambda2",
                                               "gradient_norm",
                                               "seconds",
                                               "tokens_per_second",
                                               "tokens",
                                               "skipped"};
const std::vector<std::string> evaluation_columns = {"deployed", "dense", "sparse", "deployed_sparsity", "labels"};
}  // namespace

RunLog::RunLog(const std::filesystem::path& run_dir, std::int64_t step)
    : steps_(run_dir / "metrics.csv", step_columns), evaluations_(run_dir / "evaluation.csv", evaluation_columns) {
    steps_.cut_back(step);
    evaluations_.cut_back(step);
}

void RunLog::append(const StepReport& r) {
    const std::array<double, 14> row = {r.loss,
                                        r.learning_rate,
                                        r.mask_learning_rate,
                                        r.target_sparsity,
                                        r.expected_sparsity,
                                        r.sampled_sparsity,
                                        r.deployed_sparsity,
                                        r.lambda1,
                                        r.lambda2,
                                        r.gradient_norm,
                                        r.seconds,
                                        r.tokens_per_second,
                                        static_cast<double>(r.tokens),
                                        r.skipped ? 1.0 : 0.0};
    steps_.append(r.step, row);
}

void RunLog::append(const EvaluationReport& r) {
    const std::array<double, 5> row = {r.deployed, r.dense, r.sparse, r.deployed_sparsity,
                                       static_cast<double>(r.labels)};
    evaluations_.append(r.step, row);
}

}  // namespace sparseattn::detail
