#pragma once
/// \file
/// Hard-concrete gates of attention heads (Louizos et al., arXiv 1712.01312; PruLong, arXiv 2506.17121).

#include <cstdint>
#include <utility>

#include "sparseattn/sparsity/head_map.hpp"
#include "sparseattn/sparsity/sparsity_options.hpp"

namespace sparseattn {

namespace hard_concrete {
inline constexpr double temperature = 2.0 / 3.0;
inline constexpr double low = -0.1;  // the stretched interval, clamped to [0, 1]
inline constexpr double high = 1.1;

/// z for log-alpha and a uniform u in (0, 1): clamp((high - low) s + low, 0, 1), s = sg((ln u - ln(1 - u) + alpha) /
/// T).
[[nodiscard]] double sample(double log_alpha, double u);
/// dz / d(log_alpha) of the same sample; 0 where z is clamped.
[[nodiscard]] double sample_slope(double log_alpha, double u);
/// P(z = 0) = sg(T ln(-low / high) - alpha).
[[nodiscard]] double zero_probability(double log_alpha);
/// E z = integral over x in [0, 1] of P(z > x) = sg(alpha - T logit((x - low) / (high - low))), to about 1e-8
/// (Simpson).
[[nodiscard]] double mean(double log_alpha);
/// The soft deterministic gate sg(0.8 alpha / T).
[[nodiscard]] double deterministic(double log_alpha);
/// Its derivative by alpha.
[[nodiscard]] double deterministic_slope(double log_alpha);
}  // namespace hard_concrete

/// Gates and their derivatives by log-alpha.
struct GateValues {
    HeadMap z;
    HeadMap slope;
};

/// One log-alpha per layer and key/value head.
class HeadGates {
  public:
    explicit HeadGates(HeadMap log_alpha) : log_alpha_(std::move(log_alpha)) {}
    /// log-alpha from N(gate_init_mean, gate_init_std) by counter, a pure function of (seed, layer, head).
    static HeadGates initial(int layers, int heads, const SparsityOptions& options, std::uint64_t seed);
    /// log-alpha = (2 x - 1) * 10 for masks x in [0, 1].
    static HeadGates from_masks(const HeadMap& masks);

    /// The random gates of one pack: a pure function of (seed, step, slot, layer, head).
    [[nodiscard]] GateValues sample(std::uint64_t seed, std::int64_t step, std::int64_t slot) const;

    /// The gates to evaluate and to deploy. In each layer the round(sum of P(z = 0)) heads of the smallest soft gates
    /// are 0 (ties: lower head first), the others keep their soft gate. The slope is the soft gate's for every head, so
    /// that a zeroed head can come back.
    [[nodiscard]] GateValues deterministic() const;

    /// E z of every head.
    [[nodiscard]] HeadMap mean() const;

    [[nodiscard]] HeadMap& log_alpha() { return log_alpha_; }
    [[nodiscard]] const HeadMap& log_alpha() const { return log_alpha_; }

  private:
    HeadMap log_alpha_;
};

}  // namespace sparseattn
