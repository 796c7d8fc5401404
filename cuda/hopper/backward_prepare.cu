/// \file
/// Before and after the passes: what the queries need, dK and dV from their parts, dQ from its sums.

#include <cuda_bf16.h>

#include <cmath>

#include "cuda/hopper/backward_lists.cuh"
#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/ptx.cuh"

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

/// The records of one branch of a tile. D / 8 threads share a query. Returns the sum of the deltas of the thread's
/// queries, in the first of the threads that share them.
template <int D>
__device__ __forceinline__ float prepare_branch(const BackwardArgs& args, const Heads& dout, int branch, int tile,
                                                int head, float weight) {
    constexpr int sharers = D / 8;
    const int part = threadIdx.x % sharers;
    const Heads& out = args.branch[branch].out;
    const Rows& lse = args.branch[branch].lse;
    const TileSpan span(args, tile);
    const std::int64_t number = (static_cast<std::int64_t>(branch) * args.query_heads + head) * args.tiles + tile;
    float* values = args.row_values + number * 2 * query_tile;
    const float log2_weight = log2f(weight);
    float sum = 0;
    for (int query = threadIdx.x / sharers; query < query_tile; query += 256 / sharers) {
        const bool valid = query < span.valid;
        float delta = 0;
        if (valid && part * 8 < args.head_dim) {
            const std::int64_t token = span.token + query;
            const auto piece = [&](const Heads& array) {
                return *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(array.data) +
                                                       token * array.token_stride + head * array.head_stride +
                                                       part * 8);
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
            values[query] = natural == -INFINITY ? INFINITY : natural * log2_e - log2_weight;
            values[query_tile + query] = delta;
            sum += delta;
        }
    }
    return sum;
}

/// One block of 256 threads per (tile, head). A branch without weight is not read; nothing reads its records.
template <int D>
__global__ void __launch_bounds__(256) prepare_kernel(const BackwardArgs args, const Heads dout) {
    const int tile = blockIdx.x, head = blockIdx.y;
    const std::int64_t number = static_cast<std::int64_t>(head) * args.tiles + tile;
    float difference = 0;
    bool both = args.branches == 2;
    for (int branch = 0; branch < args.branches; ++branch) {
        const float weight = branch_weight(args, branch, head);
        if (weight == 0) {
            both = false;
            continue;
        }
        const float sum = prepare_branch<D>(args, dout, branch, tile, head, weight);
        difference += branch == 0 ? sum : -sum;
    }
    if (args.branches == 2) {
        __shared__ float sums[8];
        for (int distance = 16; distance > 0; distance /= 2) {
            difference += __shfl_xor_sync(0xffffffffu, difference, distance);
        }
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = difference;
        __syncthreads();
        if (threadIdx.x == 0) {
            float total = 0;
            for (const float sum : sums) total += sum;
            args.gate_sums[number] = both ? total : 0;
        }
    }
    if (args.dq_sums != nullptr) {
        float4* sums = reinterpret_cast<float4*>(args.dq_sums + number * query_tile * D);
        for (int i = threadIdx.x; i < query_tile * D / 4; i += 256) sums[i] = make_float4(0, 0, 0, 0);
    }
    wait_for_previous_kernel();  // so that whatever follows this kernel follows the plan too
}

/// One block of 256 threads per head.
__global__ void __launch_bounds__(256) gate_kernel(const BackwardArgs args) {
    __shared__ double sums[256];
    const float* tiles = args.gate_sums + static_cast<std::int64_t>(blockIdx.x) * args.tiles;
    double sum = 0;
    for (int tile = threadIdx.x; tile < args.tiles; tile += 256) sum += tiles[tile];
    sums[threadIdx.x] = sum;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) args.dgate[blockIdx.x] = static_cast<float>(sums[0]);
}

/// One block of 128 threads per (tile, head): the threads of the warpgroups that wrote the sums. `wide`: dQ can be
/// written in pieces of 16 bytes.
template <int D>
__global__ void __launch_bounds__(128) finish_kernel(const BackwardArgs args, bool wide) {
    const int tile = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32;
    const TileSpan span(args, tile);
    const std::int64_t number = static_cast<std::int64_t>(head) * args.tiles + tile;
    const float4* sums = reinterpret_cast<const float4*>(args.dq_sums + number * query_tile * D) + threadIdx.x;
    const int row = threadIdx.x / 32 * 16 + lane / 4;
    auto* dq = static_cast<__nv_bfloat16*>(args.dq.data) + head * args.dq.head_stride +
               (span.token + row) * args.dq.token_stride;
#pragma unroll
    for (int f = 0; f < D / 8; f += 4) {  // columns 8 f: the halves of the channels follow each other
        if (8 * f >= args.head_dim) break;
        std::uint32_t halves[2][4];  // rows `row` and row + 8
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 sum = sums[(f + i) * 128];
            halves[0][i] = pack_bf16(sum.x * args.scale, sum.y * args.scale);
            halves[1][i] = pack_bf16(sum.z * args.scale, sum.w * args.scale);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            std::uint32_t(&x)[4] = halves[half];
            __nv_bfloat16* out = dq + 8 * half * args.dq.token_stride + 8 * f;
            const bool valid = row + 8 * half < span.valid;
            if (wide) {
                transpose_quad(x, lane);
                if (valid) *reinterpret_cast<uint4*>(out + lane % 4 * 8) = make_uint4(x[0], x[1], x[2], x[3]);
            } else if (valid) {
#pragma unroll
                for (int i = 0; i < 4; ++i) *reinterpret_cast<std::uint32_t*>(out + 8 * i + lane % 4 * 2) = x[i];
            }
        }
    }
}

