#include "sparseattn/train/detail/gate_learner.hpp"

#include <algorithm>
#include <utility>

namespace sparseattn::detail {

GateLearner::GateLearner(const TrainOptions& options, HeadGates start)
    : log_alpha(start.log_alpha().values),
      lambdas({0.0, 0.0}),
      options_(&options),
      layers_(start.log_alpha().layers),
      heads_(start.log_alpha().heads),
      target_(options.sparsity, options.max_steps) {
    clear();
}

void GateLearner::clear() {
    sums.assign(log_alpha.values.size() + 3, 0.0);
}

HeadGates GateLearner::head_gates() const {
    HeadMap map(layers_, heads_);
    map.values = log_alpha.values;
    return HeadGates(std::move(map));
}

LagrangianController GateLearner::controller() const {
    LagrangianController controller(options_->sparsity.disable_linear_regularization_term);
    controller.lambda1 = lambdas.values[0];
    controller.lambda2 = lambdas.values[1];
    return controller;
}

GateValues GateLearner::gates(std::int64_t step, std::int64_t slot) const {
    if (learns_masks(options_->mode)) return head_gates().sample(options_->seed, step, slot);
    return head_gates().deterministic();
}

void GateLearner::learn(std::int64_t step, const GateValues& used, const HeadMap& dgate) {
    const double pack_share = 1.0 / options_->batch_size;  // R is the mean over the packs
    const bool sampled = options_->sparsity.estimate == SparsityEstimate::sampled;
    const GateValues measured = sampled ? used : head_gates().deterministic();
    const auto penalty = controller().penalty(head_sparsity(measured.z), target_.at(step));
    const std::size_t count = log_alpha.values.size();
    const double by_gate = -penalty.by_sparsity / static_cast<double>(count);  // sparsity = 1 - mean z
    for (std::size_t i = 0; i < count; ++i) {
        sums[i] += dgate.values[i] * used.slope.values[i] + pack_share * by_gate * measured.slope.values[i];
    }
    sums[count] += pack_share * penalty.by_lambda1;
    sums[count + 1] += pack_share * penalty.by_lambda2;
    sums[count + 2] += pack_share * head_sparsity(used.z);
}

void GateLearner::update(double factor) {
    const AdamWSettings settings{options_->beta1, options_->beta2, options_->epsilon, 0.0};
    const auto count = static_cast<std::ptrdiff_t>(log_alpha.values.size());
    ++updates;
    log_alpha.update(AdamWUpdate<double>(settings, updates, factor * options_->sparsity.mask_learning_rate),
                     {sums.begin(), sums.begin() + count});
    lambdas.update(AdamWUpdate<double>(settings, updates, factor * options_->sparsity.reg_learning_rate),
                   {sums.begin() + count, sums.begin() + count + 2}, -1.0);
}

}  // namespace sparseattn::detail
