/// \file
/// Mean vectors of blocks, and the softmax of their products.

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/profile_args.hpp"
#include "cuda/hopper/selection.cuh"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int mean_threads = 256;

/// One block of one head in one sequence a thread block; a thread adds up 8 channels of every few tokens.
__global__ void __launch_bounds__(mean_threads) means_kernel(const __grid_constant__ MeansArgs args) {
    __shared__ float part[mean_threads * 8];
    dependents_may_launch();
    wait_for_previous_kernel();
    const int sequence = blockIdx.z, member = blockIdx.y;
    const int first = args.offsets[sequence], tokens = args.offsets[sequence + 1] - first;
    if (args.wanted != nullptr && args.wanted[member * args.sequences + sequence] == 0) return;
    const int begin = args.tail > 0 ? max(tokens - args.tail, 0) : blockIdx.x * args.block;
    const int end = args.tail > 0 ? tokens : min(begin + args.block, tokens);
    if (begin >= end) return;
    const int width = args.head_dim / 8, rows = mean_threads / width;  // threads of a token, tokens at a time
    const int row = threadIdx.x / width, piece = threadIdx.x % width;
    float sum[8] = {};
    if (row < rows) {
        const auto* from = static_cast<const __nv_bfloat16*>(args.array.data) +
                           static_cast<std::int64_t>(args.head[member]) * args.array.head_stride + piece * 8;
#pragma unroll 8
        for (int t = begin + row; t < end; t += rows) {
            const uint4 eight = *reinterpret_cast<const uint4*>(from + (first + t) * args.array.token_stride);
            const std::uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum[2 * i] += __uint_as_float(pairs[i] << 16);
                sum[2 * i + 1] += __uint_as_float(pairs[i] & 0xffff0000u);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) part[row * args.head_dim + piece * 8 + i] = sum[i];
    }
    __syncthreads();
    const std::int64_t room = args.tail > 0 ? args.sequences : args.room;
    const std::int64_t place = args.tail > 0 ? sequence : first_block(first, args.block, sequence) + blockIdx.x;
    float* to = args.out + (member * room + place) * args.head_dim;
    const float scale = args.scale / static_cast<float>(end - begin);
    for (int c = threadIdx.x; c < args.head_dim; c += mean_threads) {
        float total = 0;
        for (int r = 0; r < rows; ++r) total += part[r * args.head_dim + c];
        to[c] = total * scale;
    }
}

constexpr int pair_tile = 64;
constexpr int pair_depth = 16;
constexpr int pair_threads = 256;

/// Products of mean queries and mean keys: 64 x 64 of one head in one sequence a thread block, 4 x 4 a thread.
__global__ void __launch_bounds__(pair_threads) pair_scores(const __grid_constant__ FlexArgs args, int row_tiles) {
    __shared__ float a[pair_depth][pair_tile + 4], b[pair_depth][pair_tile + 4];
    dependents_may_launch();
    wait_for_previous_kernel();
    const int sequence = blockIdx.z, member = blockIdx.y / row_tiles;
    if (args.aware[member * args.batch.sequences + sequence] == 0) return;
    const SequenceSpan span(args.batch, sequence);
    const int rows = (span.queries + args.block - 1) / args.block, blocks = (span.keys + args.block - 1) / args.block;
    const int first_row = blockIdx.y % row_tiles * pair_tile, first_column = blockIdx.x * pair_tile;
    if (first_row >= rows || first_column >= blocks) return;
    if (first_column >= RowSpan(args.block, true, min(first_row + pair_tile, rows) - 1, span.queries, span.keys).end)
        return;
    const int d = args.head_dim;
    const std::int64_t row_place =
        static_cast<std::int64_t>(member) * args.row_room + first_block(span.query_begin, args.block, sequence);
    const float* queries = args.mean_queries + (row_place + first_row) * d;
    const float* keys = args.mean_keys + (static_cast<std::int64_t>(args.heads.key_head[member]) * args.block_room +
                                          first_block(span.key_begin, args.block, sequence) + first_column) *
                                             d;
    const int load_row = threadIdx.x / 4, load_piece = threadIdx.x % 4 * 4;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4] = {};
    for (int depth = 0; depth < d; depth += pair_depth) {
        const bool inside = depth + load_piece < d;  // d is a multiple of 8
        const float4 zero = make_float4(0, 0, 0, 0);
        const float4 x = inside && first_row + load_row < rows
                             ? *reinterpret_cast<const float4*>(queries + static_cast<std::int64_t>(load_row) * d +
                                                                depth + load_piece)
                             : zero;
        const float4 y =
            inside && first_column + load_row < blocks
                ? *reinterpret_cast<const float4*>(keys + static_cast<std::int64_t>(load_row) * d + depth + load_piece)
                : zero;
        __syncthreads();
        a[load_piece][load_row] = x.x, a[load_piece + 1][load_row] = x.y, a[load_piece + 2][load_row] = x.z,
        a[load_piece + 3][load_row] = x.w;
        b[load_piece][load_row] = y.x, b[load_piece + 1][load_row] = y.y, b[load_piece + 2][load_row] = y.z,
        b[load_piece + 3][load_row] = y.w;
        __syncthreads();
#pragma unroll
        for (int c = 0; c < pair_depth; ++c) {
            const float4 left = *reinterpret_cast<const float4*>(&a[c][ty * 4]),
                         right = *reinterpret_cast<const float4*>(&b[c][tx * 4]);
            const float l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(l[i], r[j], sum[i][j]);
            }
        }
    }
    float* out = args.pairs + row_place * args.pair_stride;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int row = first_row + ty * 4 + i, column = first_column + tx * 4 + j;
            if (row < rows && column < blocks) out[static_cast<std::int64_t>(row) * blocks + column] = sum[i][j];
        }
    }
}

