#include "sparseattn/sparsity/head_gates.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "sparseattn/core/rng.hpp"

namespace sparseattn {
namespace {

constexpr double mask_log_alpha = 10.0;     // |log-alpha| of a mask of 0 or 1
constexpr double deterministic_gain = 0.8;  // of log-alpha / T in the soft gate

double logistic(double x) {
    return 1.0 / (1.0 + std::exp(-x));
}

// The stretched sample before clamping, with the unstretched one.
struct Stretched {
    double s;
    double value;
};
Stretched stretch(double log_alpha, double u) {
    using namespace hard_concrete;
    const double s = logistic((std::log(u) - std::log1p(-u) + log_alpha) / temperature);
    return {s, (high - low) * s + low};
}

}  // namespace

namespace hard_concrete {

double sample(double log_alpha, double u) {
    return std::clamp(stretch(log_alpha, u).value, 0.0, 1.0);
}

double sample_slope(double log_alpha, double u) {
    const Stretched stretched = stretch(log_alpha, u);
    if (stretched.value <= 0.0 || stretched.value >= 1.0) return 0.0;
    return (high - low) * stretched.s * (1.0 - stretched.s) / temperature;
}

double zero_probability(double log_alpha) {
    return logistic(temperature * std::log(-low / high) - log_alpha);
}

double mean(double log_alpha) {
    constexpr int intervals = 128;  // Simpson's rule; the integrand is smooth on [0, 1]
    double sum = 0;
    for (int i = 0; i <= intervals; ++i) {
        const double s = (static_cast<double>(i) / intervals - low) / (high - low);
        const double above = logistic(log_alpha - temperature * (std::log(s) - std::log1p(-s)));
        sum += above * (i == 0 || i == intervals ? 1 : (i % 2 == 1 ? 4 : 2));
    }
    return sum / (3 * intervals);
}

double deterministic(double log_alpha) {
    return logistic(deterministic_gain * log_alpha / temperature);
}

double deterministic_slope(double log_alpha) {
    const double m = deterministic(log_alpha);
    return m * (1.0 - m) * deterministic_gain / temperature;
}

}  // namespace hard_concrete

HeadGates HeadGates::initial(int layers, int heads, const SparsityOptions& options, std::uint64_t seed) {
    HeadMap log_alpha(layers, heads);
    const RandomStream stream(seed, RandomPurpose::gate_init, 0);
    for (std::size_t i = 0; i < log_alpha.values.size(); ++i) {
        log_alpha.values[i] = options.gate_init_mean + options.gate_init_std * stream.normal(i);
    }
    return HeadGates(std::move(log_alpha));
}

HeadGates HeadGates::from_masks(const HeadMap& masks) {
    HeadMap log_alpha = masks;
    for (double& x : log_alpha.values) x = (2.0 * x - 1.0) * mask_log_alpha;
    return HeadGates(std::move(log_alpha));
}

GateValues HeadGates::sample(std::uint64_t seed, std::int64_t step, std::int64_t slot) const {
    constexpr double margin = 1e-8;  // u in (margin, 1 - margin)
    const RandomStream stream(seed, RandomPurpose::gate_sample, static_cast<std::uint64_t>(step));
    const std::size_t count = log_alpha_.values.size();
    GateValues gates{log_alpha_, log_alpha_};
    for (std::size_t i = 0; i < count; ++i) {
        const double u = margin + (1.0 - 2.0 * margin) * stream.uniform(static_cast<std::uint64_t>(slot) * count + i);
        gates.z.values[i] = hard_concrete::sample(log_alpha_.values[i], u);
        gates.slope.values[i] = hard_concrete::sample_slope(log_alpha_.values[i], u);
    }
    return gates;
}

HeadMap HeadGates::mean() const {
    HeadMap means = log_alpha_;
    for (double& value : means.values) value = hard_concrete::mean(value);
    return means;
}

GateValues HeadGates::deterministic() const {
    GateValues gates{log_alpha_, log_alpha_};
    std::vector<int> order(static_cast<std::size_t>(log_alpha_.heads));
    for (int layer = 0; layer < log_alpha_.layers; ++layer) {
        double zeros = 0;
        for (int head = 0; head < log_alpha_.heads; ++head) {
            const double log_alpha = log_alpha_(layer, head);
            zeros += hard_concrete::zero_probability(log_alpha);
            gates.z(layer, head) = hard_concrete::deterministic(log_alpha);
            gates.slope(layer, head) = hard_concrete::deterministic_slope(log_alpha);
        }
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int a, int b) { return log_alpha_(layer, a) < log_alpha_(layer, b); });
        for (long i = 0; i < std::lround(zeros); ++i) gates.z(layer, order[static_cast<std::size_t>(i)]) = 0.0;
    }
    return gates;
}

}  // namespace sparseattn
