// Layers in bf16: arithmetic in fp32, each result rounded once.
#include "sparseattn/model/detail/layers.hpp"
#include "support/arrays.hpp"

namespace sparseattn::test {
namespace {

constexpr std::size_t tokens = 70, width = 96;

// At most one rounding of bf16 and a few of fp32 from what double arithmetic gives of the same numbers.
template <class T>
void expect_rounded(const std::vector<T>& values, const std::vector<double>& wanted) {
    ASSERT_EQ(values.size(), wanted.size());
    double largest = 0;
    for (const double w : wanted) largest = std::max(largest, std::abs(w));
    const double rounding = std::is_same_v<T, bf16> ? 1.0 / 256 : 0.0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        ASSERT_NEAR(double(values[i]), wanted[i], 1.01 * rounding * std::abs(wanted[i]) + 1e-5 * largest) << i;
    }
}

TEST(Bf16Layers, NormAndItsGradients) {
    const auto x = random<bf16>(tokens * width, 1, 3.0), w = random<bf16>(width, 2, 0.1, 1.0),
               dy = random<bf16>(tokens * width, 3), dx = random<bf16>(tokens * width, 4);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const auto cast = [](const std::vector<bf16>& v) { return std::vector<T>(v.begin(), v.end()); };
        const Device<T> input(cast(x)), weight(cast(w)), gradient(cast(dy)), y(x.size()), copy(x.size()), sum(cast(dx));
        const Device<accumulate_t<T>> partial(detail::norm_chunks(tokens) * width), dweight(width);
        detail::rms_norm<Exec, T>(Exec(), detail::as_heads(input.matrix(tokens)), weight.flat(), 1e-5,
                                  detail::as_heads(y.matrix(tokens)), copy.matrix(tokens));
        detail::rms_norm_backward<Exec, T>(
            Exec(), detail::NormBackward::add_to_dx, detail::as_heads(input.matrix(tokens)), weight.flat(), 1e-5,
            detail::as_heads(gradient.matrix(tokens)), sum.matrix(tokens), partial.flat(), dweight.flat());
        return std::tuple{y.host(), copy.host(), gradient.host(), sum.host(), dweight.host()};
    };
    const auto [y, copy, again, sum, dweight] = run(bf16());
    const auto [y_exact, copy_exact, again_exact, sum_exact, dweight_exact] = run(0.0);
    expect_rounded(y, y_exact);
    expect_rounded(copy, copy_exact);
    expect_rounded(again, again_exact);
    expect_rounded(sum, sum_exact);
    expect_rounded(dweight, dweight_exact);
}

TEST(Bf16Layers, RotationAndSwiglu) {
    const auto values = random<bf16>(tokens * width, 5), gate_up = random<bf16>(tokens * 2 * width, 6, 2.0),
               dact = random<bf16>(tokens * width, 7);
    std::vector<std::int32_t> positions(tokens);
    for (std::size_t t = 0; t < tokens; ++t) positions[t] = static_cast<std::int32_t>(997 * t);
    const Device<std::int32_t> places(positions);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        using A = accumulate_t<T>;
        const auto cast = [](const std::vector<bf16>& v) { return std::vector<T>(v.begin(), v.end()); };
        const Device<T> rotated(cast(values)), both(cast(gate_up)), act(values.size()), gradient(cast(dact));
        const Device<A> cosine(tokens * 16), sine(tokens * 16);
        detail::rotary_table<Exec, A>(Exec(), places.flat(), 1e4, cosine.matrix(tokens), sine.matrix(tokens));
        detail::rotary<Exec, T>(Exec(), detail::Rotation::forward, cosine.matrix(tokens), sine.matrix(tokens),
                                rotated.heads(tokens, 3));
        detail::swiglu<Exec, T>(Exec(), both.matrix(tokens), act.matrix(tokens));
        detail::swiglu_backward<Exec, T>(Exec(), both.matrix(tokens), gradient.matrix(tokens));
        return std::tuple{rotated.host(), act.host(), both.host(), gradient.host()};
    };
    const auto [rotated, act, dboth, again] = run(bf16());
    const auto [rotated_exact, act_exact, dboth_exact, again_exact] = run(0.0);
    expect_rounded(rotated, rotated_exact);
    expect_rounded(act, act_exact);
    expect_rounded(dboth, dboth_exact);
    expect_rounded(again, again_exact);
}

// Gradients of the table are sums in fp32: of many equal tokens too.
TEST(Bf16Layers, EmbeddingSumsInFloat) {
    const int count = 3000;
    const std::vector<bf16> dx(count, bf16(0.01F));
    const Device<bf16> device(dx);
    const Device<float> dtable(2);
    const Device<std::int32_t> ids(std::vector<std::int32_t>(count, 1));
    detail::embedding_backward<Exec, bf16>(Exec(), ids.flat(), device.matrix(count), dtable.matrix(2));
    expect_close(dtable.host(), {0.0, count * double(bf16(0.01F))}, 1e-4);
}

TEST(Bf16Layers, WeightsAreRoundedToTheNearest) {
    const auto values = random<float>(5000, 8);
    const Device<float> weights(values);
    const Device<bf16> rounded(values.size());
    detail::round_array<Exec>(Exec(), weights.flat(), rounded.flat());
    const auto got = rounded.host();
    for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(got[i].bits, bf16(values[i]).bits) << i;
}

}  // namespace
}  // namespace sparseattn::test
