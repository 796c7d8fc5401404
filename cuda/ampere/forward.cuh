#pragma once
/// \file
/// Block-sparse attention forward with the matrix product of a warp: a thread block has one tile of queries of one
/// head, each warp 16 of them; keys and values pass through a ring of two steps in shared memory, filled by
/// asynchronous copies one step ahead; probabilities stay in registers.

#include <cmath>

#include "cuda/ampere/forward_args.hpp"
#include "cuda/ampere/softmax.cuh"
#include "cuda/ampere/walk.cuh"

namespace sparseattn::cuda::ampere {

template <int HeadDim, int Warps>
struct ForwardShape {
    static constexpr int head_dim = HeadDim;
    static constexpr int queries = 16 * Warps;
    static constexpr int keys = step_keys(HeadDim);
    static constexpr int threads = 32 * Warps;
    static constexpr bool held = HeadDim <= 128;  // queries stay in registers and pass through the ring on their way
    static constexpr int tile_bytes = keys * TileMap<HeadDim>::row_bytes;
    static constexpr int stage_bytes = 2 * tile_bytes;  // keys, values
    static constexpr int query_bytes = queries * TileMap<HeadDim>::row_bytes;
    static constexpr int query_at = held ? stage_bytes : 2 * stage_bytes;  // the second stage is filled later
    static constexpr int bytes = held ? 2 * stage_bytes : 2 * stage_bytes + query_bytes;
    static_assert(!held || query_bytes <= stage_bytes);
};

struct ForwardArgs {
    Batch batch;
    Branch branch;
    Heads query, key, value, out;
    Rows lse;
    const float* gate;  // [Hq] or null
    float closed;       // heads with this gate have empty lists
    int group;          // query heads per key head
    float scale, scale_log2;
};

template <class Shape>
__device__ __forceinline__ void load_keys(const ForwardArgs& args, const KeyTile& tile, std::uint32_t stage,
                                          int key_begin, int key_head) {
    const auto token = [&](int row) {
        return row < tile.count ? static_cast<std::int64_t>(key_begin) + tile.key(row) : std::int64_t{-1};
    };
    load_tile<Shape::head_dim, Shape::keys, Shape::threads>(stage, args.key, key_head, token);
    load_tile<Shape::head_dim, Shape::keys, Shape::threads>(stage + Shape::tile_bytes, args.value, key_head, token);
}

/// Writes out and lse of a warp's queries [first, first + 16) of the tile.
template <class Shape>
__device__ __forceinline__ void store_rows(const ForwardArgs& args, const float (&o)[Shape::head_dim / 2],
                                           RowState& state, int head, std::int64_t token, int first, int valid,
                                           int lane) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float& sum = state.sum[half];
        sum += __shfl_xor_sync(all_lanes, sum, 1);
        sum += __shfl_xor_sync(all_lanes, sum, 2);
        factor[half] = sum > 0 ? 1.0f / sum : 0.0f;
        const int row = first + lane / 4 + 8 * half;
        if (lane % 4 == 0 && row < valid) {
            args.lse.data[(token + row) * args.lse.token_stride + head * args.lse.head_stride] =
                sum > 0 ? fmaf(state.maximum[half], args.scale, logf(sum)) : -INFINITY;
        }
    }
    store_sums<Shape::head_dim>(o, factor, args.out, head, token, first, valid, 0, lane);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1) forward_kernel(const __grid_constant__ ForwardArgs args) {
    constexpr int D = Shape::head_dim, N = Shape::keys;
    extern __shared__ __align__(128) unsigned char raw[];
    const std::uint32_t shared = shared_address(raw);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, key_head = head / args.group;
    const Layout& layout = args.branch.layout;
    // last rows first: those of a causal layout are the longest
    const int parts = layout.block / Shape::queries, number = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    const int row = number / parts, sequence = layout.row_sequence[row];
    const SequenceSpan span(args.batch, sequence);
    const int first = (row - layout.row_begin[sequence]) * layout.block + number % parts * Shape::queries;
    const int valid = min(Shape::queries, span.queries - first);
    if (valid <= 0) return;
    const std::int64_t token = span.query_begin + first;

    const unsigned open = args.gate != nullptr && args.gate[head] == args.closed ? 0 : 1;
    KeyWalk<N> walk(&args.branch, open, span, head, row, first, first + valid);
    load_tile<D, Shape::queries, Shape::threads>(shared + Shape::query_at, args.query, head,
                                                 [&](int r) { return r < valid ? token + r : std::int64_t{-1}; });
    copy_commit();
    KeyTile next = walk.next();
    if (next.count > 0) load_keys<Shape>(args, next, shared, span.key_begin, key_head);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const auto query = left_address<D>(shared + Shape::query_at, 16 * warp, lane);
    std::uint32_t held[Shape::held ? D / 16 : 1][4];
    if constexpr (Shape::held) {
#pragma unroll
        for (int k = 0; k < D / 16; ++k) load_matrices(held[k], query.at(k));
    }

    const TokenRule rule{span.queries, span.keys, layout.causal, layout.windows[head]};
    const int thread_row = first + 16 * warp + lane / 4;
    float o[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] = 0;
    RowState state;
    for (int step = 0; next.count > 0; ++step) {
        const KeyTile tile = next;
        const std::uint32_t keys = shared + step % 2 * Shape::stage_bytes;
        next = walk.next();
        copy_wait<0>();
        __syncthreads();  // all have their share of this step and are done with the one before
        if (next.count > 0) {
            load_keys<Shape>(args, next, shared + (step + 1) % 2 * Shape::stage_bytes, span.key_begin, key_head);
        }
        copy_commit();
        float s[N / 2], shrink[2];
        std::uint32_t p[N / 4];
        const auto left = [&](std::uint32_t(&a)[4], int k) {
            if constexpr (Shape::held) {
#pragma unroll
                for (int i = 0; i < 4; ++i) a[i] = held[k][i];
            } else {
                load_matrices(a, query.at(k));
            }
        };
        multiply_rows<D, N, Shape::held ? D / 16 : 4>(s, left, keys, lane);
        if (tile.singles != nullptr || !rule.all_visible(first, first + valid, tile.begin, tile.begin + N)) {
            mask_scores<N>(s, rule, thread_row, lane, [&](int column) { return tile.key(column); });
        }
        online_softmax(s, state, args.scale_log2, shrink);
        rescale(o, shrink);
        pack(p, s);
        accumulate_rows<D, D, N>(o, p, keys + Shape::tile_bytes, 0, lane);
    }
    copy_wait<0>();
    store_rows<Shape>(args, o, state, head, token, 16 * warp, valid, lane);
}

template <int HeadDim, int Warps>
cudaError_t launch_forward(const ForwardParams& params) {
    using Shape = ForwardShape<HeadDim, Warps>;
    const ForwardArgs args{params.batch,  {params.layout, {}, nullptr},
                           params.query,  params.key,
                           params.value,  params.out,
                           params.lse,    params.gate,
                           params.closed, params.query_heads / params.key_heads,
                           params.scale,  params.scale * 1.4426950408889634f};
    const cudaError_t error =
        cudaFuncSetAttribute(forward_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::bytes);
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>(params.layout.rows * (params.layout.block / Shape::queries)),
                    static_cast<unsigned>(params.query_heads));
    forward_kernel<Shape><<<grid, Shape::threads, Shape::bytes, params.stream>>>(args);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::ampere
