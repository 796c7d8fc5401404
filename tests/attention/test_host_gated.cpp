#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "host_cases.hpp"

namespace sparseattn::testing {
namespace {

using detail::GatedBackwardArguments;
using detail::GatedForwardArguments;
using detail::host_attention;

double scale_of(const Case& c) {
    return 1.0 / std::sqrt(double(c.head_dim));
}

// Heads with both branches, only the full and only the sparse one.
const std::vector<double> gates{0.25, 1.0, 0.0, 0.625};

template <class T>
struct Gated {
    Case c;
    Sequences<Mem> sequences;
    BlockLayout<Mem> full, sparse;
    TransposedLayout<Mem> full_transposed, sparse_transposed;
    Fused<T> qkv, gradients;
    Kokkos::View<T***, Kokkos::LayoutRight, Mem> dout, out;
    Branch<T> full_result, sparse_result;
    Array1<float, Mem> gate, dgate;
    Workspace<Mem> workspace;

    Gated(const Case& shape, const BlockLayout<Mem>& full_layout, const BlockLayout<Mem>& sparse_layout,
          std::uint64_t seed)
        : c(shape),
          sequences(sequences_of(c)),
          full(full_layout),
          sparse(sparse_layout),
          full_transposed(transpose(Exec{}, sequences, full)),
          sparse_transposed(transpose(Exec{}, sequences, sparse)),
          qkv(c, sequences),
          gradients(c, sequences),
          dout("dout", sequences.queries(), c.query_heads, c.head_dim),
          out("out", sequences.queries(), c.query_heads, c.head_dim),
          full_result(c, sequences),
          sparse_result(c, sequences),
          gate("gate", c.query_heads),
          dgate("dgate", c.query_heads) {
        fill_normal(qkv.query(), seed, 2.0);
        fill_normal(qkv.key(), seed + 1);
        fill_normal(qkv.value(), seed + 2);
        fill_normal(HeadsView<T, Mem>(dout), seed + 3);
        for (int h = 0; h < c.query_heads; ++h) gate(h) = static_cast<float>(gates[h]);
    }
    [[nodiscard]] AttentionInputs<T, Mem> inputs() const { return {qkv.query(), qkv.key(), qkv.value()}; }
    void poison() const {
        gradients.poison();
        full_result.poison();
        sparse_result.poison();
        Kokkos::deep_copy(out, T(NAN));
        Kokkos::deep_copy(dgate, NAN);
    }

