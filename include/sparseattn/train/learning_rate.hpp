#pragma once
/// \file
/// Learning-rate schedule.

#include <cstdint>

namespace sparseattn {

/// Factor that every learning rate of a run is multiplied with: linear warm-up over w = ceil(warmup_ratio max_steps)
/// steps, then a cosine down to min_lr_ratio at max_steps.
class LearningRateSchedule {
  public:
    /// max_steps >= 1; both ratios in [0, 1].
    LearningRateSchedule(std::int64_t max_steps, double warmup_ratio, double min_lr_ratio);

    /// `step` counts finished steps. step < w: step / w; else r + (1 - r) (1 + cos(pi (step - w) / (max_steps - w)))
    /// / 2.
    [[nodiscard]] double factor(std::int64_t step) const;
    [[nodiscard]] std::int64_t warmup_steps() const { return warmup_steps_; }

  private:
    std::int64_t max_steps_;
    std::int64_t warmup_steps_;
    double min_ratio_;
};

}  // namespace sparseattn
