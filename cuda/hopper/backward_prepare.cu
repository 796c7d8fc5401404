/// \file
/// Before and after the passes: what the queries need, and dQ from its sums.

#include <cuda_bf16.h>

#include <cmath>

#include "cuda/hopper/backward_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

constexpr float log2_e = 1.4426950408889634f;

/// Where a tile's 64 queries lie.
struct TileSpan {
    int token;  // first, in the packed batch
    int valid;  // how many there are, may be <= 0

    __device__ TileSpan(const BackwardArgs& args, int tile) {
        const int parts = args.layout.block / query_tile;
        const int row = tile / parts;
        const int sequence = args.layout.row_sequence[row];
        const int first = (row - args.layout.row_begin[sequence]) * args.layout.block + tile % parts * query_tile;
        token = args.batch.query_offsets[sequence] + first;
        valid = args.batch.query_offsets[sequence + 1] - token;
    }
};

__device__ __forceinline__ float product_of_pairs(std::uint32_t a, std::uint32_t b) {
    return __uint_as_float(a << 16) * __uint_as_float(b << 16) +
           __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
}

/// One block of 256 threads per (tile, head); D / 8 threads share a query.
template <int D>
__global__ void __launch_bounds__(256) prepare_kernel(const BackwardArgs args, const Heads out, const Heads dout,
                                                      const Rows lse) {
    constexpr int sharers = D / 8;
    const int tile = blockIdx.x, head = blockIdx.y, part = threadIdx.x % sharers;
    const TileSpan span(args, tile);
    const std::int64_t number = static_cast<std::int64_t>(head) * args.tiles + tile;
    float* values = args.row_values + number * 2 * query_tile;
    for (int query = threadIdx.x / sharers; query < query_tile; query += 256 / sharers) {
        const bool valid = query < span.valid;
        float delta = 0;
        if (valid) {
            const std::int64_t token = span.token + query;
            const auto piece = [&](const Heads& array) {
                return *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(array.data) +
                                                       token * array.token_stride + head * array.head_stride + part * 8);
            };
            const uint4 a = piece(out), b = piece(dout);
            delta = product_of_pairs(a.x, b.x) + product_of_pairs(a.y, b.y) + product_of_pairs(a.z, b.z) +
                    product_of_pairs(a.w, b.w);
        }
#pragma unroll
        for (int distance = sharers / 2; distance > 0; distance /= 2) {
            delta += __shfl_xor_sync(0xffffffffu, delta, distance);
        }
        if (part == 0) {
            const float natural =
                valid ? lse.data[(span.token + query) * lse.token_stride + head * lse.head_stride] : -INFINITY;
            values[query] = natural == -INFINITY ? INFINITY : natural * log2_e;
            values[query_tile + query] = delta;
        }
    }
    if (args.dq_sums != nullptr) {
        float4* sums = reinterpret_cast<float4*>(args.dq_sums + number * query_tile * D);
        for (int i = threadIdx.x; i < query_tile * D / 4; i += 256) sums[i] = make_float4(0, 0, 0, 0);
    }
    if (tile == 0 && head == 0 && threadIdx.x < 2) args.next_item[threadIdx.x] = 0;
}

/// One block of 128 threads per (tile, head): the threads of the warpgroups that wrote the sums.
template <int D>
__global__ void __launch_bounds__(128) finish_kernel(const BackwardArgs args) {
    const int tile = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32;
    const TileSpan span(args, tile);
    const std::int64_t number = static_cast<std::int64_t>(head) * args.tiles + tile;
    const float4* sums = reinterpret_cast<const float4*>(args.dq_sums + number * query_tile * D);
    const int row = threadIdx.x / 32 * 16 + lane / 4;
    auto* dq = static_cast<__nv_bfloat16*>(args.dq.data) + head * args.dq.head_stride +
               (span.token + row) * args.dq.token_stride + lane % 4 * 2;
#pragma unroll 4
    for (int f = 0; f < D / 8; ++f) {  // columns 8 f: the halves of the channels follow each other
        const float4 sum = sums[f * 128 + threadIdx.x];
        if (row < span.valid) {
            *reinterpret_cast<__nv_bfloat162*>(dq + 8 * f) =
                __floats2bfloat162_rn(sum.x * args.scale, sum.y * args.scale);
        }
        if (row + 8 < span.valid) {
            *reinterpret_cast<__nv_bfloat162*>(dq + 8 * args.dq.token_stride + 8 * f) =
                __floats2bfloat162_rn(sum.z * args.scale, sum.w * args.scale);
        }
    }
}

}  // namespace

cudaError_t launch_prepare(const BackwardArgs& args, const BackwardParams& params) {
    if (args.tiles == 0) return cudaMemsetAsync(args.next_item, 0, 2 * sizeof(int), params.stream);
    const dim3 grid(static_cast<unsigned>(args.tiles), static_cast<unsigned>(args.query_heads));
    if (params.head_dim == 64) {
        prepare_kernel<64><<<grid, 256, 0, params.stream>>>(args, params.out, params.dout, params.lse);
    } else {
        prepare_kernel<128><<<grid, 256, 0, params.stream>>>(args, params.out, params.dout, params.lse);
    }
    return cudaGetLastError();
}

cudaError_t launch_finish(const BackwardArgs& args, const BackwardParams& params) {
    if (args.tiles == 0) return cudaSuccess;
    const dim3 grid(static_cast<unsigned>(args.tiles), static_cast<unsigned>(args.query_heads));
    if (params.head_dim == 64) {
        finish_kernel<64><<<grid, 128, 0, params.stream>>>(args);
    } else {
        finish_kernel<128><<<grid, 128, 0, params.stream>>>(args);
    }
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
