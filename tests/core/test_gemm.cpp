#include "sparseattn/core/error.hpp"
#include "sparseattn/core/gemm.hpp"
#include "support/arrays.hpp"

namespace sparseattn::test {
namespace {

using detail::Op;

template <class T>
class Gemm : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(Gemm, Types);

TYPED_TEST(Gemm, MatchesTheDefinitionForEveryTransposition) {
    using T = TypeParam;
    const struct {
        int m, n, k;
    } sizes[] = {{1, 1, 1}, {3, 5, 7}, {64, 48, 1}, {33, 65, 129}, {1, 40, 17}, {40, 1, 17}};
    for (const auto& [m, n, k] : sizes) {
        for (const Op op_a : {Op::none, Op::transpose}) {
            for (const Op op_b : {Op::none, Op::transpose}) {
                for (const double beta : {0.0, 1.0, -0.5}) {
                    const bool ta = op_a == Op::transpose, tb = op_b == Op::transpose;
                    const auto a = random<T>(m * k, 1), b = random<T>(k * n, 2), c = random<T>(m * n, 3);
                    const Device<T> a_device(a), b_device(b), c_device(c);
                    detail::gemm<Exec, T>(Exec(), op_a, op_b, T(1.5), a_device.matrix(ta ? k : m),
                                          b_device.matrix(tb ? n : k), T(beta), c_device.matrix(m));
                    std::vector<double> wanted(m * n);
                    for (int i = 0; i < m; ++i) {
                        for (int j = 0; j < n; ++j) {
                            double sum = 0;
                            for (int l = 0; l < k; ++l) {
                                sum += double(a[ta ? l * m + i : i * k + l]) * double(b[tb ? j * k + l : l * n + j]);
                            }
                            wanted[i * n + j] = 1.5 * sum + beta * c[i * n + j];
                        }
                    }
                    expect_close(c_device.host(), wanted, std::is_same_v<T, float> ? 2e-5 : 1e-13);
                }
            }
        }
    }
}

TYPED_TEST(Gemm, BetaZeroIgnoresTheOldContentAndEmptySumsKeepBeta) {
    using T = TypeParam;
    const Device<T> a(6, T(1)), b(6, T(1)), c(4, std::numeric_limits<T>::quiet_NaN());
    detail::gemm<Exec, T>(Exec(), Op::none, Op::transpose, T(1), a.matrix(2), b.matrix(2), T(0), c.matrix(2));
    expect_close(c.host(), {3, 3, 3, 3}, 0);
    const Span2<T, Mem> empty(nullptr, 2, 0);
    detail::gemm<Exec, T>(Exec(), Op::none, Op::transpose, T(1), empty, empty, T(2), c.matrix(2));
    expect_close(c.host(), {6, 6, 6, 6}, 0);
}

TYPED_TEST(Gemm, ExtentsThatDoNotFitAreNamed) {
    using T = TypeParam;
    const Device<T> a(6), b(8), c(4);
    EXPECT_THROW((detail::gemm<Exec, T>(Exec(), Op::none, Op::none, T(1), a.matrix(2), b.matrix(2), T(0), c.matrix(2))),
                 InvalidArgument);
    EXPECT_THROW(
        (detail::gemm<Exec, T>(Exec(), Op::none, Op::transpose, T(1), a.matrix(2), a.matrix(2), T(0), c.matrix(1))),
        InvalidArgument);
}

// ---- bf16 factors ----

template <class Out>
class GemmOfBf16 : public testing::Test {
  protected:
    // Every element against sums in double of the same factors: fp32 sums and one rounding are allowed.
    void expect_product(int m, int n, int k, Op op_a, Op op_b, float alpha, float beta) {
        const bool ta = op_a == Op::transpose, tb = op_b == Op::transpose;
        const auto a = random<bf16>(m * k, 1), b = random<bf16>(k * n, 2);
        // Old content that must not be read is not a number.
        const auto c = beta == 0 ? std::vector<Out>(m * n, Out(std::nanf(""))) : random<Out>(m * n, 3);
        const Device<bf16> a_device(a), b_device(b);
        const Device<Out> c_device(c);
        detail::gemm<Exec, bf16, Out>(Exec(), op_a, op_b, alpha, a_device.matrix(ta ? k : m),
                                      b_device.matrix(tb ? n : k), beta, c_device.matrix(m), workspace);
        const auto values = c_device.host();
        const double rounding = std::is_same_v<Out, bf16> ? 1.0 / 256 : 1.2e-7;
        for (int i = 0; i < m; ++i) {
            for (int j = 0; j < n; ++j) {
                double sum = 0, size = 0;
                for (int l = 0; l < k; ++l) {
                    const double term = double(a[ta ? l * m + i : i * k + l]) * double(b[tb ? j * k + l : l * n + j]);
                    sum += term;
                    size += std::abs(term);
                }
                const double wanted = alpha * sum + (beta == 0 ? 0.0 : beta * double(c[i * n + j]));
                const double slack = (k / 8.0 + 8) * 1.2e-7 * std::abs(alpha) * size + rounding * std::abs(wanted);
                ASSERT_NEAR(double(values[i * n + j]), wanted, slack)
                    << m << " x " << n << " x " << k << (ta ? " T" : " N") << (tb ? "T" : "N") << ", element " << i
                    << ", " << j;
            }
        }
    }

