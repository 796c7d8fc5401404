/// \file
/// What the device can do at this moment: a large bf16 matrix product and a copy.

#include <cublas_v2.h>

#include "perf/cuda/bench.hpp"
#include "tests/cuda/problem.cuh"

namespace sparseattn::cuda::bench {
namespace {

void require(cublasStatus_t status, const char* step) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    std::fprintf(stderr, "cuda_bench: %s: cuBLAS status %d\n", step, static_cast<int>(status));
    std::exit(70);
}

}  // namespace

void bench_ceilings(Report& report, const char* when) {
    using testing::Buffer;
    constexpr int n = 8192;
    Buffer<__nv_bfloat16> a(n * std::size_t{n}), b(n * std::size_t{n}), c(n * std::size_t{n});
    testing::fill_random<<<1024, 256>>>(a.data(), n * std::int64_t{n}, 1, 1);
    testing::fill_random<<<1024, 256>>>(b.data(), n * std::int64_t{n}, 2, 1);
    constexpr std::size_t bytes = std::size_t{1} << 31;
    Buffer<unsigned char> from(bytes), to(bytes);
    from.fill(3);
    cublasHandle_t handle;
    require(cublasCreate(&handle), "cublasCreate");
    const float one = 1, zero = 0;
    const auto gemm = [&] {
        require(cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a.data(), CUDA_R_16BF, n, b.data(),
                             CUDA_R_16BF, n, &zero, c.data(), CUDA_R_16BF, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                "cublasGemmEx");
    };
    const auto copy = [&] {
        SPARSEATTN_TEST_CUDA(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice));
    };
    const double gemm_ms = time_in_turns({}, {gemm})[0], copy_ms = time_in_turns({}, {copy})[0];
    require(cublasDestroy(handle), "cublasDestroy");
    report.ceilings(when, 2e-9 * n * n * n / gemm_ms, 2e-9 * bytes / copy_ms);
}

}  // namespace sparseattn::cuda::bench