/// One block of 128 threads per (cut item, dK or dV, 64 keys).
template <int D>
__global__ void __launch_bounds__(128) merge_kernel(const BackwardArgs args) {
    if (static_cast<int>(blockIdx.x) >= args.plan.count[2]) return;
    const Merge merge = args.plan.merges[blockIdx.x];
    const int matrix = blockIdx.y, part = blockIdx.z, lane = threadIdx.x % 32;
    const KeyItem item(args, merge.item);
    const SequenceSpan span(args.batch, item.sequence);
    const Heads& array = matrix == 0 ? args.dk : args.dv;
    const float scale = matrix == 0 ? args.scale : 1.0f;
    std::int64_t tokens[2];
    for (int half = 0; half < 2; ++half) {
        const int key = item.key(args, span, part * 64 + threadIdx.x / 32 * 16 + lane / 4 + 8 * half);
        tokens[half] = key == no_key ? -1 : std::int64_t{span.key_begin} + key;
    }
    auto* out = static_cast<__nv_bfloat16*>(array.data) + item.head * array.head_stride + lane % 4 * 2;
    const std::int64_t pitch = std::int64_t{2} * gridDim.z * (64 * D / 4);  // from slot to slot
    const float4* partials = reinterpret_cast<const float4*>(args.plan.partials) + merge.slot * pitch +
                             (static_cast<std::int64_t>(matrix) * gridDim.z + part) * (64 * D / 4) + threadIdx.x;
    for (int f = 0; f < D / 8 && 8 * f < args.head_dim; ++f) {
        float4 sum = partials[f * 128];
        for (int piece = 1; piece < merge.pieces; ++piece) {
            const float4 other = partials[piece * pitch + f * 128];
            sum.x += other.x, sum.y += other.y, sum.z += other.z, sum.w += other.w;
        }
        if (tokens[0] >= 0) {
            *reinterpret_cast<std::uint32_t*>(out + tokens[0] * array.token_stride + 8 * f) =
                pack_bf16(sum.x * scale, sum.y * scale);
        }
        if (tokens[1] >= 0) {
            *reinterpret_cast<std::uint32_t*>(out + tokens[1] * array.token_stride + 8 * f) =
                pack_bf16(sum.z * scale, sum.w * scale);
        }
    }
}

}  // namespace

cudaError_t launch_merge(const BackwardArgs& args, const GatedBackwardParams& params, int processors) {
    const dim3 grid(static_cast<unsigned>(Plan::most_merges(processors)), 2,
                    static_cast<unsigned>(args.layout.block / 64));
    const auto kernel = params.head_dim <= 64    ? merge_kernel<64>
                        : params.head_dim <= 128 ? merge_kernel<128>
                                                 : merge_kernel<256>;
    kernel<<<grid, 128, 0, params.stream>>>(args);
    return cudaGetLastError();
}

cudaError_t launch_prepare(const BackwardArgs& args, const GatedBackwardParams& params) {
    const dim3 grid(static_cast<unsigned>(args.tiles), static_cast<unsigned>(args.query_heads));
    if (args.tiles == 0) return cudaSuccess;
    const auto kernel = params.head_dim <= 64    ? prepare_kernel<64>
                        : params.head_dim <= 128 ? prepare_kernel<128>
                                                 : prepare_kernel<256>;
    return launch_overlapping(kernel, grid, 256, 0, params.stream, args, params.dout);
}

cudaError_t launch_gate(const BackwardArgs& args, const GatedBackwardParams& params) {
    gate_kernel<<<static_cast<unsigned>(args.query_heads), 256, 0, params.stream>>>(args);
    return cudaGetLastError();
}

cudaError_t launch_finish(const BackwardArgs& args, const GatedBackwardParams& params) {
    if (args.tiles == 0) return cudaSuccess;
    const dim3 grid(static_cast<unsigned>(args.tiles), static_cast<unsigned>(args.query_heads));
    const bool wide = reinterpret_cast<std::uintptr_t>(args.dq.data) % 16 == 0 && args.dq.token_stride % 8 == 0 &&
                      args.dq.head_stride % 8 == 0;
    const auto kernel = params.head_dim <= 64 ? finish_kernel<64> : finish_kernel<128>;
    kernel<<<grid, 128, 0, params.stream>>>(args, wide);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