/// The softmax of a row of products over the blocks that it sees, 0 behind them; a warp a row.
__global__ void __launch_bounds__(pair_threads) pair_softmax(const __grid_constant__ FlexArgs args) {
    dependents_may_launch();
    wait_for_previous_kernel();
    const int sequence = blockIdx.z, member = blockIdx.y, lane = threadIdx.x % 32;
    if (args.aware[member * args.batch.sequences + sequence] == 0) return;
    const SequenceSpan span(args.batch, sequence);
    const int row = blockIdx.x * (pair_threads / 32) + threadIdx.x / 32;
    if (row * args.block >= span.queries) return;
    const int blocks = (span.keys + args.block - 1) / args.block;
    const int end = RowSpan(args.block, true, row, span.queries, span.keys).end;
    float* share =
        args.pairs +
        (static_cast<std::int64_t>(member) * args.row_room + first_block(span.query_begin, args.block, sequence)) *
            args.pair_stride +
        static_cast<std::int64_t>(row) * blocks;
    float top = -INFINITY;
    for (int J = lane; J < end; J += 32) top = fmaxf(top, share[J]);
    for (int distance = 16; distance > 0; distance /= 2) top = fmaxf(top, __shfl_xor_sync(every_lane, top, distance));
    double total = 0;
    for (int J = lane; J < end; J += 32) {
        const float e = expf(share[J] - top);
        share[J] = e;
        total += static_cast<double>(e);
    }
    for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(every_lane, total, distance);
    const float scale = static_cast<float>(1 / total);
    for (int J = lane; J < blocks; J += 32) share[J] = J < end ? share[J] * scale : 0.0f;
}

}  // namespace

cudaError_t launch_means(const MeansArgs& args, int longest, cudaStream_t stream) {
    const int blocks = args.tail > 0 ? 1 : (longest + args.block - 1) / args.block;
    return launch_overlapping(means_kernel, dim3(blocks, args.heads, args.sequences), mean_threads, 0, stream, args);
}

cudaError_t launch_pair_shares(const FlexArgs& args, int longest_rows, int longest_blocks, cudaStream_t stream) {
    const int row_tiles = (longest_rows + pair_tile - 1) / pair_tile;
    const dim3 tiles((longest_blocks + pair_tile - 1) / pair_tile, row_tiles * args.heads.count, args.batch.sequences);
    const cudaError_t error = launch_overlapping(pair_scores, tiles, pair_threads, 0, stream, args, row_tiles);
    if (error != cudaSuccess) return error;
    constexpr int warps = pair_threads / 32;
    const dim3 grid((longest_rows + warps - 1) / warps, args.heads.count, args.batch.sequences);
    return launch_overlapping(pair_softmax, grid, pair_threads, 0, stream, args);
}

}  // namespace sparseattn::cuda::hopper
