#include "sparseattn/train/learning_rate.hpp"

#include <algorithm>
#include <cmath>

#include "sparseattn/core/error.hpp"

namespace sparseattn {

LearningRateSchedule::LearningRateSchedule(std::int64_t max_steps, double warmup_ratio, double min_lr_ratio)
    : max_steps_(max_steps), min_ratio_(min_lr_ratio) {
    require(max_steps >= 1, "max_steps", max_steps, "at least 1");
    require(warmup_ratio >= 0.0 && warmup_ratio <= 1.0, "warmup_ratio", warmup_ratio, "between 0 and 1");
    require(min_lr_ratio >= 0.0 && min_lr_ratio <= 1.0, "min_lr_ratio", min_lr_ratio, "between 0 and 1");
    warmup_steps_ = static_cast<std::int64_t>(std::ceil(warmup_ratio * static_cast<double>(max_steps)));
}

double LearningRateSchedule::factor(std::int64_t step) const {
    constexpr double pi = 3.14159265358979323846;
    const double warmup = static_cast<double>(std::max<std::int64_t>(1, warmup_steps_));
    if (step < warmup_steps_) return static_cast<double>(step) / warmup;
    const double rest = static_cast<double>(std::max<std::int64_t>(1, max_steps_ - warmup_steps_));
    const double progress = std::min(1.0, static_cast<double>(step - warmup_steps_) / rest);
    return min_ratio_ + (1.0 - min_ratio_) * 0.5 * (1.0 + std::cos(pi * progress));
}

}  // namespace sparseattn
