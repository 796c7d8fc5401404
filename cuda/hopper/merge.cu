#include <cuda_bf16.h>

#include "cuda/hopper/forward_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

/// One thread block per (query, head), one thread per channel.
__global__ void merge_parts(Partials parts, int splits, Heads out, Rows lse, int queries, int heads) {
    const std::int64_t token = blockIdx.x, head = blockIdx.y;
    const std::int64_t row = token * heads + head, rows = static_cast<std::int64_t>(queries) * heads;
    float highest = -INFINITY;
    for (int split = 0; split < splits; ++split) highest = fmaxf(highest, parts.lse[split * rows + row]);
    const int channel = static_cast<int>(threadIdx.x), head_dim = static_cast<int>(blockDim.x);
    float sum = 0, value = 0;
    for (int split = 0; split < splits && highest != -INFINITY; ++split) {
        const float weight = expf(parts.lse[split * rows + row] - highest);
        sum += weight;
        value = fmaf(weight, parts.out[(split * rows + row) * head_dim + channel], value);
    }
    static_cast<__nv_bfloat16*>(out.data)[token * out.token_stride + head * out.head_stride + channel] =
        __float2bfloat16(sum > 0 ? value / sum : 0.0f);
    if (channel == 0) {
        lse.data[token * lse.token_stride + head * lse.head_stride] = sum > 0 ? highest + logf(sum) : -INFINITY;
    }
}

}  // namespace

cudaError_t launch_merge(const ForwardArgs& args, int query_heads, int head_dim, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(args.batch.queries), static_cast<unsigned>(query_heads));
    merge_parts<<<grid, head_dim, 0, stream>>>(args.partials, args.schedule.splits, args.out, args.lse,
                                               args.batch.queries, query_heads);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
