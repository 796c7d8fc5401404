#include "sparseattn/sparsity/controller.hpp"

#include <cmath>

#include "sparseattn/core/error.hpp"

namespace sparseattn {

void SparsityOptions::validate() const {
    const auto share = [](double x) { return x >= 0.0 && x <= 1.0; };  // false for NaN
    require(share(start_head_sparsity), "start_head_sparsity", start_head_sparsity, "between 0 and 1");
    require(share(end_head_sparsity), "end_head_sparsity", end_head_sparsity, "between 0 and 1");
    require(share(sparsity_warmup_ratio), "sparsity_warmup_ratio", sparsity_warmup_ratio, "between 0 and 1");
    if (schedule == SparsitySchedule::logarithmic) {
        require(start_head_sparsity < 1.0, "start_head_sparsity", start_head_sparsity,
                "below 1 with the logarithmic schedule");
        require(end_head_sparsity < 1.0, "end_head_sparsity", end_head_sparsity,
                "below 1 with the logarithmic schedule");
    }
    const auto rate = [](double x) { return x >= 0.0 && std::isfinite(x); };
    require(rate(mask_learning_rate), "mask_learning_rate", mask_learning_rate, "finite and at least 0");
    require(rate(reg_learning_rate), "reg_learning_rate", reg_learning_rate, "finite and at least 0");
    require(sink >= 0, "sink", sink, "at least 0");
    require(local >= 1, "local", local, "at least 1");
    require(std::isfinite(gate_init_mean), "gate_init_mean", gate_init_mean, "finite");
    require(rate(gate_init_std), "gate_init_std", gate_init_std, "finite and at least 0");
}

SparsityTarget::SparsityTarget(const SparsityOptions& options, std::int64_t max_steps)
    : start_(options.start_head_sparsity),
      end_(options.end_head_sparsity),
      schedule_(options.schedule),
      warmup_steps_(
          static_cast<std::int64_t>(std::ceil(options.sparsity_warmup_ratio * static_cast<double>(max_steps)))) {}

double SparsityTarget::at(std::int64_t step) const {
    if (step >= warmup_steps_) return end_;
    const double done = static_cast<double>(step) / static_cast<double>(warmup_steps_);
    if (schedule_ == SparsitySchedule::linear) return start_ + (end_ - start_) * done;
    const double from = std::log1p(-start_);
    const double to = std::log1p(-end_);
    return -std::expm1(from + (to - from) * done);
}

LagrangianController::Penalty LagrangianController::penalty(double sparsity, double target) const {
    const double gap = sparsity - target;
    Penalty penalty;
    penalty.value = lambda1 * gap + lambda2 * gap * gap;
    penalty.by_sparsity = lambda1 + 2.0 * lambda2 * gap;
    penalty.by_lambda1 = linear_ ? gap : 0.0;
    penalty.by_lambda2 = gap * gap;
    return penalty;
}

}  // namespace sparseattn
