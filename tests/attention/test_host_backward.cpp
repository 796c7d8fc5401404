#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "host_cases.hpp"

namespace sparseattn::testing {
namespace {

using detail::BackwardArguments;
using detail::ForwardArguments;
using detail::host_attention;

double scale_of(const Case& c) {
    return 1.0 / std::sqrt(double(c.head_dim));
}

// A forward and backward pass; gradients into a NaN-filled fused buffer.
template <class T>
struct Training {
    Sequences<Mem> sequences;
    BlockLayout<Mem> layout;
    TransposedLayout<Mem> transposed;
    Fused<T> qkv, gradients;
    Kokkos::View<T***, Kokkos::LayoutRight, Mem> dout;
    Branch<T> result;
    Workspace<Mem> workspace;

    Training(const Case& c, const std::string& kind, std::uint64_t seed)
        : sequences(sequences_of(c)),
          layout(make_layout(c, sequences, kind, seed)),
          transposed(transpose(Exec{}, sequences, layout)),
          qkv(c, sequences),
          gradients(c, sequences),
          dout("dout", sequences.queries(), c.query_heads, c.head_dim),
          result(c, sequences) {
        fill_normal(qkv.query(), seed, 2.0);
        fill_normal(qkv.key(), seed + 1);
        fill_normal(qkv.value(), seed + 2);
        fill_normal(HeadsView<T, Mem>(dout), seed + 3);
    }
    [[nodiscard]] AttentionInputs<T, Mem> inputs() const { return {qkv.query(), qkv.key(), qkv.value()}; }

