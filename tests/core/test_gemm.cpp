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

}  // namespace
}  // namespace sparseattn::test
