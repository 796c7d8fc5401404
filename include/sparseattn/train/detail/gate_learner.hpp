#pragma once
// The gates of a run, their controller and what they learn from each pack.

#include <cstdint>
#include <vector>

#include "sparseattn/sparsity/controller.hpp"
#include "sparseattn/sparsity/head_gates.hpp"
#include "sparseattn/train/adamw.hpp"
#include "sparseattn/train/train_options.hpp"

namespace sparseattn::detail {

// One step of a run, for every pack of the rank: gates() -> use them -> learn(); then reduce `sums` over the ranks;
// then update() on every rank alike.
class GateLearner {
  public:
    GateLearner(const TrainOptions& options, HeadGates start);

    // The gates that pack `slot` of `step` computes with: samples, or the fixed masks when the mode does not learn
    // them.
    [[nodiscard]] GateValues gates(std::int64_t step, std::int64_t slot) const;

    // Adds a pack's share of the gradient: `dgate` is d(loss of the step)/dz of the gates given for the pack.
    void learn(std::int64_t step, const GateValues& used, const HeadMap& dgate);

    // What learn() summed since the last clear(): d(loss)/d(log alpha), then dR/d(lambda1), dR/d(lambda2), then
    // sparsity.
    std::vector<double> sums;
    void clear();
    [[nodiscard]] double sampled_sparsity() const { return sums.back(); }
    [[nodiscard]] double target(std::int64_t step) const { return target_.at(step); }

    // Log-alphas descend and the multipliers ascend the summed gradients; `factor` is the schedule's.
    void update(double factor);

    [[nodiscard]] HeadMap deployed() const { return head_gates().deterministic().z; }
    [[nodiscard]] HeadGates head_gates() const;

    HostParameters log_alpha;
    HostParameters lambdas;  // lambda1, lambda2
    std::int64_t updates = 0;

  private:
    [[nodiscard]] LagrangianController controller() const;

    const TrainOptions* options_;  // outlives this
    int layers_;
    int heads_;
    SparsityTarget target_;
};

}  // namespace sparseattn::detail