    /// NaN into everything that a pass must write.
    void poison() const {
        gradients.poison();
        result.poison();
    }
    template <class E>
    void operator()(const E& exec, float scale) {
        host_attention(exec, ForwardArguments<T, Mem>{inputs(), sequences, layout, scale, result.outputs()}, workspace);
        host_attention(
            exec,
            BackwardArguments<T, Mem>{
                dout, inputs(), result.outputs(), sequences, {layout, transposed}, scale, gradients.gradients()},
            workspace);
    }
};

struct Errors {
    double dq = 0, dk = 0, dv = 0;
    [[nodiscard]] double worst() const { return std::max({dq, dk, dv}); }
};

Errors backward_errors(const Case& c, const std::string& kind, std::uint64_t seed) {
    Training<float> run(c, kind, seed);
    const HeadsView<const float, Mem> dout = run.dout;
    const Reference r = evaluate<float>(c, run.sequences, run.layout, run.inputs(), scale_of(c), &dout);
    Errors errors;
    for (const std::string& name : supported_isas()) {
        const UseIsa isa(name);
        run.poison();
        run(Exec{}, float(scale_of(c)));
        errors.dq = std::max(errors.dq, max_error(run.gradients.query(), r.dq));
        errors.dk = std::max(errors.dk, max_error(run.gradients.key(), r.dk));
        errors.dv = std::max(errors.dv, max_error(run.gradients.value(), r.dv));
    }
    return errors;
}

TEST(HostBackward, FloatMatchesDouble) {
    double worst = 0;
    for (const Case& c : cases()) {
        const Errors errors = backward_errors(c, c.kind, 21);
        EXPECT_LT(errors.dq, 5e-6) << c.name;
        EXPECT_LT(errors.dk, 5e-6) << c.name;
        EXPECT_LT(errors.dv, 5e-6) << c.name;
        worst = std::max(worst, errors.worst());
    }
    std::printf("largest relative error of gradients, float: %.2e\n", worst);
}

TEST(HostBackward, Bf16IsAsGoodAsItsStorage) {
    double worst = 0;
    for (const Case& c : cases()) {
        Training<bf16> run(c, c.kind, 22);
        const HeadsView<const bf16, Mem> dout = run.dout;
        const Reference exact = evaluate<bf16>(c, run.sequences, run.layout, run.inputs(), scale_of(c), &dout);
        for (const std::string& name : supported_isas()) {
            const UseIsa isa(name);
            run.poison();
            run(Exec{}, float(scale_of(c)));
            // The same precision: exact arithmetic on the stored (rounded) output, rounded result.
            const Reference same =
                evaluate<bf16>(c, run.sequences, run.layout, run.inputs(), scale_of(c), &dout, {}, &run.result);
            const auto check = [&](const char* what, const HeadsView<bf16, Mem>& computed,
                                   const std::vector<double>& wanted, const std::vector<double>& rounded) {
                const double allowed = rounding_error(wanted, rounded);
                const double error = max_error(computed, wanted);
                EXPECT_LE(error, 3 * allowed) << c.name << ' ' << name << ' ' << what;
                if (allowed > 0) worst = std::max(worst, error / allowed);
            };
            check("dq", run.gradients.query(), exact.dq, same.dq);
            check("dk", run.gradients.key(), exact.dk, same.dk);
            check("dv", run.gradients.value(), exact.dv, same.dv);
        }
    }
    std::printf("largest error of gradients over the same-precision error, bf16: %.3f\n", worst);
}

TEST(HostBackward, RandomShapes) {
    for (std::uint64_t seed = 200; seed < 216; ++seed) {
        std::string kind;
        const Case c = random_case(seed, kind);
        const Errors errors = backward_errors(c, kind, seed);
        EXPECT_LT(errors.worst(), 5e-6) << "seed " << seed << ' ' << kind;
    }
}

template <class View>
bool same_bits(const View& a, const View& b) {
    return a.extent(0) == b.extent(0) && std::memcmp(a.data(), b.data(), a.extent(0) * sizeof(*a.data())) == 0;
}

// One wave of many small tasks over shared rows, so that turns are contended.
const Case contended{"contended", {700, 61}, {700, 61}, 4, 1, 32, 64, true, "windowed_lists"};

TEST(HostDeterminism, SameBitsFromRunToRun) {
    for (const char* kind : {"dense", "windowed_lists"}) {
        Training<float> first(contended, kind, 31);
        first(Exec{}, 0.2F);
        for (int repeat = 0; repeat < 10; ++repeat) {
            Training<float> again(contended, kind, 31);
            again(Exec{}, 0.2F);
            ASSERT_TRUE(same_bits(first.gradients.memory, again.gradients.memory)) << kind << " repeat " << repeat;
            ASSERT_TRUE(same_bits(first.qkv.memory, again.qkv.memory));
        }
    }
}

#if defined(KOKKOS_ENABLE_SERIAL) && defined(KOKKOS_ENABLE_OPENMP)
TEST(HostDeterminism, SameBitsForSerialAndThreads) {
    for (const char* kind : {"dense", "windowed_lists"}) {
        Training<float> threads(contended, kind, 32);
        threads(Kokkos::OpenMP{}, 0.2F);
        Training<float> serial(contended, kind, 32);
        serial(Kokkos::Serial{}, 0.2F);
        EXPECT_TRUE(same_bits(threads.gradients.memory, serial.gradients.memory)) << kind;
        Training<bf16> half_threads(contended, kind, 33);
        half_threads(Kokkos::OpenMP{}, 0.2F);
        Training<bf16> half_serial(contended, kind, 33);
        half_serial(Kokkos::Serial{}, 0.2F);
        EXPECT_TRUE(same_bits(half_threads.gradients.memory, half_serial.gradients.memory)) << kind;
    }
}
#endif

TEST(HostWorkspace, StopsGrowing) {
    Training<float> run(contended, "lists", 41);
    run(Exec{}, 0.2F);
    run(Exec{}, 0.2F);
    const std::size_t size = run.workspace.capacity();
    for (int repeat = 0; repeat < 3; ++repeat) run(Exec{}, 0.2F);
    EXPECT_EQ(run.workspace.capacity(), size);
}

}  // namespace
}  // namespace sparseattn::testing
