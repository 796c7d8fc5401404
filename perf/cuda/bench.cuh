#pragma once
/// \file
/// What the benchmarks of the CUDA kernels share: timing, ceilings, shapes, work.

#include <cublas_v2.h>

#include <algorithm>
#include <cstring>

#include "tests/cuda/problem.cuh"

namespace sparseattn::cuda::testing {

/// Median time of a call, in milliseconds.
template <class Call>
double time_ms(double seconds, const Call& call) {
    cudaEvent_t begin, end;
    SPARSEATTN_TEST_CUDA(cudaEventCreate(&begin));
    SPARSEATTN_TEST_CUDA(cudaEventCreate(&end));
    std::vector<double> times;
    double total = 0;
    for (int round = 0; round < 3 || (total < seconds * 1e3 && round < 200); ++round) {
        SPARSEATTN_TEST_CUDA(cudaEventRecord(begin));
        call();
        SPARSEATTN_TEST_CUDA(cudaEventRecord(end));
        SPARSEATTN_TEST_CUDA(cudaEventSynchronize(end));
        float ms = 0;
        SPARSEATTN_TEST_CUDA(cudaEventElapsedTime(&ms, begin, end));
        if (round > 0) times.push_back(ms);  // the first one warms up
        total += ms;
    }
    SPARSEATTN_TEST_CUDA(cudaEventDestroy(begin));
    SPARSEATTN_TEST_CUDA(cudaEventDestroy(end));
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
}

inline void print_ceilings(const char* when, std::FILE* json) {
    constexpr int n = 8192;
    Buffer<__nv_bfloat16> a(n * std::size_t{n}), b(n * std::size_t{n}), c(n * std::size_t{n});
    fill_random<<<1024, 256>>>(a.data(), n * std::int64_t{n}, 1, 1);
    fill_random<<<1024, 256>>>(b.data(), n * std::int64_t{n}, 2, 1);
    cublasHandle_t handle;
    if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) std::exit(70);
    const float one = 1, zero = 0;
    const double gemm = time_ms(0.15, [&] {
        if (cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a.data(), CUDA_R_16BF, n, b.data(),
                         CUDA_R_16BF, n, &zero, c.data(), CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                         CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
            std::exit(70);
        }
    });
    cublasDestroy(handle);
    constexpr std::size_t bytes = std::size_t{1} << 31;
    Buffer<unsigned char> from(bytes), to(bytes);
    from.fill(3);
    const double copy = time_ms(
        0.15, [&] { SPARSEATTN_TEST_CUDA(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice)); });
    std::printf("%s: gemm 8192 bf16 %.0f TFLOP/s, copy %.2f TB/s (read + written)\n", when, 2e-9 * n * n * n / gemm,
                2e-9 * bytes / copy);
    if (json != nullptr) {
        std::fprintf(json, "{\"what\": \"ceilings\", \"when\": \"%s\", \"gemm_tflops\": %.1f, \"copy_tbs\": %.3f}\n",
                     when, 2e-9 * n * n * n / gemm, 2e-9 * bytes / copy);
    }
}

struct Shape {
    int length, query_heads, key_heads, head_dim, block;
    bool causal, shared;
};

inline HostProblem build(const Shape& shape, double density) {
    HostProblem p;
    p.head_dim = shape.head_dim;
    p.block = shape.block;
    p.query_heads = shape.query_heads;
    p.key_heads = shape.key_heads;
    p.causal = shape.causal;
    add_sequence(p, shape.length, shape.length);
    const int group = shape.query_heads / shape.key_heads;
    p.lists = density >= 1 ? 1 : shape.shared ? shape.key_heads : shape.query_heads;
    for (int head = 0; head < p.query_heads; ++head) {
        p.head_list.push_back(density >= 1 ? 0 : shape.shared ? head / group : head);
        p.windows.push_back({0, Window::everything, 0});
    }
    make_lists(p, density, shape.causal, 0, 0, 5);
    return p;
}

/// Kept (query, key) pairs over all heads: whole blocks count whole, the diagonal block of a causal row half.
inline double kept_pairs(const HostProblem& p) {
    double blocks = 0;
    for (int head = 0; head < p.query_heads; ++head) {
        for (int row = 0; row < p.rows(); ++row) {
            const std::int64_t entry = static_cast<std::int64_t>(p.head_list[head]) * p.rows() + row;
            const auto begin = p.offsets[entry], end = p.offsets[entry + 1];
            blocks += static_cast<double>(end - begin);
            if (p.causal && end > begin && p.columns[end - 1] == row) blocks -= 0.5;
        }
    }
    return blocks * p.block * p.block;
}

}  // namespace sparseattn::cuda::testing
