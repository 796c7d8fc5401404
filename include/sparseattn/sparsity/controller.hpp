#pragma once
/// \file
/// What drives the gates to the wanted sparsity: a target that moves with the step and a Lagrangian penalty.

#include <cstdint>

#include "sparseattn/sparsity/sparsity_options.hpp"

namespace sparseattn {

/// Target head sparsity t(step) of a run. W = ceil(sparsity_warmup_ratio * max_steps); from step W on it is
/// end_head_sparsity. Before, linear: start + (end - start) step / W; logarithmic: the same line in ln(1 - t).
class SparsityTarget {
  public:
    SparsityTarget(const SparsityOptions& options, std::int64_t max_steps);
    /// `step` counts finished steps: 0 for the first.
    [[nodiscard]] double at(std::int64_t step) const;
    [[nodiscard]] std::int64_t warmup_steps() const { return warmup_steps_; }

  private:
    double start_;
    double end_;
    SparsitySchedule schedule_;
    std::int64_t warmup_steps_;
};

/// R = lambda1 (s - t) + lambda2 (s - t)^2 for measured sparsity s and target t. The gates descend R, the multipliers
/// ascend it; both start at 0. Without the linear term lambda1 stays 0.
class LagrangianController {
  public:
    explicit LagrangianController(bool disable_linear_term) : linear_(!disable_linear_term) {}

    struct Penalty {
        double value = 0;
        double by_sparsity = 0;  // dR / ds
        double by_lambda1 = 0;   // 0 without the linear term
        double by_lambda2 = 0;
    };
    [[nodiscard]] Penalty penalty(double sparsity, double target) const;

    double lambda1 = 0;
    double lambda2 = 0;

  private:
    bool linear_;
};

}  // namespace sparseattn
