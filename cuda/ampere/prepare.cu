/// \file
/// Before the backward passes: what they need of every query, and the gradient of the gates, which follows from it.

#include <cmath>

#include "cuda/ampere/backward_args.hpp"
#include "cuda/ampere/mma.cuh"

namespace sparseattn::cuda::ampere {
namespace {

constexpr float log2_e = 1.4426950408889634f;
constexpr int threads = 256;
constexpr int sharers = 4;  // threads of a query: every head dimension is a multiple of 4 pieces of 16 bytes

__device__ __forceinline__ float product_of_pairs(std::uint32_t a, std::uint32_t b) {
    return __uint_as_float(a << 16) * __uint_as_float(b << 16) +
           __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
}

__device__ __forceinline__ float weight_of(const BackwardArgs& args, int branch, int head) {
    if (args.gate == nullptr) return 1;
    const float gate = args.gate[head];
    return branch == 0 ? gate : 1 - gate;
}

/// Blocks over queries (x), heads (y) and branches (z).
__global__ void __launch_bounds__(threads)
    prepare_kernel(const __grid_constant__ BackwardArgs args, const __grid_constant__ ForwardResults results) {
    const int head = blockIdx.y, branch = blockIdx.z, part = threadIdx.x % sharers;
    const int token = static_cast<int>(blockIdx.x) * (threads / sharers) + static_cast<int>(threadIdx.x) / sharers;
    const float weight = weight_of(args, branch, head);
    if (weight == 0) return;  // nothing reads these rows, and nothing saved of the branch is used
    float delta = 0;
    if (token < args.batch.queries) {
        const auto row = [&](const Heads& array) {
            return reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(array.data) +
                                                  token * array.token_stride + head * array.head_stride);
        };
        const uint4 *out = row(results.out[branch]), *dout = row(args.dout);
        for (int piece = part; piece < args.head_dim / 8; piece += sharers) {
            const uint4 a = out[piece], b = dout[piece];
            delta += product_of_pairs(a.x, b.x) + product_of_pairs(a.y, b.y) + product_of_pairs(a.z, b.z) +
                     product_of_pairs(a.w, b.w);
        }
    }
    delta += __shfl_xor_sync(all_lanes, delta, 1);
    delta += __shfl_xor_sync(all_lanes, delta, 2);
    if (part != 0 || token >= args.batch.queries) return;
    const Rows& lse = results.lse[branch];
    const float natural = lse.data[token * lse.token_stride + head * lse.head_stride];
    args.branch[branch].rows[static_cast<std::int64_t>(head) * args.batch.queries + token] =
        make_float2(natural == -INFINITY ? INFINITY : fmaf(natural, log2_e, -log2f(weight)), delta);
}

/// One block a head; the order of the sum depends on the number of queries alone.
__global__ void __launch_bounds__(threads) dgate_kernel(const __grid_constant__ BackwardArgs args, float* dgate) {
    __shared__ double sums[threads];
    const int head = blockIdx.x;
    const bool learns = weight_of(args, 0, head) != 0 && weight_of(args, 1, head) != 0;
    double sum = 0;
    const std::int64_t first = static_cast<std::int64_t>(head) * args.batch.queries;
    for (int token = threadIdx.x; learns && token < args.batch.queries; token += threads) {
        sum += static_cast<double>(args.branch[0].rows[first + token].y) - args.branch[1].rows[first + token].y;
    }
    sums[threadIdx.x] = sum;
    for (int distance = threads / 2; distance > 0; distance /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < distance) sums[threadIdx.x] += sums[threadIdx.x + distance];
    }
    if (threadIdx.x == 0) dgate[head] = static_cast<float>(sums[0]);
}

}  // namespace

cudaError_t launch_prepare(const BackwardArgs& args, const ForwardResults& results, cudaStream_t stream) {
    if (args.batch.queries == 0) return cudaSuccess;
    constexpr int tokens = threads / sharers;
    const dim3 grid(static_cast<unsigned>((args.batch.queries + tokens - 1) / tokens),
                    static_cast<unsigned>(args.query_heads), static_cast<unsigned>(args.branches));
    prepare_kernel<<<grid, threads, 0, stream>>>(args, results);
    return cudaGetLastError();
}

cudaError_t launch_dgate(const BackwardArgs& args, float* dgate, cudaStream_t stream) {
    dgate_kernel<<<static_cast<unsigned>(args.query_heads), threads, 0, stream>>>(args, dgate);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::ampere
