// The fp64 reference against an independent dense evaluation, against central differences, and against the properties
// that attention has whatever the numbers.
#include <gmock/gmock.h>

#include <functional>

#include "attention/run_case.hpp"

namespace sparseattn::testing {
namespace {

using Exec = Kokkos::DefaultHostExecutionSpace;
using Mem = Exec::memory_space;

class ReferenceAttention : public ::testing::TestWithParam<Case> {
  public:
    static void TearDownTestSuite() { table_.print(std::cout); }

  protected:
    static ErrorTable table_;
};
ErrorTable ReferenceAttention::table_;

TEST_P(ReferenceAttention, AgreesWithDenseSoftmaxUnderExplicitMask) {
    const Yardstick& y = yardstick(GetParam());
    const Results dense = evaluate_dense<double>(Exec(), GetParam(), y.problem);
    Errors errors;
    for (const auto& [name, values] : dense) {
        errors[name].value = relative_error(y.truth.at(name), values);
        EXPECT_LE(errors[name].value, name == "dgate" ? 1e-7 : 1e-12) << name;  // dgate is stored as float
    }
    table_.add("reference double", errors);
}
INSTANTIATE_TEST_SUITE_P(Cases, ReferenceAttention, ::testing::ValuesIn(attention_cases()),
                         [](const auto& info) { return info.param.name; });

/// A problem small enough to differentiate numerically.
Case tiny_case(Kind kind, bool causal) {
    Case c{"tiny", {0, 5, 5, 8}, {0, 7, 9, 11}, 64, causal, 4, 2, 3, kind, false, 7};
    c.name = concat("tiny_", name_of(kind), causal ? "_causal" : "");
    return c;
}

/// sum of out * dout, plain or gated, as a function of the problem and the gate.
double loss(const DenseProblem& p, const CaseLayouts<Mem>& layouts, const std::vector<float>& gate) {
    const Exec exec;
    Workspace<Mem> workspace;
    Fused<double, Mem> in(p, true);
    in.write(0, p.query);
    in.write(1, p.key);
    in.write(2, p.value);
    const AttentionInputs<double, Mem> inputs{in.view(0), in.view(1), in.view(2)};
    Branch<double, Mem> out(p, false), full(p, false), sparse(p, false);
    if (gate.empty()) {
        attention_forward<Exec, double>(exec, inputs, layouts.sequences, layouts.full, {}, workspace, out.view());
    } else {
        gated_attention_forward<Exec, double>(exec, inputs, layouts.sequences, layouts.full, layouts.sparse,
                                              detail::to_device(exec, "gate", gate), {}, workspace, out.out_view(),
                                              full.view(), sparse.view());
    }
    exec.fence();
    const auto values = out.read_out();
    double sum = 0;
    for (std::size_t e = 0; e < values.size(); ++e) sum += values[e] * p.dout[e];
    return sum;
}

double central_difference(double& x, const std::function<double()>& f) {
    const double at = x, h = 1e-4 * std::max(1.0, std::abs(at));
    const auto slope = [&](double step) {
        x = at + step;
        const double up = f();
        x = at - step;
        const double down = f();
        x = at;
        return (up - down) / (2 * step);
    };
    return (4 * slope(h / 2) - slope(h)) / 3;  // the h^2 term cancels
}

class ReferenceGradients : public ::testing::TestWithParam<std::tuple<Kind, bool>> {};
TEST_P(ReferenceGradients, AgreeWithCentralDifferences) {
    const Case c = tiny_case(std::get<0>(GetParam()), std::get<1>(GetParam()));
    const auto layouts = case_layouts(Exec(), c);
    DenseProblem p = case_problem(c);
    const Results r = evaluate<Exec, double>(Exec(), Implementation::automatic, c, p);
    const std::vector<float> gates[] = {{}, case_gate(c)};
    for (int gated = 0; gated < 2; ++gated) {
        const std::string prefix = gated == 0 ? "" : "gated_";
        const std::pair<std::vector<double>*, std::string> inputs[] = {
            {&p.query, "dquery"}, {&p.key, "dkey"}, {&p.value, "dvalue"}};
        for (const auto& [values, name] : inputs) {
            std::vector<double> differences;
            for (double& x : *values) {
                differences.push_back(central_difference(x, [&] { return loss(p, layouts, gates[gated]); }));
            }
            EXPECT_LE(relative_error(r.at(prefix + name), differences), 1e-8) << prefix + name;
        }
    }
    // The loss is linear in z: a wide step costs nothing but rounding. Clamped gates get no gradient.
    const std::vector<float>& gate = gates[1];
    for (int h = 0; h < c.heads; ++h) {
        std::vector<float> up = gate, down = gate;
        up[h] = 0.75F;
        down[h] = 0.25F;
        const double slope = (loss(p, layouts, up) - loss(p, layouts, down)) / 0.5;
        const bool clamped = gate[h] == 0.0F || gate[h] == 1.0F;
        EXPECT_NEAR(r.at("dgate")[h], clamped ? 0.0 : slope, 1e-6 * std::max(1.0, std::abs(slope))) << "head " << h;
    }
}
INSTANTIATE_TEST_SUITE_P(Kinds, ReferenceGradients,
                         ::testing::Combine(::testing::Values(Kind::dense, Kind::mixed, Kind::lists_and_keys,
                                                              Kind::windowed),
                                            ::testing::Bool()),
                         [](const auto& info) {
                             return concat(name_of(std::get<0>(info.param)),
                                           std::get<1>(info.param) ? "_causal" : "_full");
                         });

// Values of 1 make every output the sum of the row's probabilities.
TEST(ReferenceProperties, ProbabilitiesOfARowSumToOne) {
    int with_empty_rows = 0;
    for (const Case& c : attention_cases(6, 8)) {
        DenseProblem p = case_problem(c);
        std::fill(p.value.begin(), p.value.end(), 1.0);
        const Results r = evaluate<Exec, double>(Exec(), Implementation::reference, c, p);
        int empty = 0;
        for (std::size_t e = 0; e < r.at("out").size(); ++e) {
            const bool none = std::isinf(r.at("lse")[e / c.head_dim]);
            empty += none ? 1 : 0;
            ASSERT_NEAR(r.at("out")[e], none ? 0.0 : 1.0, 1e-14) << c.name;
        }
        with_empty_rows += empty > 0 ? 1 : 0;
    }
    EXPECT_GT(with_empty_rows, 0);
}

TEST(ReferenceProperties, RowsWithoutKeysGiveZeros) {
    Case c{"no_keys", {0, 70, 73}, {0, 0, 2}, 64, true, 4, 2, 32, Kind::dense, false, 3};
    const Results r = evaluate<Exec, double>(Exec(), Implementation::reference, c, case_problem(c));
    for (int e = 0; e < 71 * 4; ++e) {  // one query more than keys in the second sequence: its first sees none
        EXPECT_EQ(r.at("lse")[e], -std::numeric_limits<double>::infinity());
        for (int i = 0; i < 32; ++i) {
            EXPECT_EQ(r.at("out")[e * 32 + i], 0.0);
            EXPECT_EQ(r.at("dquery")[e * 32 + i], 0.0);
        }
    }
    EXPECT_NE(r.at("out")[71 * 4 * 32], 0.0);
}

TEST(ReferenceProperties, AllBlocksEqualDense) {
    const Exec exec;
    const Case c{"all_blocks", {0, 90, 140}, {0, 90, 200}, 64, true, 2, 1, 16, Kind::dense, false, 5};
    const DenseProblem p = case_problem(c);
    auto layouts = case_layouts(exec, c);
    HostLists lists{{0}, {}, {}, {}};
    for (int s = 0; s < 2; ++s) {
        const TokenRule rule{layouts.sequences.query_length(s), layouts.sequences.key_length(s), true, {}};
        for (int i = 0; i < rule.queries; i += 64) {
            for (int j = 0; j * 64 < rule.key_end(std::min(i + 64, rule.queries) - 1); ++j) lists.columns.push_back(j);
            lists.offsets.push_back(static_cast<std::int64_t>(lists.columns.size()));
        }
    }
    const double dense = loss(p, layouts, {});
    layouts.full = layout_from_lists(exec, layouts.sequences, 64, true, lists, {0, 0}, std::vector<Window>(2));
    EXPECT_EQ(dense, loss(p, layouts, {}));
}

/// Rows of `width` values moved: result[to] = values[from(to)].
std::vector<double> gather(const std::vector<double>& values, std::size_t width,
                           const std::function<std::size_t(std::size_t)>& from) {
    std::vector<double> result(values.size());
    for (std::size_t row = 0; row < values.size() / width; ++row) {
        std::copy_n(values.begin() + from(row) * width, width, result.begin() + row * width);
    }
    return result;
}

TEST(ReferenceProperties, OrderOfHeadsChangesNothing) {
    const Case c{"heads", {0, 40, 100}, {0, 70, 130}, 64, true, 4, 4, 8, Kind::dense, true, 9};
    const DenseProblem p = case_problem(c);
    const auto reversed = [](std::size_t row) { return row / 4 * 4 + 3 - row % 4; };
    DenseProblem turned = p;
    for (auto member : {&DenseProblem::query, &DenseProblem::key, &DenseProblem::value, &DenseProblem::dout}) {
        turned.*member = gather(p.*member, 8, reversed);
    }
    const Results a = evaluate<Exec, double>(Exec(), Implementation::reference, c, p);
    const Results b = evaluate<Exec, double>(Exec(), Implementation::reference, c, turned);
    for (const char* name : {"out", "dquery", "dkey", "dvalue"}) EXPECT_EQ(gather(a.at(name), 8, reversed), b.at(name));
    EXPECT_EQ(gather(a.at("lse"), 1, reversed), b.at("lse"));
}

TEST(ReferenceProperties, OrderOfSequencesChangesNothing) {
    Case c{"sequences", {0, 40, 100}, {0, 40, 100}, 64, true, 2, 1, 8, Kind::dense, false, 9};
    const DenseProblem p = case_problem(c);
    const Results a = evaluate<Exec, double>(Exec(), Implementation::reference, c, p);
    Case d = c;
    d.query_offsets = d.key_offsets = {0, 60, 100};
    const auto moved = [](std::size_t heads) {
        return [heads](std::size_t row) { return row < 60 * heads ? row + 40 * heads : row - 60 * heads; };
    };
    DenseProblem turned = p;
    turned.query = gather(p.query, 8, moved(2));
    turned.dout = gather(p.dout, 8, moved(2));
    turned.key = gather(p.key, 8, moved(1));
    turned.value = gather(p.value, 8, moved(1));
    const Results b = evaluate<Exec, double>(Exec(), Implementation::reference, d, turned);
    EXPECT_EQ(gather(a.at("out"), 8, moved(2)), b.at("out"));
    EXPECT_EQ(gather(a.at("dquery"), 8, moved(2)), b.at("dquery"));
    EXPECT_EQ(gather(a.at("dkey"), 8, moved(1)), b.at("dkey"));
    EXPECT_EQ(gather(a.at("dvalue"), 8, moved(1)), b.at("dvalue"));
}

}  // namespace
}  // namespace sparseattn::testing
