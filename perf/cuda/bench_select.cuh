#pragma once
/// \file
/// Selection on the device beside the dense forward of the same run.

#include <cmath>

#include "cuda/select.hpp"
#include "perf/cuda/bench.cuh"
#include "tests/cuda/problem_select.cuh"

namespace sparseattn::cuda::testing {

/// One line: XAttention's time (lists included) over that of the dense causal forward, which takes `dense_ms`.
inline double bench_selection(int length, int query_heads, int key_heads, int head_dim, int block, int stride,
                              double threshold, double dense_ms, double seconds, std::FILE* json) {
    SelectProblem p({"bench",
                     {length},
                     {length},
                     query_heads,
                     key_heads,
                     head_dim,
                     block,
                     stride,
                     true,
                     true,
                     false,
                     false,
                     true,
                     {threshold}},
                    17);
    const char* why = "";
    if (xattention_kernel(p.params, &why) == Kernel::none) {
        std::printf("xattention n %6d: not served: %s\n", length, why);
        return 0;
    }
    p.params.masses = nullptr;
    const double ms = time_ms(seconds, [&] {
        const Status status = xattention(p.params);
        if (!status.ok()) {
            std::fprintf(stderr, "xattention: %s\n", status.where);
            std::exit(70);
        }
    });
    const auto offsets = p.offsets.host();
    const double rows = p.host.rows(),
                 kept = static_cast<double>(offsets.back()) / query_heads / (rows * (rows + 1) / 2);
    const double strided = static_cast<double>(length) / stride;
    const double tflops = strided * strided * stride * head_dim * query_heads * 1e-9 / ms;  // of the visible half
    std::printf(
        "xattention n %6d heads %d/%d d %d block %3d stride %2d: %8.4f ms, %4.0f TFLOP/s of products, density %.2f, "
        "dense forward %8.3f ms, share %.2f %%, workspace %.0f MiB\n",
        length, query_heads, key_heads, head_dim, block, stride, ms, tflops, kept, dense_ms, 100 * ms / dense_ms,
        static_cast<double>(p.workspace.size()) / (1 << 20));
    if (json != nullptr) {
        std::fprintf(json,
                     "{\"what\": \"xattention\", \"n\": %d, \"query_heads\": %d, \"key_heads\": %d, \"d\": %d, "
                     "\"block\": %d, \"stride\": %d, \"ms\": %.5f, \"dense_ms\": %.5f}\n",
                     length, query_heads, key_heads, head_dim, block, stride, ms, dense_ms);
    }
    return ms;
}

}  // namespace sparseattn::cuda::testing