    Workspace<Mem> workspace;
};
using Results = testing::Types<bf16, float>;
TYPED_TEST_SUITE(GemmOfBf16, Results);

TYPED_TEST(GemmOfBf16, MatchesSumsInDoubleForEveryTransposition) {
    const struct {
        int m, n, k;
    } sizes[] = {{1, 1, 1}, {3, 5, 7}, {64, 48, 1}, {33, 65, 129}, {1, 40, 17}, {40, 1, 17}, {7, 1031, 19}};
    for (const auto& [m, n, k] : sizes) {
        for (const Op op_a : {Op::none, Op::transpose}) {
            for (const Op op_b : {Op::none, Op::transpose}) {
                for (const float beta : {0.0F, 1.0F, -0.5F}) this->expect_product(m, n, k, op_a, op_b, 1.5F, beta);
            }
        }
    }
}

// Larger than the pieces that a CPU works in, in every direction.
TYPED_TEST(GemmOfBf16, PiecesFitTogether) {
    this->expect_product(1050, 70, 530, Op::none, Op::transpose, 1.0F, 0.0F);
    this->expect_product(70, 1050, 1100, Op::transpose, Op::none, 1.0F, 1.0F);
}

TYPED_TEST(GemmOfBf16, SumsAreRoundedOnce) {
    using Out = TypeParam;
    // 1 + 2000 / 2048: partial sums in bf16 would stay at 1.
    const int k = 2001;
    std::vector<bf16> a(k, bf16(1.0F / 2048)), b(k, bf16(1.0F));
    a[0] = bf16(1.0F);
    const Device<bf16> a_device(a), b_device(b);
    const Device<Out> c(1);
    detail::gemm<Exec, bf16, Out>(Exec(), Op::none, Op::transpose, 1.0F, a_device.matrix(1), b_device.matrix(1), 0.0F,
                                  c.matrix(1), this->workspace);
    EXPECT_EQ(float(c.host()[0]), float(Out(1.0F + 2000.0F / 2048.0F)));
}

TYPED_TEST(GemmOfBf16, EmptySumsKeepBetaAndBadExtentsAreNamed) {
    using Out = TypeParam;
    const Device<Out> c(4, Out(3.0F));
    const Span2<bf16, Mem> empty(nullptr, 2, 0);
    const auto product = [&](const auto& a, const auto& b, float beta) {
        detail::gemm<Exec, bf16, Out>(Exec(), Op::none, Op::transpose, 1.0F, a, b, beta, c.matrix(2), this->workspace);
    };
    product(empty, empty, 2.0F);
    expect_close(c.host(), {6, 6, 6, 6}, 0);
    product(empty, empty, 0.0F);
    expect_close(c.host(), {0, 0, 0, 0}, 0);
    const Device<bf16> a(6), b(8);
    EXPECT_THROW(product(a.matrix(2), b.matrix(2), 0.0F), InvalidArgument);
    EXPECT_THROW(product(a.matrix(3), a.matrix(2), 0.0F), InvalidArgument);
}

TYPED_TEST(GemmOfBf16, TakesNoMoreThanItSays) {
    using Out = TypeParam;
    const Device<bf16> a(40 * 30), b(30 * 20);
    const Device<Out> c(40 * 20);
    detail::gemm<Exec, bf16, Out>(Exec(), Op::none, Op::none, 1.0F, a.matrix(40), b.matrix(30), 0.0F, c.matrix(40),
                                  this->workspace);
    const std::size_t said = detail::gemm_workspace<Exec, bf16>(40, 20, 30);
    EXPECT_LE(this->workspace.capacity(), (said + 63) / 64 * 64);
    EXPECT_EQ((detail::gemm_workspace<Exec, float>(40, 20, 30)), 0U);
}

}  // namespace
}  // namespace sparseattn::test
