#pragma once
/// \file
/// AdamW (Loshchilov and Hutter, arXiv 1711.05101) on flat arrays.

#include <cmath>
#include <cstdint>
#include <vector>

#include "sparseattn/core/types.hpp"
#include "sparseattn/core/workspace.hpp"
#include "sparseattn/model/parameter_table.hpp"
#include "sparseattn/parallel/partition.hpp"

namespace sparseattn {

struct AdamWSettings {
    double beta1 = 0.9;
    double beta2 = 0.95;
    double epsilon = 1e-8;
    double weight_decay = 0.0;
};

/// The numbers of one update, and the update of one element: with gradient g' = gradient_scale g,
/// m <- beta1 m + (1 - beta1) g', v <- beta2 v + (1 - beta2) g'^2,
/// w <- w - rate (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + decay w).
template <class T>
struct AdamWUpdate {
    T rate, beta1, beta2, epsilon, decay, correction1, correction2, gradient_scale;

    /// `t` counts updates from 1.
    AdamWUpdate(const AdamWSettings& settings, std::int64_t t, double learning_rate, double scale = 1.0)
        : rate(static_cast<T>(learning_rate)),
          beta1(static_cast<T>(settings.beta1)),
          beta2(static_cast<T>(settings.beta2)),
          epsilon(static_cast<T>(settings.epsilon)),
          decay(static_cast<T>(settings.weight_decay)),
          correction1(static_cast<T>(1.0 / (1.0 - std::pow(settings.beta1, static_cast<double>(t))))),
          correction2(static_cast<T>(1.0 / (1.0 - std::pow(settings.beta2, static_cast<double>(t))))),
          gradient_scale(static_cast<T>(scale)) {}

    KOKKOS_INLINE_FUNCTION void apply(T& w, T gradient, T& m, T& v) const {
        const T g = gradient_scale * gradient;
        m = beta1 * m + (T(1) - beta1) * g;
        v = beta2 * v + (T(1) - beta2) * g * g;
        w -= rate * (m * correction1 / (math::sqrt(v * correction2) + epsilon) + decay * w);
    }
};

/// One update of the parameters of a model in `range` of the flat buffers, asynchronous on `exec`; parameters without
/// decay (ParameterInfo::decay) are updated with decay 0. `parameters` and `gradients` are [table.total()], the moments
/// [range.count()].
template <class Exec>
void adamw_update(const Exec& exec, const ParameterTable& table, const IndexRange& range,
                  const AdamWUpdate<float>& update, const Span1<float, typename Exec::memory_space>& parameters,
                  const Span1<const float, typename Exec::memory_space>& gradients,
                  const Span1<float, typename Exec::memory_space>& m,
                  const Span1<float, typename Exec::memory_space>& v);

/// A few numbers that learn on the host (log-alphas, multipliers), with their moments.
struct HostParameters {
    std::vector<double> values, m, v;

    HostParameters() = default;
    explicit HostParameters(std::vector<double> start)
        : values(std::move(start)), m(values.size(), 0.0), v(values.size(), 0.0) {}
    /// One update; `sign` -1 ascends the gradient instead.
    void update(const AdamWUpdate<double>& update, const std::vector<double>& gradient, double sign = 1.0);
};

/// Sum of squares of all `parts` in double, waits for `exec` once: sums of fixed pieces added in a fixed order, so that
/// the result does not depend on the number of threads.
template <class Exec>
double squared_norm(const Exec& exec, const std::vector<Span1<const float, typename Exec::memory_space>>& parts,
                    Workspace<typename Exec::memory_space>& workspace);

}  // namespace sparseattn