    template <class E>
    void run(const E& exec) {
        const float scale = static_cast<float>(scale_of(c));
        host_attention(exec,
                       GatedForwardArguments<T, Mem>{inputs(), sequences, full, sparse, gate, scale, out,
                                                     full_result.outputs(), sparse_result.outputs()},
                       workspace);
        host_attention(exec,
                       GatedBackwardArguments<T, Mem>{dout,
                                                      inputs(),
                                                      full_result.outputs(),
                                                      sparse_result.outputs(),
                                                      sequences,
                                                      {full, full_transposed},
                                                      {sparse, sparse_transposed},
                                                      gate,
                                                      scale,
                                                      gradients.gradients(),
                                                      dgate},
                       workspace);
    }
};

// What the gated pass should give, from two separate evaluations. Optionally with the stored outputs.
struct Expected {
    Reference full, sparse;
    std::vector<double> out, dq, dk, dv, dgate;
};

template <class T>
Expected expect(const Gated<T>& g, bool stored) {
    std::vector<double> rest;
    for (const double z : gates) rest.push_back(1 - z);
    const HeadsView<const T, Mem> dout = g.dout;
    Expected e;
    e.full = evaluate<T>(g.c, g.sequences, g.full, g.inputs(), scale_of(g.c), &dout, gates,
                         stored ? &g.full_result : nullptr);
    e.sparse = evaluate<T>(g.c, g.sequences, g.sparse, g.inputs(), scale_of(g.c), &dout, rest,
                           stored ? &g.sparse_result : nullptr);
    const int d = g.c.head_dim;
    e.out.resize(e.full.out.size());
    for (std::size_t i = 0; i < e.out.size(); ++i) {
        const std::size_t head = i / d % g.c.query_heads;
        e.out[i] = gates[head] * e.full.out[i] + (1 - gates[head]) * e.sparse.out[i];
        // A branch that does not run saves zeros.
        if (gates[head] == 0) e.full.out[i] = 0;
        if (gates[head] == 1) e.sparse.out[i] = 0;
    }
    const auto sum = [](const std::vector<double>& a, const std::vector<double>& b) {
        std::vector<double> c(a);
        for (std::size_t i = 0; i < c.size(); ++i) c[i] += b[i];
        return c;
    };
    e.dq = sum(e.full.dq, e.sparse.dq);
    e.dk = sum(e.full.dk, e.sparse.dk);
    e.dv = sum(e.full.dv, e.sparse.dv);
    for (int h = 0; h < g.c.query_heads; ++h) {
        e.dgate.push_back(gates[h] == 0 || gates[h] == 1 ? 0.0 : e.full.dgate[h] - e.sparse.dgate[h]);
    }
    return e;
}

template <class T>
void expect_lse(const Gated<T>& g, const Branch<T>& result, const Reference& reference, double off) {
    for (int t = 0; t < g.sequences.queries(); ++t) {
        for (int h = 0; h < g.c.query_heads; ++h) {
            const double wanted = gates[h] == off ? -INFINITY : reference.lse[std::size_t(t) * g.c.query_heads + h];
            if (std::isinf(wanted)) {
                ASSERT_EQ(result.lse(t, h), wanted) << g.c.name << ' ' << t << ' ' << h;
            } else {
                ASSERT_NEAR(result.lse(t, h), wanted, 2e-6 * std::max(1.0, std::fabs(wanted))) << g.c.name;
            }
        }
    }
}

// Pairs of branches with sparse inside full.
struct Pair {
    Case c;
    std::string full, sparse;
};
std::vector<Pair> pairs() {
    return {
        {{"token_in_dense", {300, 70}, {300, 70}, 4, 2, 64, 64, true, ""}, "dense", "token"},
        {{"token_in_dense_128", {290}, {310}, 4, 1, 96, 128, true, ""}, "dense", "token"},
        {{"block_in_dense", {333}, {333}, 4, 4, 32, 64, true, ""}, "dense", "block"},
        {{"tail_in_dense", {260, 0}, {260, 0}, 4, 2, 128, 128, true, ""}, "dense", "tail"},
        {{"lists_in_dense", {200}, {260}, 4, 2, 64, 64, false, ""}, "dense", "lists"},
        {{"singles_in_dense", {200, 30}, {260, 30}, 4, 2, 64, 64, true, ""}, "dense", "singles"},
        {{"window_in_lists", {320}, {330}, 4, 2, 32, 64, true, ""}, "singles", "windowed"},
        {{"window_in_lists_128", {320}, {330}, 4, 4, 256, 128, true, ""}, "singles", "windowed"},
        {{"equal", {150}, {150}, 4, 1, 64, 64, true, ""}, "token", "token"},
    };
}
template <class T>
Gated<T> make(const Pair& pair, std::uint64_t seed) {
    const Sequences<Mem> sequences = sequences_of(pair.c);
    const BlockLayout<Mem> full = make_layout(pair.c, sequences, pair.full, seed);
    BlockLayout<Mem> sparse;
    if (pair.sparse == "windowed") {
        // The full branch's own lists under token windows.
        std::vector<std::int32_t> heads;
        std::vector<Window> windows;
        for (int h = 0; h < pair.c.query_heads; ++h) {
            heads.push_back(full.head_list(h));
            windows.push_back({7, 50 + 20 * h, 3});
        }
        sparse =
            layout_from_lists(Exec{}, sequences, pair.c.block, pair.c.causal, copy_lists(Exec{}, full), heads, windows);
    } else {
        sparse = make_layout(pair.c, sequences, pair.sparse, seed);
    }
    return Gated<T>(pair.c, full, sparse, seed);
}

TEST(HostGated, FloatMatchesTwoEvaluations) {
    double worst_out = 0;
    double worst_gradient = 0;
    for (const Pair& pair : pairs()) {
        auto g = make<float>(pair, 51);
        const Expected e = expect(g, false);
        for (const std::string& name : supported_isas()) {
            const UseIsa isa(name);
            SCOPED_TRACE(pair.c.name + ' ' + name);
            g.poison();
            g.run(Exec{});
            const double out = std::max({max_error(g.out, e.out), max_error(g.full_result.out, e.full.out),
                                         max_error(g.sparse_result.out, e.sparse.out)});
            EXPECT_LT(out, 2e-6);
            expect_lse(g, g.full_result, e.full, 0.0);
            expect_lse(g, g.sparse_result, e.sparse, 1.0);
            const double gradient = std::max({max_error(g.gradients.query(), e.dq), max_error(g.gradients.key(), e.dk),
                                              max_error(g.gradients.value(), e.dv)});
            EXPECT_LT(gradient, 5e-6);
            for (int h = 0; h < g.c.query_heads; ++h) {
                EXPECT_NEAR(g.dgate(h), e.dgate[h], 1e-5 * (1 + std::fabs(e.full.dgate[h]))) << h;
            }
            worst_out = std::max(worst_out, out);
            worst_gradient = std::max(worst_gradient, gradient);
        }
    }
    std::printf("largest relative errors, gated float: out %.2e, gradients %.2e\n", worst_out, worst_gradient);
}

TEST(HostGated, Bf16IsAsGoodAsItsStorage) {
    for (const Pair& pair : pairs()) {
        auto g = make<bf16>(pair, 52);
        const Expected exact = expect(g, false);
        for (const std::string& name : supported_isas()) {
            const UseIsa isa(name);
            SCOPED_TRACE(pair.c.name + ' ' + name);
            g.poison();
            g.run(Exec{});
            const Expected same = expect(g, true);
            EXPECT_LE(max_error(g.out, exact.out), 2 * rounding_error(exact.out, exact.out));
            EXPECT_LE(max_error(g.gradients.query(), exact.dq), 3 * rounding_error(exact.dq, same.dq));
            EXPECT_LE(max_error(g.gradients.key(), exact.dk), 3 * rounding_error(exact.dk, same.dk));
            EXPECT_LE(max_error(g.gradients.value(), exact.dv), 3 * rounding_error(exact.dv, same.dv));
        }
    }
}

#if defined(KOKKOS_ENABLE_SERIAL)
TEST(HostGatedDeterminism, SameBitsForSerialAndThreads) {
    for (const Pair& pair : pairs()) {
        auto a = make<float>(pair, 53);
        a.run(Exec{});
        auto b = make<float>(pair, 53);
        b.run(Kokkos::Serial{});
        const std::size_t bytes = a.gradients.memory.extent(0) * sizeof(float);
        EXPECT_EQ(std::memcmp(a.gradients.memory.data(), b.gradients.memory.data(), bytes), 0) << pair.c.name;
        for (int h = 0; h < a.c.query_heads; ++h) EXPECT_EQ(a.dgate(h), b.dgate(h));
    }
}
#endif

}  // namespace
}  // namespace sparseattn::testing
