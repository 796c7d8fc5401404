#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/train/adamw.hpp"
#include "sparseattn/train/learning_rate.hpp"

namespace sparseattn {
namespace {

using Exec = Kokkos::DefaultExecutionSpace;
using Mem = Exec::memory_space;

ModelConfig tiny() {
    ModelConfig config;
    config.vocab_size = 19;
    config.hidden_size = 32;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 2;
    config.num_key_value_heads = 1;
    config.head_dim = 32;
    config.intermediate_size = 48;
    return config;
}

std::vector<float> normals(std::int64_t count, std::uint64_t step, double scale) {
    const RandomStream random(7, RandomPurpose::test, step);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(scale * random.normal(i));
    return values;
}

// The same in double, as the paper has it.
struct Plain {
    std::vector<double> w, m, v;
    void update(const AdamWSettings& s, const ParameterTable& table, int t, double rate, double scale,
                const std::vector<float>& gradients) {
        for (const ParameterInfo& tensor : table.parameters()) {
            for (auto i = static_cast<std::size_t>(tensor.offset);
                 i < static_cast<std::size_t>(tensor.offset + tensor.count); ++i) {
                const double g = scale * gradients[i];
                m[i] = s.beta1 * m[i] + (1 - s.beta1) * g;
                v[i] = s.beta2 * v[i] + (1 - s.beta2) * g * g;
                const double mhat = m[i] / (1 - std::pow(s.beta1, t));
                const double vhat = v[i] / (1 - std::pow(s.beta2, t));
                w[i] -= rate * mhat / (std::sqrt(vhat) + s.epsilon);
                if (tensor.decay) w[i] -= rate * s.weight_decay * w[i];
            }
        }
    }
};

TEST(AdamW, FollowsThePlainDoubleImplementation) {
    const ParameterTable table(tiny());
    const Exec exec;
    const std::vector<float> start = normals(table.total(), 0, 0.5);
    const auto w = detail::to_device(exec, "w", start);
    const Array1<float, Mem> m("m", start.size());
    const Array1<float, Mem> v("v", start.size());
    Plain plain{{start.begin(), start.end()}, std::vector<double>(start.size()), std::vector<double>(start.size())};
    const AdamWSettings settings{0.9, 0.95, 1e-8, 0.1};
    for (int t = 1; t <= 20; ++t) {
        const double rate = 1e-2 / t;
        const double scale = t % 3 == 0 ? 0.25 : 1.0;
        const std::vector<float> gradients = normals(table.total(), static_cast<std::uint64_t>(t), 0.1);
        adamw_update(exec, table, {0, table.total()}, AdamWUpdate<float>(settings, t, rate, scale), w,
                     detail::to_device(exec, "g", gradients), m, v);
        plain.update(settings, table, t, rate, scale, gradients);
    }
    const auto result = detail::to_host(exec, w);
    double moved = 0;
    for (std::size_t i = 0; i < result.size(); ++i) {
        // Decay of the moved or the old weight differs by rate^2 * decay.
        ASSERT_NEAR(result[i], plain.w[i], 3e-5) << i;
        moved = std::max(moved, std::abs(plain.w[i] - static_cast<double>(start[i])));
    }
    EXPECT_GT(moved, 1e-2);
}

TEST(AdamW, DecaysOnlyWhatDecays) {
    const ParameterTable table(tiny());
    const Exec exec;
    const auto total = static_cast<std::size_t>(table.total());
    const auto w = detail::to_device(exec, "w", std::vector<float>(total, 2.0F));
    const Array1<float, Mem> zero("g", total);
    const Array1<float, Mem> m("m", total);
    const Array1<float, Mem> v("v", total);
    adamw_update(exec, table, {0, table.total()}, AdamWUpdate<float>({0.9, 0.95, 1e-8, 0.5}, 1, 0.1), w, zero, m, v);
    const auto result = detail::to_host(exec, w);
    int decayed = 0;
    for (const ParameterInfo& tensor : table.parameters()) {
        for (std::int64_t i = 0; i < tensor.count; ++i) {
            ASSERT_FLOAT_EQ(result[static_cast<std::size_t>(tensor.offset + i)], tensor.decay ? 1.9F : 2.0F)
                << tensor.name;
        }
        decayed += tensor.decay ? 1 : 0;
    }
    EXPECT_GT(decayed, 0);
    EXPECT_LT(decayed, static_cast<int>(table.parameters().size()));
}

TEST(AdamW, ChecksExtents) {
    const ParameterTable table(tiny());
    const Array1<float, Mem> right("a", table.total());
    const Array1<float, Mem> wrong("b", table.total() - 1);
    const AdamWUpdate<float> update({}, 1, 0.1);
    EXPECT_THROW(adamw_update(Exec(), table, {0, table.total()}, update, right, right, right, wrong), InvalidArgument);
    EXPECT_THROW(adamw_update(Exec(), table, {0, table.total()}, update, wrong, right, right, right), InvalidArgument);
}

TEST(HostParameters, AscendsWithANegativeSign) {
    HostParameters down({1.0, -1.0});
    HostParameters up = down;
    const AdamWUpdate<double> update({0.9, 0.95, 1e-8, 0.0}, 1, 0.25);
    down.update(update, {3.0, -0.1});
    up.update(update, {3.0, -0.1}, -1.0);
    EXPECT_NEAR(down.values[0], 0.75, 1e-6);  // the first update has the size of the rate
    EXPECT_NEAR(down.values[1], -0.75, 1e-6);
    EXPECT_NEAR(up.values[0], 1.25, 1e-6);
    EXPECT_NEAR(up.values[1], -1.25, 1e-6);
}

TEST(SquaredNorm, IsExactEnoughAndIndependentOfThreads) {
    const std::vector<float> values = normals(100003, 3, 1.0);
    double sum = 0;
    for (const float x : values) sum += static_cast<double>(x) * x;
    const Exec exec;
    const auto norm_of = [](const auto& space, const std::vector<float>& x) {
        using Space = std::decay_t<decltype(space)>;
        Workspace<typename Space::memory_space> workspace;
        const auto device = detail::to_device(space, "x", x);
        return squared_norm<Space>(space, {device}, workspace);
    };
    const double norm = norm_of(exec, values);
    EXPECT_NEAR(norm, sum, 1e-9 * sum);
#if defined(KOKKOS_ENABLE_SERIAL)
    const Kokkos::Serial serial;
    EXPECT_EQ(norm, norm_of(serial, values));
#endif
    std::vector<float> broken = values;
    broken[5000] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_FALSE(std::isfinite(norm_of(exec, broken)));
    // Several parts, one of them empty, are the sum of their norms.
    const auto device = detail::to_device(exec, "x", values);
    const Span1<const float, Exec::memory_space> whole = device;
    const auto part = [&](std::size_t begin, std::size_t count) {
        return Span1<const float, Exec::memory_space>(whole.data() + begin, count);
    };
    Workspace<Exec::memory_space> workspace;
    EXPECT_NEAR(squared_norm<Exec>(exec, {part(0, 5000), part(5000, 0), part(5000, 95003)}, workspace), norm,
                1e-12 * norm);
    EXPECT_EQ(squared_norm<Exec>(exec, {part(7, 0)}, workspace), 0.0);
}

TEST(LearningRate, WarmsUpAndFollowsTheCosine) {
    const LearningRateSchedule schedule(100, 0.095, 0.1);
    EXPECT_EQ(schedule.warmup_steps(), 10);  // rounded up
    EXPECT_EQ(schedule.factor(0), 0.0);
    EXPECT_DOUBLE_EQ(schedule.factor(4), 0.4);
    EXPECT_DOUBLE_EQ(schedule.factor(10), 1.0);
    EXPECT_DOUBLE_EQ(schedule.factor(55), 0.55);  // halfway
    EXPECT_NEAR(schedule.factor(100), 0.1, 1e-15);
    EXPECT_NEAR(schedule.factor(1000), 0.1, 1e-15);
    for (int step = 11; step <= 100; ++step) EXPECT_LT(schedule.factor(step), schedule.factor(step - 1));
    EXPECT_EQ(LearningRateSchedule(10, 0.0, 0.1).factor(0), 1.0);
    EXPECT_EQ(LearningRateSchedule(10, 1.0, 0.1).factor(5), 0.5);
    EXPECT_THROW(LearningRateSchedule(0, 0.0, 0.1), InvalidArgument);
    EXPECT_THROW(LearningRateSchedule(10, -0.1, 0.1), InvalidArgument);
    EXPECT_THROW(LearningRateSchedule(10, 0.1, 1.1), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
