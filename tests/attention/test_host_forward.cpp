#include <gtest/gtest.h>

#include <cstdio>

#include "host_cases.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn::testing {
namespace {

using detail::ForwardArguments;
using detail::host_attention;

double scale_of(const Case& c) {
    return 1.0 / std::sqrt(double(c.head_dim));
}

// Largest errors against the double evaluation, over all instruction sets of this machine; `rounding`: what storing the
// exact result costs.
struct Errors {
    double out = 0, lse = 0, rounding = 0;
};

template <class T>
Errors forward_errors(const Case& c, const std::string& kind, std::uint64_t seed) {
    const Sequences<Mem> sequences = sequences_of(c);
    const BlockLayout<Mem> layout = make_layout(c, sequences, kind, seed);
    const Fused<T> qkv(c, sequences);
    fill_normal(qkv.query(), seed, 2.0);
    fill_normal(qkv.key(), seed + 1);
    fill_normal(qkv.value(), seed + 2);
    const AttentionInputs<T, Mem> inputs{qkv.query(), qkv.key(), qkv.value()};
    const Reference reference = evaluate<T>(c, sequences, layout, inputs, scale_of(c));
    Errors errors;
    errors.rounding = rounding_error(reference.out, reference.out);
    for (const std::string& name : supported_isas()) {
        const UseIsa isa(name);
        SCOPED_TRACE(c.name + ' ' + name);
        const Branch<T> result(c, sequences);
        Workspace<Mem> workspace;
        host_attention(Exec{},
                       ForwardArguments<T, Mem>{inputs, sequences, layout, float(scale_of(c)), result.outputs()},
                       workspace);
        errors.out = std::max(errors.out, max_error(result.out, reference.out));
        for (int t = 0; t < sequences.queries(); ++t) {
            for (int h = 0; h < c.query_heads; ++h) {
                const double expected = reference.lse[static_cast<std::size_t>(t) * c.query_heads + h];
                if (std::isinf(expected)) {
                    EXPECT_EQ(result.lse(t, h), expected) << "token " << t << " head " << h;
                    for (int e = 0; e < c.head_dim; ++e) EXPECT_EQ(float(result.out(t, h, e)), 0.0F);
                } else {
                    const double error = std::fabs(result.lse(t, h) - expected) / std::max(1.0, std::fabs(expected));
                    errors.lse = std::isnan(error) ? INFINITY : std::max(errors.lse, error);
                }
            }
        }
    }
    return errors;
}

TEST(HostForward, FloatMatchesDouble) {
    double worst = 0;
    for (const Case& c : cases()) {
        const Errors errors = forward_errors<float>(c, c.kind, 11);
        EXPECT_LT(errors.out, 2e-6) << c.name;
        EXPECT_LT(errors.lse, 2e-6) << c.name;
        worst = std::max(worst, errors.out);
    }
    std::printf("largest relative error of out, float: %.2e\n", worst);
}

TEST(HostForward, Bf16IsAsGoodAsItsStorage) {
    double worst = 0;
    for (const Case& c : cases()) {
        const Errors errors = forward_errors<bf16>(c, c.kind, 12);
        EXPECT_LE(errors.out, 2 * errors.rounding) << c.name;
        EXPECT_LT(errors.lse, 2e-6) << c.name;
        if (errors.rounding > 0) worst = std::max(worst, errors.out / errors.rounding);
    }
    std::printf("largest error of out over the rounding error, bf16: %.3f\n", worst);
}

TEST(HostForward, RandomShapes) {
    for (std::uint64_t seed = 100; seed < 116; ++seed) {
        std::string kind;
        const Case c = random_case(seed, kind);
        const Errors errors = forward_errors<float>(c, kind, seed);
        EXPECT_LT(errors.out, 2e-6) << "seed " << seed << ' ' << kind;
        EXPECT_LT(errors.lse, 2e-6) << "seed " << seed << ' ' << kind;
    }
}

TEST(HostIsa, EnvironmentChooses) {
    const std::vector<std::string> names = supported_isas();
    ASSERT_FALSE(names.empty());
    EXPECT_EQ(names.front(), "baseline");
    for (const std::string& name : names) {
        const UseIsa isa(name);
        EXPECT_EQ(detail::host_attention_isa(), name);
    }
    EXPECT_EQ(detail::host_attention_isa(), names.back());
}

TEST(HostIsa, UnknownNameIsAnError) {
    const UseIsa isa("mmx");
    try {
        (void)detail::host_attention_isa();
        FAIL() << "no error";
    } catch (const InvalidArgument& error) {
        EXPECT_NE(std::string(error.what()).find("SPARSEATTN_ISA is mmx"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace sparseattn::testing
