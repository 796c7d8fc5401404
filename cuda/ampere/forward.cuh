#pragma once
/// \file
/// Block-sparse attention forward with the matrix product of a warp: a thread block has one tile of queries of one
/// head, each warp 16 or 32 of them. Keys and values of a step have one place each in shared memory: the copy of the
/// values runs under the scores and their softmax, that of the next keys under the product with the values.
/// Probabilities stay in registers.

#include <cmath>

#include "cuda/ampere/forward_args.hpp"
#include "cuda/ampere/softmax.cuh"
#include "cuda/ampere/walk.cuh"

namespace sparseattn::cuda::ampere {

template <int HeadDim, int Queries>
struct ForwardShape {
    static constexpr int head_dim = HeadDim;
    static constexpr int queries = Queries;
    static constexpr int tiles = HeadDim <= 128 ? 2 : 1;   // of 16 queries, of a warp
    static constexpr int keys = HeadDim <= 128 ? 64 : 32;  // of a step: as many as leave registers for the sums
    static constexpr int threads = 32 * Queries / (16 * tiles);
    static constexpr bool held = HeadDim <= 32;  // queries stay in registers
    static constexpr int query_bytes = Queries * TileMap<HeadDim>::row_bytes;
    static constexpr int tile_bytes = keys * TileMap<HeadDim>::row_bytes;
    static constexpr int bytes = query_bytes + 2 * tile_bytes;
    static_assert(bytes <= 99 * 1024);  // what every device since 8.0 has
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
    constexpr int D = Shape::head_dim, N = Shape::keys, Tiles = Shape::tiles;
    extern __shared__ __align__(128) unsigned char raw[];
    const std::uint32_t shared = shared_address(raw), keys = shared + Shape::query_bytes;
    const std::uint32_t values = keys + Shape::tile_bytes;
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
    load_tile<D, Shape::queries, Shape::threads>(shared, args.query, head, token, valid);
    KeyTile next = walk.next();
    const auto load = [&](std::uint32_t to, const Heads& array, const KeyTile& tile) {
        if (tile.count > 0) load_keys<D, N, Shape::threads>(to, array, tile, span.key_begin, key_head);
        copy_commit();
    };
    load(keys, args.key, next);
    const int warp_first = 16 * Tiles * warp;
    const auto query = left_address<D>(shared, warp_first, lane);
    std::uint32_t held[Tiles][Shape::held ? D / 16 : 1][4];
    if constexpr (Shape::held) {
        copy_wait<0>();
        __syncthreads();
        load_fragments<D>(held, query);
    }

    const TokenRule& rule = walk.rule();
    const int thread_row = first + warp_first + lane / 4;
    float o[Tiles][D / 2];
    clear(o);
    RowState state[Tiles];
    while (next.count > 0) {
        const KeyTile tile = next;
        copy_wait<0>();
        __syncthreads();  // all have their share of the keys and are done with the values before
        load(values, args.value, tile);
        next = walk.next();
        float s[Tiles][N / 2];
        std::uint32_t p[Tiles][N / 4];
        const auto left = [&](std::uint32_t(&a)[4], int t, int k) {
            if constexpr (Shape::held) {
#pragma unroll
                for (int i = 0; i < 4; ++i) a[i] = held[t][k][i];
            } else {
                load_matrices(a, query.at(k) + t * 16 * TileMap<D>::row_bytes);
            }
        };
        multiply_rows<D, N, Shape::held ? D / 16 : 4>(s, left, keys, lane);
        const bool masked =
            tile.singles != nullptr || !rule.all_visible(first, first + valid, tile.begin, tile.begin + N);
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
            if (masked) {
                mask_scores<N>(s[t], rule, thread_row + 16 * t, lane, [&](int column) { return tile.key(column); });
            }
            float shrink[2];
            online_softmax(s[t], state[t], args.scale_log2, shrink);
            rescale(o[t], shrink);
            pack(p[t], s[t]);
        }
        copy_wait<0>();
        __syncthreads();  // all have their share of the values and are done with the keys
        load(keys, args.key, next);
        accumulate_rows<D, D, N>(o, p, values, 0, lane);
    }
    copy_wait<0>();
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
        store_rows<Shape>(args, o[t], state[t], head, token, warp_first + 16 * t, valid, lane);
    }
}

template <int HeadDim, int Queries>
cudaError_t launch_forward(const ForwardParams& params) {
    using Shape = ForwardShape<HeadDim, Queries>;
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
