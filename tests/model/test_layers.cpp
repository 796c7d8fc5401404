// Every elementwise layer against its definition, and its gradients against central differences in double.
#include "sparseattn/core/elementary.hpp"
#include "sparseattn/model/detail/layers.hpp"
#include "support/arrays.hpp"

namespace sparseattn::test {
namespace {

using detail::NormBackward;
using detail::Rotation;

TEST(Exponential, FloatStaysWithinAFewUnitsInTheLastPlace) {
    for (int i = -86999; i < 88000; ++i) {
        const float x = static_cast<float>(i) * 1e-3F;
        const double wanted = std::exp(static_cast<double>(x));
        ASSERT_NEAR(detail::exponential(x) / wanted, 1.0, 3e-7) << x;
    }
    EXPECT_EQ(detail::exponential(0.0F), 1.0F);
    EXPECT_LT(detail::exponential(-1e30F), 2e-38F);
    EXPECT_LT(detail::exponential(-std::numeric_limits<float>::infinity()), 2e-38F);
    EXPECT_TRUE(std::isnan(detail::exponential(std::numeric_limits<float>::quiet_NaN())));
}

// Tokens and features that fill no chunk and no vector evenly.
constexpr int tokens = 75, features = 37;
constexpr double eps = 1e-5;

std::vector<double> norm_forward(const std::vector<double>& x, const std::vector<double>& w, int rows) {
    const Device<double> x_device(x), w_device(w), y(x.size());
    detail::rms_norm<Exec, double>(Exec(), x_device.heads(rows, 1), w_device.flat(), eps, y.heads(rows, 1));
    return y.host();
}

TEST(RmsNorm, MatchesTheDefinitionAndCopies) {
    const auto x = random<double>(tokens * features, 1), w = random<double>(features, 2);
    std::vector<double> wanted(x.size());
    for (int t = 0; t < tokens; ++t) {
        double squares = 0;
        for (int i = 0; i < features; ++i) squares += x[t * features + i] * x[t * features + i];
        for (int i = 0; i < features; ++i) {
            wanted[t * features + i] = w[i] * x[t * features + i] / std::sqrt(squares / features + eps);
        }
    }
    const Device<double> x_device(x), w_device(w), y(x.size()), copy(x.size());
    detail::rms_norm<Exec, double>(Exec(), x_device.heads(tokens, 1), w_device.flat(), eps, y.heads(tokens, 1),
                                   copy.matrix(tokens));
    expect_close(y.host(), wanted, 1e-14);
    EXPECT_EQ(copy.host(), x);

    const std::vector<float> xf(x.begin(), x.end()), wf(w.begin(), w.end());
    const Device<float> x_float(xf), w_float(wf), y_float(x.size());
    detail::rms_norm<Exec, float>(Exec(), x_float.heads(tokens, 1), w_float.flat(), eps, y_float.heads(tokens, 1));
    expect_close(y_float.host(), wanted, 2e-6);
}

TEST(RmsNorm, GradientsMatchDifferencesInEveryMode) {
    const auto x = random<double>(tokens * features, 3), w = random<double>(features, 4);
    const auto dy = random<double>(x.size(), 5), before = random<double>(x.size(), 6),
               dw0 = random<double>(features, 7);
    const Device<double> x_device(x), w_device(w);
    for (const auto mode : {NormBackward::in_place, NormBackward::into_dx, NormBackward::add_to_dx}) {
        const Device<double> gradient(dy), dx(before), dw(dw0),
            partial(detail::norm_chunks(tokens) * features, std::nan(""));
        detail::rms_norm_backward<Exec, double>(Exec(), mode, x_device.heads(tokens, 1), w_device.flat(), eps,
                                                gradient.heads(tokens, 1), dx.matrix(tokens), partial.flat(),
                                                dw.flat());
        auto result = mode == NormBackward::in_place ? gradient.host() : dx.host();
        if (mode == NormBackward::add_to_dx) {
            for (std::size_t i = 0; i < result.size(); ++i) result[i] -= before[i];
        }
        if (mode != NormBackward::in_place) expect_close(gradient.host(), norm_forward(x, w, tokens), 1e-14);
        if (mode == NormBackward::in_place) {
            EXPECT_EQ(dx.host(), before);
        }
        auto weight_result = dw.host();
        for (int i = 0; i < features; ++i) weight_result[i] -= dw0[i];
        expect_gradient("x", x, result, [&](const auto& v) { return dot(dy, norm_forward(v, w, tokens)); });
        expect_gradient("weight", w, weight_result, [&](const auto& v) { return dot(dy, norm_forward(x, v, tokens)); });
    }
}

// qk-norm: heads inside the rows of a wider buffer.
TEST(RmsNorm, NormalisesHeadsOfAStridedBuffer) {
    constexpr int heads = 3, d = 6, row = 5 * d;  // heads 1..3 of 5
    const auto buffer = random<double>(tokens * row, 8), w = random<double>(d, 9);
    const auto dy = random<double>(tokens * heads * d, 10);
    const auto part = [&](const Device<double>& device) {
        return HeadsView<double, Mem>(device.array.data() + d, Kokkos::LayoutStride(tokens, row, heads, d, d, 1));
    };
    const auto forward = [&](const std::vector<double>& values, const std::vector<double>& weight) {
        const Device<double> x(values), w_device(weight), y(tokens * heads * d);
        detail::rms_norm<Exec, double>(Exec(), part(x), w_device.flat(), eps, y.heads(tokens, heads));
        return y.host();
    };
    const Device<double> x(buffer), w_device(w), gradient(dy), dw(d), partial(detail::norm_chunks(tokens) * d);
    detail::rms_norm_backward<Exec, double>(Exec(), NormBackward::in_place, part(x), w_device.flat(), eps,
                                            gradient.heads(tokens, heads), {}, partial.flat(), dw.flat());
    std::vector<double> dx(buffer.size(), 0.0);
    const auto result = gradient.host();
    for (int t = 0; t < tokens; ++t) {
        std::copy_n(&result[t * heads * d], heads * d, &dx[t * row + d]);
    }
    expect_gradient("x", buffer, dx, [&](const auto& v) { return dot(dy, forward(v, w)); });
    expect_gradient("weight", w, dw.host(), [&](const auto& v) { return dot(dy, forward(buffer, v)); });
}

TEST(Rotary, RotatesPairsByThePositionAndInverts) {
    constexpr int heads = 3, d = 8;
    const auto values = random<double>(tokens * heads * d, 11);
    auto positions = random_ints(tokens, 12, 5000);
    positions[0] = 0;
    const double theta = 500.0;
    const Device<double> cosine(tokens * d / 2), sine(tokens * d / 2), x(values);
    detail::rotary_table<Exec, double>(Exec(), Device<std::int32_t>(positions).flat(), theta, cosine.matrix(tokens),
                                       sine.matrix(tokens));
    detail::rotary<Exec, double>(Exec(), Rotation::forward, cosine.matrix(tokens), sine.matrix(tokens),
                                 x.heads(tokens, heads));
    std::vector<double> wanted(values.size());
    for (int t = 0; t < tokens; ++t) {
        for (int h = 0; h < heads; ++h) {
            const double* from = &values[(t * heads + h) * d];
            for (int i = 0; i < d; ++i) {
                const double angle = positions[t] * std::pow(theta, -2.0 * (i % (d / 2)) / d);
                const double half = i < d / 2 ? -from[i + d / 2] : from[i - d / 2];
                wanted[(t * heads + h) * d + i] = from[i] * std::cos(angle) + half * std::sin(angle);
            }
        }
    }
    expect_close(x.host(), wanted, 1e-12);
    EXPECT_EQ(std::vector<double>(values.begin(), values.begin() + heads * d),
              std::vector<double>(wanted.begin(), wanted.begin() + heads * d));  // position 0 stays
    // The inverse is the transpose, which is the gradient.
    detail::rotary<Exec, double>(Exec(), Rotation::inverse, cosine.matrix(tokens), sine.matrix(tokens),
                                 x.heads(tokens, heads));
    expect_close(x.host(), values, 1e-14);
    const auto dy = random<double>(values.size(), 13);
    const Device<double> gradient(dy);
    detail::rotary<Exec, double>(Exec(), Rotation::inverse, cosine.matrix(tokens), sine.matrix(tokens),
                                 gradient.heads(tokens, heads));
    expect_gradient("x", values, gradient.host(), [&](const auto& v) {
        const Device<double> y(v);
        detail::rotary<Exec, double>(Exec(), Rotation::forward, cosine.matrix(tokens), sine.matrix(tokens),
                                     y.heads(tokens, heads));
        return dot(dy, y.host());
    });
}

TEST(SwiGlu, MatchesTheDefinitionAndItsGradientsDifferences) {
    const auto gate_up = random<double>(tokens * 2 * features, 14, 3.0), dy = random<double>(tokens * features, 15);
    const auto forward = [&](const std::vector<double>& v) {
        const Device<double> x(v), y(tokens * features);
        detail::swiglu<Exec, double>(Exec(), x.matrix(tokens), y.matrix(tokens));
        return y.host();
    };
    std::vector<double> wanted;
    for (int t = 0; t < tokens; ++t) {
        for (int i = 0; i < features; ++i) {
            const double g = gate_up[t * 2 * features + i], u = gate_up[t * 2 * features + features + i];
            wanted.push_back(g / (1 + std::exp(-g)) * u);
        }
    }
    expect_close(forward(gate_up), wanted, 1e-14);
    const Device<double> x(gate_up), act(dy);
    detail::swiglu_backward<Exec, double>(Exec(), x.matrix(tokens), act.matrix(tokens));
    expect_close(act.host(), wanted, 1e-14);
    expect_gradient("gate_up", gate_up, x.host(), [&](const auto& v) { return dot(dy, forward(v)); });

    const std::vector<float> single(gate_up.begin(), gate_up.end());
    const Device<float> x_float(single), y_float(tokens * features);
    detail::swiglu<Exec, float>(Exec(), x_float.matrix(tokens), y_float.matrix(tokens));
    expect_close(y_float.host(), wanted, 2e-6);
}

TEST(SwiGlu, ExtremeFloatGatesStayFinite) {
    const Device<float> x(std::vector<float>{-1e30F, -200.0F, 200.0F, 1e30F, 1, 1, 1, 1}), act(4, 1.0F);
    detail::swiglu<Exec, float>(Exec(), x.matrix(1), act.matrix(1));
    const auto y = act.host();
    EXPECT_NEAR(y[0], 0, 1e-5);
    EXPECT_NEAR(y[1], 0, 1e-30);
    EXPECT_EQ(y[2], 200.0F);
    EXPECT_EQ(y[3], 1e30F);
}

TEST(Embedding, GathersAndItsGradientScattersRepeatedTokens) {
    constexpr int vocabulary = 11;
    const auto table = random<double>(vocabulary * features, 16), dy = random<double>(tokens * features, 17);
    const auto ids = random_ints(tokens, 18, vocabulary);
    const Device<std::int32_t> ids_device(ids);
    const auto forward = [&](const std::vector<double>& v) {
        const Device<double> from(v), x(tokens * features);
        detail::embedding<Exec, double>(Exec(), ids_device.flat(), from.matrix(vocabulary), x.matrix(tokens));
        return x.host();
    };
    const auto x = forward(table);
    for (int t = 0; t < tokens; ++t) {
        for (int i = 0; i < features; ++i) ASSERT_EQ(x[t * features + i], table[ids[t] * features + i]);
    }
    const Device<double> dtable(table.size());
    detail::embedding_backward<Exec, double>(Exec(), ids_device.flat(), Device<double>(dy).matrix(tokens),
                                             dtable.matrix(vocabulary));
    expect_gradient("table", table, dtable.host(), [&](const auto& v) { return dot(dy, forward(v)); });
}

TEST(CheckBatch, FindsTheFirstBadTokenOrLabel) {
    const auto first_bad = [](std::vector<std::int32_t> ids, std::vector<std::int32_t> labels) {
        const Device<std::int32_t> first(1);
        detail::check_batch<Exec>(Exec(), Device<std::int32_t>(ids).flat(), Device<std::int32_t>(labels).flat(), 10,
                                  first.flat());
        return first.host()[0];
    };
    EXPECT_EQ(first_bad({0, 9, 3}, {-1, 9, 0}), 3);
    EXPECT_EQ(first_bad({0, 10, -1}, {-1, 9, 0}), 1);
    EXPECT_EQ(first_bad({0, 9, 3}, {-2, 9, 10}), 0);
    EXPECT_EQ(first_bad({0, 9, 3}, {5, 9, 10}), 2);
}

TEST(CrossEntropy, MatchesTheDefinitionAndItsGradientDifferences) {
    constexpr int vocabulary = 53;
    const auto logits = random<double>(tokens * vocabulary, 19, 4.0);
    auto labels = random_ints(tokens, 20, vocabulary);
    labels[3] = labels[10] = -1;
    const double scale = 0.37;
    const Device<std::int32_t> labels_device(labels);
    std::vector<double> wanted;
    for (int t = 0; t < tokens; ++t) {
        double sum = 0;
        for (int i = 0; i < vocabulary; ++i) sum += std::exp(logits[t * vocabulary + i]);
        wanted.push_back(labels[t] < 0 ? 0 : std::log(sum) - logits[t * vocabulary + labels[t]]);
    }
    const auto forward = [&](const std::vector<double>& v) {
        const Device<double> x(v), losses(tokens, std::nan(""));
        detail::cross_entropy<Exec, double>(Exec(), x.matrix(tokens), labels_device.flat(), losses.flat());
        return losses.host();
    };
    expect_close(forward(logits), wanted, 1e-13);
    const Device<double> x(logits), losses(tokens, std::nan(""));
    detail::cross_entropy_and_gradient<Exec, double>(Exec(), x.matrix(tokens), labels_device.flat(), scale,
                                                     losses.flat(), x.matrix(tokens));
    expect_close(losses.host(), wanted, 1e-13);
    const auto gradient = x.host();
    for (int i = 0; i < vocabulary; ++i) EXPECT_EQ(gradient[3 * vocabulary + i], 0.0);
    const std::vector<double> ones(tokens, 1.0);
    expect_gradient(
        "logits", logits, gradient, [&](const auto& v) { return scale * dot(ones, forward(v)); }, 1e-7, 1000);

    const std::vector<float> single(logits.begin(), logits.end());
    const Device<float> x_float(single), losses_float(tokens);
    detail::cross_entropy_and_gradient<Exec, float>(Exec(), x_float.matrix(tokens), labels_device.flat(),
                                                    static_cast<float>(scale), losses_float.flat(),
                                                    x_float.matrix(tokens));
    expect_close(losses_float.host(), wanted, 3e-6);
    expect_close(x_float.host(), gradient, 1e-6);

    // Of fp32 logits a gradient rounded to bf16, and the same losses.
    const Device<float> again(single), losses_again(tokens);
    const Device<bf16> rounded(single.size());
    detail::cross_entropy_and_gradient<Exec, bf16>(Exec(), again.matrix(tokens), labels_device.flat(),
                                                   static_cast<float>(scale), losses_again.flat(),
                                                   rounded.matrix(tokens));
    EXPECT_EQ(losses_again.host(), losses_float.host());
    const auto exact = x_float.host();
    const auto values = rounded.host();
    for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_EQ(float(values[i]), float(bf16(exact[i]))) << i;
}

TEST(CrossEntropy, HugeLogitsStayFiniteAndNanIsNotHidden) {
    const Device<float> huge(std::vector<float>{1e4F, -1e4F, 0}), losses(1);
    const Device<std::int32_t> label(std::vector<std::int32_t>{1});
    detail::cross_entropy<Exec, float>(Exec(), huge.matrix(1), label.flat(), losses.flat());
    EXPECT_FLOAT_EQ(losses.host()[0], 2e4F);
    const Device<float> bad(std::vector<float>{1, std::nanf(""), 0});
    detail::cross_entropy<Exec, float>(Exec(), bad.matrix(1), label.flat(), losses.flat());
    EXPECT_TRUE(std::isnan(losses.host()[0]));
}

TEST(SumLosses, AddsInDouble) {
    const auto values = random<float>(1000, 21, 1.0, 5.0);
    const Device<float> losses(values);
    const Device<double> sums(detail::loss_chunks(1000));
    detail::sum_losses<Exec, float>(Exec(), losses.flat(), sums.flat());
    double wanted = 0, sum = 0;
    for (const float v : values) wanted += v;
    for (const double v : sums.host()) sum += v;
    EXPECT_NEAR(sum, wanted, 1e-9);
}

}  // namespace
}  // namespace sparseattn::test
