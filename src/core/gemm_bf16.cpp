#include <algorithm>
#include <cstdint>

#include "sparseattn/core/detail/gemm_shape.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#if defined(SPARSEATTN_CUDA_KERNELS)
#include "cuda/matmul.hpp"
#endif

namespace sparseattn::detail {
namespace {

template <class Exec>
using Range = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;

// c <- beta c, for products without terms.
template <class Exec, class Out>
void scale(const Exec& exec, float beta, const Span2<Out, typename Exec::memory_space>& c) {
    const Span1<Out, typename Exec::memory_space> flat(c.data(), c.size());
    Kokkos::parallel_for(
        "SparseAttn::gemm.empty", Range<Exec>(exec, 0, static_cast<std::int64_t>(flat.extent(0))),
        KOKKOS_LAMBDA(std::int64_t i) { flat(i) = beta == 0 ? Out(0.0F) : Out(beta * static_cast<float>(flat(i))); });
}

// ---- on a CPU: tiles converted to float, multiplied by the BLAS, rounded when their sums are complete --------------

// Large enough that converting costs little beside multiplying, small enough for the caches that cores share.
constexpr std::size_t tile_edge = 1024, tile_depth = 512;
struct Tile {
    std::size_t m, n, k;
    Tile(std::size_t m_, std::size_t n_, std::size_t k_)
        : m(std::min(m_, tile_edge)), n(std::min(n_, tile_edge)), k(std::min(k_, tile_depth)) {}
    [[nodiscard]] std::size_t floats() const { return m * k + k * n + m * n; }
};

// Rows [row, row + rows) and columns [column, column + columns) of a matrix, in float.
template <class Exec>
Span2<const float, Kokkos::HostSpace> widened(const Exec& exec, const Span2<const bf16, Kokkos::HostSpace>& matrix,
                                              std::size_t row, std::size_t rows, std::size_t column,
                                              std::size_t columns, float* memory) {
    const bf16* from = &matrix(row, column);
    const std::size_t stride = matrix.extent(1);
    Kokkos::parallel_for("SparseAttn::gemm.widen", Range<Exec>(exec, 0, static_cast<std::int64_t>(rows)),
                         [=](std::int64_t r) {
                             const bf16* source = from + static_cast<std::size_t>(r) * stride;
                             float* target = memory + static_cast<std::size_t>(r) * columns;
                             for (std::size_t i = 0; i < columns; ++i) target[i] = source[i];
                         });
    return Span2<const float, Kokkos::HostSpace>(memory, rows, columns);
}

// c's rows from `row` and columns from `column` <- alpha sums + beta c.
template <class Exec, class Out>
void store(const Exec& exec, const Span2<const float, Kokkos::HostSpace>& sums, float alpha, float beta,
           const Span2<Out, Kokkos::HostSpace>& c, std::size_t row, std::size_t column) {
    Out* to = &c(row, column);
    const std::size_t stride = c.extent(1), columns = sums.extent(1);
    const float* from = sums.data();
    Kokkos::parallel_for("SparseAttn::gemm.store", Range<Exec>(exec, 0, static_cast<std::int64_t>(sums.extent(0))),
                         [=](std::int64_t r) {
                             const float* source = from + static_cast<std::size_t>(r) * columns;
                             Out* target = to + static_cast<std::size_t>(r) * stride;
                             if (beta == 0) {
                                 for (std::size_t i = 0; i < columns; ++i) target[i] = Out(alpha * source[i]);
                             } else {
                                 for (std::size_t i = 0; i < columns; ++i) {
                                     target[i] = Out(alpha * source[i] + beta * static_cast<float>(target[i]));
                                 }
                             }
                         });
}

template <class Exec, class Out>
void multiply_on_host(const Exec& exec, const GemmShape& shape, Op op_a, Op op_b, float alpha,
                      const Span2<const bf16, Kokkos::HostSpace>& a, const Span2<const bf16, Kokkos::HostSpace>& b,
                      float beta, const Span2<Out, Kokkos::HostSpace>& c, Workspace<Kokkos::HostSpace>& workspace) {
    const auto [m, n, k] = shape;
    const Tile tile(m, n, k);
    Workspace<Kokkos::HostSpace>::Frame frame(workspace);
    float* const memory = frame.template take<float>(tile.floats()).data();
    float *const a_tile = memory, *const b_tile = a_tile + tile.m * tile.k, *const c_tile = b_tile + tile.k * tile.n;
    const auto part = [&](const auto& matrix, Op op, std::size_t row, std::size_t rows, std::size_t column,
                          std::size_t columns, float* to) {  // of op(matrix)
        return op == Op::none ? widened(exec, matrix, row, rows, column, columns, to)
                              : widened(exec, matrix, column, columns, row, rows, to);
    };
    for (std::size_t i = 0; i < m; i += tile.m) {
        const std::size_t rows = std::min(tile.m, m - i);
        for (std::size_t j = 0; j < n; j += tile.n) {
            const std::size_t columns = std::min(tile.n, n - j);
            const Span2<float, Kokkos::HostSpace> sums(c_tile, rows, columns);
            for (std::size_t l = 0; l < k; l += tile.k) {
                const std::size_t depth = std::min(tile.k, k - l);
                const auto left = part(a, op_a, i, rows, l, depth, a_tile);
                const auto right = part(b, op_b, l, depth, j, columns, b_tile);
                gemm<Exec, float>(exec, op_a, op_b, 1.0F, left, right, l == 0 ? 0.0F : 1.0F, sums);
            }
            store<Exec, Out>(exec, sums, alpha, beta, c, i, j);
        }
    }
}

// ---- on CUDA -----------------------------------------------------------------------------------------------------

constexpr std::size_t device_alignment = 256;

#if defined(SPARSEATTN_CUDA_KERNELS)
template <class Out>
void multiply_on_device(const Kokkos::Cuda& exec, const GemmShape& shape, Op op_a, Op op_b, float alpha, const bf16* a,
                        const bf16* b, float beta, Out* c, Workspace<Kokkos::CudaSpace>& workspace) {
    Workspace<Kokkos::CudaSpace>::Frame frame(workspace);
    std::byte* memory = frame.take<std::byte>(cuda::matmul_workspace + device_alignment).data();
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % device_alignment;
    cuda::MatmulParams params;
    params.m = static_cast<std::int64_t>(shape.m);
    params.n = static_cast<std::int64_t>(shape.n);
    params.k = static_cast<std::int64_t>(shape.k);
    params.transpose_a = op_a == Op::transpose;
    params.transpose_b = op_b == Op::transpose;
    params.alpha = alpha;
    params.beta = beta;
    params.a = a;
    params.b = b;
    params.c = c;
    params.result = std::is_same_v<Out, bf16> ? cuda::MatmulResult::bf16 : cuda::MatmulResult::fp32;
    params.workspace = memory + (past == 0 ? 0 : device_alignment - past);
    params.stream = exec.cuda_stream();
    const cuda::MatmulStatus status = cuda::matmul(params);
    if (status.ok()) return;
    throw Error(concat("product of bf16 matrices (", shape.m, " x ", shape.k, ") (", shape.k, " x ", shape.n,
                       ") on CUDA failed at ", status.where, ": ", status.reason));
}
#endif

}  // namespace

template <class Exec, class Out>
void gemm_bf16(const Exec& exec, Op op_a, Op op_b, float alpha, const Span2<const bf16, typename Exec::memory_space>& a,
               const Span2<const bf16, typename Exec::memory_space>& b, float beta,
               const Span2<Out, typename Exec::memory_space>& c, Workspace<typename Exec::memory_space>& workspace) {
    const GemmShape shape = gemm_shape(op_a, op_b, a, b, c);
    if (shape.m == 0 || shape.n == 0) return;
    const Region region("SparseAttn::gemm_bf16");
    if (shape.k == 0) {
        scale<Exec, Out>(exec, beta, c);
    } else if constexpr (host_accessible<Exec>) {
        multiply_on_host<Exec, Out>(exec, shape, op_a, op_b, alpha, a, b, beta, c, workspace);
    } else {
        multiply_on_device<Out>(exec, shape, op_a, op_b, alpha, a.data(), b.data(), beta, c.data(), workspace);
    }
}

template <class Exec>
std::size_t gemm_bf16_workspace([[maybe_unused]] std::size_t m, [[maybe_unused]] std::size_t n,
                                [[maybe_unused]] std::size_t k) {
    if constexpr (host_accessible<Exec>) return Tile(m, n, k).floats() * sizeof(float);
#if defined(SPARSEATTN_CUDA_KERNELS)
    return cuda::matmul_workspace + device_alignment;
#else
    return device_alignment;
#endif
}

#define SPARSEATTN_GEMM_BF16(EXEC, OUT)                                                               \
    template void gemm_bf16(const EXEC&, Op, Op, float, const Span2<const bf16, EXEC::memory_space>&, \
                            const Span2<const bf16, EXEC::memory_space>&, float,                      \
                            const Span2<OUT, EXEC::memory_space>&, Workspace<EXEC::memory_space>&);
#define SPARSEATTN_GEMM_BF16_BOTH(EXEC) \
    SPARSEATTN_GEMM_BF16(EXEC, bf16)    \
    SPARSEATTN_GEMM_BF16(EXEC, float)   \
    template std::size_t gemm_bf16_workspace<EXEC>(std::size_t, std::size_t, std::size_t);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_GEMM_BF16_BOTH)

}  // namespace sparseattn::detail
