#pragma once
/// \file
/// Block-sparse attention backward with the matrix product of a warp, without atomics. Two passes of one shape: a
/// thread block owns 64 rows (keys in the key pass, queries in the query pass), whose two matrices stay in shared
/// memory, and the rows of the other side pass through a ring of two steps. A warp recomputes the scores of 16 of its
/// rows, so that P and dS are left sides of products as they lie in registers.

#include <cmath>

#include "cuda/ampere/backward_args.hpp"
#include "cuda/ampere/softmax.cuh"
#include "cuda/ampere/walk.cuh"

namespace sparseattn::cuda::ampere {

template <int HeadDim, bool KeyPass>
struct BackwardShape {
    static constexpr int head_dim = HeadDim;
    static constexpr int own = 64;
    // as many as leave registers for the sums and fit into the 99 KiB that every device since 8.0 has
    static constexpr int step = HeadDim <= 64 ? 64 : HeadDim <= 128 ? 32 : 16;
    // warps that share rows, each with its part of the channels of dK and dV
    static constexpr int parts = KeyPass && HeadDim > 128 ? 2 : 1;
    static constexpr int channels = HeadDim / parts;
    static constexpr int threads = own * 2 * parts;
    static constexpr int own_bytes = own * TileMap<HeadDim>::row_bytes;
    static constexpr int step_bytes = step * TileMap<HeadDim>::row_bytes;
    static constexpr int rows_at = 2 * step_bytes;  // in a stage of the key pass: the queries' lse and delta
    static constexpr int stage_bytes = 2 * step_bytes + (KeyPass ? step * static_cast<int>(sizeof(float2)) : 0);
    static constexpr int bytes = 2 * own_bytes + 2 * stage_bytes;
    static_assert(bytes <= 99 * 1024 && stage_bytes % 128 == 0);
};

/// scores = (16 own rows) (a step of the other side)^T.
template <class Shape>
__device__ __forceinline__ void multiply_own(float (&scores)[1][Shape::step / 2], std::uint32_t own, std::uint32_t step,
                                             int first, int lane) {
    const auto address = left_address<Shape::head_dim>(own, first, lane);
    multiply_rows<Shape::head_dim, Shape::step, (Shape::head_dim > 96 ? 4 : Shape::head_dim / 16)>(
        scores, [&](std::uint32_t(&a)[4], int, int k) { load_matrices(a, address.at(k)); }, step, lane);
}

// --- dQ ---------------------------------------------------------------------------------------------------------

/// What a thread keeps of its two queries in the branch that is being walked.
struct OwnRows {
    int branch = -1;
    float lse[2], delta[2];
    TokenRule rule;

    __device__ __forceinline__ void enter(const BackwardArgs& args, int to, const SequenceSpan& span, int head,
                                          int row) {
        branch = to;
        const Branch& from = args.branch[to];
        rule = {span.queries, span.keys, from.layout.causal, from.layout.windows[head]};
        const float2* rows = from.rows + static_cast<std::int64_t>(head) * args.batch.queries + span.query_begin;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const bool valid = row + 8 * half < span.queries;
            const float2 value = valid ? rows[row + 8 * half] : make_float2(INFINITY, 0);
            lse[half] = value.x;
            delta[half] = value.y;
        }
    }
};

/// One thread block a tile of 64 queries (x) and head (y).
template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1) query_pass_kernel(const __grid_constant__ BackwardArgs args) {
    constexpr int D = Shape::head_dim, N = Shape::step;
    extern __shared__ __align__(128) unsigned char raw[];
    const std::uint32_t queries = shared_address(raw), douts = queries + Shape::own_bytes;
    const std::uint32_t ring = douts + Shape::own_bytes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int head = blockIdx.y, key_head = head / args.group;
    // last rows first: those of a causal layout are the longest
    const Layout& layout = args.branch[0].layout;
    const int parts = layout.block / Shape::own, number = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    const int row = number / parts, sequence = layout.row_sequence[row];
    const SequenceSpan span(args.batch, sequence);
    const int first = (row - layout.row_begin[sequence]) * layout.block + number % parts * Shape::own;
    const int valid = min(Shape::own, span.queries - first);
    if (valid <= 0) return;
    const std::int64_t token = span.query_begin + first;

    unsigned open = (1u << args.branches) - 1;
    if (args.gate != nullptr) open = (args.gate[head] != 0.0f ? 1u : 0u) | (args.gate[head] != 1.0f ? 2u : 0u);
    KeyWalk<N> walk(args.branch, open, span, head, row, first, first + valid);
    load_tile<D, Shape::own, Shape::threads>(queries, args.query, head, token, valid);
    load_tile<D, Shape::own, Shape::threads>(douts, args.dout, head, token, valid);
    KeyTile next = walk.next();
    const auto load = [&](std::uint32_t to, const KeyTile& tile) {
        if (tile.count > 0) {
            load_keys<D, N, Shape::threads>(to, args.key, tile, span.key_begin, key_head);
            load_keys<D, N, Shape::threads>(to + Shape::step_bytes, args.value, tile, span.key_begin, key_head);
        }
        copy_commit();
    };
    load(ring, next);

    OwnRows rows;
    const int thread_row = first + 16 * warp + lane / 4;
    float dq[1][D / 2];
    clear(dq);
    for (int stage = 0; next.count > 0; stage ^= 1) {
        const KeyTile tile = next;
        const std::uint32_t keys = ring + stage * Shape::stage_bytes, values = keys + Shape::step_bytes;
        next = walk.next();
        if (tile.branch != rows.branch) rows.enter(args, tile.branch, span, head, thread_row);
        copy_wait<0>();
        __syncthreads();  // all have their share of this step and are done with the one before
        load(ring + (stage ^ 1) * Shape::stage_bytes, next);
        float s[1][N / 2], dp[1][N / 2];
        std::uint32_t ds[1][N / 4];
        multiply_own<Shape>(s, queries, keys, 16 * warp, lane);
        if (tile.singles != nullptr || !rows.rule.all_visible(first, first + valid, tile.begin, tile.begin + N)) {
            mask_scores<N>(s[0], rows.rule, thread_row, lane, [&](int column) { return tile.key(column); });
        }
        multiply_own<Shape>(dp, douts, values, 16 * warp, lane);
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float p = exp2_fast(fmaf(s[0][i], args.scale_log2, -rows.lse[i / 2 % 2]));
            dp[0][i] = p * (dp[0][i] - rows.delta[i / 2 % 2]);
        }
        pack(ds[0], dp[0]);
        accumulate_rows<D, D, N>(dq, ds, keys, 0, lane);
    }
    copy_wait<0>();
    const float factor[2] = {args.scale, args.scale};
    store_sums<D>(dq[0], factor, args.dq, head, token, 16 * warp, valid, 0, lane);
}

// --- dK, dV -----------------------------------------------------------------------------------------------------

template <class Shape>
__device__ __forceinline__ void load_queries(const BackwardArgs& args, const QueryTile& tile, std::uint32_t stage,
                                             const SequenceSpan& span) {
    const std::int64_t token = static_cast<std::int64_t>(span.query_begin) + tile.begin;
    const int count = min(Shape::step, span.queries - tile.begin);
    load_tile<Shape::head_dim, Shape::step, Shape::threads>(stage, args.query, tile.head, token, count);
    load_tile<Shape::head_dim, Shape::step, Shape::threads>(stage + Shape::step_bytes, args.dout, tile.head, token,
                                                            count);
    if (threadIdx.x < Shape::step) {
        const int row = static_cast<int>(threadIdx.x);
        const float2* rows = args.branch[tile.branch].rows + static_cast<std::int64_t>(tile.head) * args.batch.queries;
        copy_8(stage + Shape::rows_at + row * static_cast<int>(sizeof(float2)), rows + (row < count ? token + row : 0),
               row < count);
    }
}

/// Hides pairs of the transposed scores: rows are keys `key` and `key` + 8, columns the queries of the tile.
template <int N>
__device__ __forceinline__ void mask_transposed(float (&s)[N / 2], const TokenRule& rule, const QueryTile& tile,
                                                int key, int lane) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
        const int query = tile.begin + 8 * (i / 2) + 2 * (lane % 4) + i % 2;
        const int end = rule.key_end(query), begin = rule.local_begin(query);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int j = key + 8 * half;
            float& score = s[4 * (i / 2) + 2 * half + i % 2];
            if (!((tile.keys >> half & 1) != 0 && j < end && (j < rule.window.sink || j >= begin))) score = -INFINITY;
        }
    }
}

/// One thread block a tile of 64 keys (x) and key head (y).
template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1) key_pass_kernel(const __grid_constant__ BackwardArgs args) {
    constexpr int D = Shape::head_dim, N = Shape::step, C = Shape::channels;
    extern __shared__ __align__(128) unsigned char raw[];
    const std::uint32_t keys = shared_address(raw), values = keys + Shape::own_bytes;
    const std::uint32_t ring = values + Shape::own_bytes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int own_first = warp % 4 * 16, channel = warp / 4 * C;
    const Layout& layout = args.branch[0].layout;
    const int tiles = layout.block / Shape::own, block = static_cast<int>(blockIdx.x) / tiles;
    const int sequence = layout.key_block_sequence[block], key_head = blockIdx.y;
    const SequenceSpan span(args.batch, sequence);
    const int first =
        (block - layout.key_block_begin[sequence]) * layout.block + static_cast<int>(blockIdx.x) % tiles * Shape::own;
    const int valid = min(Shape::own, span.keys - first);
    if (valid <= 0) return;
    const std::int64_t token = span.key_begin + first;

    QueryWalk<N> walk(args, span, key_head, block, first, first + valid);
    load_tile<D, Shape::own, Shape::threads>(keys, args.key, key_head, token, valid);
    load_tile<D, Shape::own, Shape::threads>(values, args.value, key_head, token, valid);
    QueryTile next = walk.next();
    if (next.begin >= 0) load_queries<Shape>(args, next, ring, span);
    copy_commit();

    float dk[1][C / 2], dv[1][C / 2];
    clear(dk);
    clear(dv);
    for (int stage = 0; next.begin >= 0; stage ^= 1) {
        const QueryTile tile = next;
        const std::uint32_t at = ring + stage * Shape::stage_bytes, queries = at, douts = at + Shape::step_bytes;
        const auto* rows = reinterpret_cast<const float4*>(raw + (at - keys) + Shape::rows_at) + lane % 4;
        next = walk.next();
        copy_wait<0>();
        __syncthreads();  // all have their share of this step and are done with the one before
        if (next.begin >= 0) load_queries<Shape>(args, next, ring + (stage ^ 1) * Shape::stage_bytes, span);
        copy_commit();
        float s[1][N / 2], dp[1][N / 2];
        std::uint32_t packed[1][N / 4];
        multiply_own<Shape>(s, keys, queries, own_first, lane);
        const Layout& lists = args.branch[tile.branch].layout;
        const TokenRule rule{span.queries, span.keys, lists.causal, lists.windows[tile.head]};
        if (tile.keys != QueryTile::all_keys ||
            !rule.all_visible(tile.begin, min(tile.begin + N, span.queries), first, first + valid)) {
            mask_transposed<N>(s[0], rule, tile, first + own_first + lane / 4, lane);
        }
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
            const float4 pair = rows[4 * n];  // lse and delta of two queries
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& p = s[0][4 * n + i];
                p = exp2_fast(fmaf(p, args.scale_log2, i % 2 == 0 ? -pair.x : -pair.z));
            }
        }
        pack(packed[0], s[0]);
        accumulate_rows<D, C, N>(dv, packed, douts, channel, lane);
        multiply_own<Shape>(dp, values, douts, own_first, lane);
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
            const float4 pair = rows[4 * n];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& ds = dp[0][4 * n + i];
                ds = s[0][4 * n + i] * (ds - (i % 2 == 0 ? pair.y : pair.w));
            }
        }
        pack(packed[0], dp[0]);
        accumulate_rows<D, C, N>(dk, packed, queries, channel, lane);
    }
    copy_wait<0>();
    const float scale[2] = {args.scale, args.scale}, one[2] = {1, 1};
    store_sums<C>(dk[0], scale, args.dk, key_head, token, own_first, valid, channel, lane);
    store_sums<C>(dv[0], one, args.dv, key_head, token, own_first, valid, channel, lane);
}

// --- Launches ---------------------------------------------------------------------------------------------------

template <int HeadDim>
cudaError_t launch_key_pass(const BackwardArgs& args, cudaStream_t stream) {
    using Shape = BackwardShape<HeadDim, true>;
    const Layout& layout = args.branch[0].layout;
    if (layout.key_blocks == 0) return cudaSuccess;
    const auto kernel = key_pass_kernel<Shape>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::bytes);
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>(layout.key_blocks * (layout.block / Shape::own)),
                    static_cast<unsigned>(args.key_heads));
    kernel<<<grid, Shape::threads, Shape::bytes, stream>>>(args);
    return cudaGetLastError();
}

template <int HeadDim>
cudaError_t launch_query_pass(const BackwardArgs& args, cudaStream_t stream) {
    using Shape = BackwardShape<HeadDim, false>;
    const Layout& layout = args.branch[0].layout;
    if (layout.rows == 0) return cudaSuccess;
    const auto kernel = query_pass_kernel<Shape>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::bytes);
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>(layout.rows * (layout.block / Shape::own)),
                    static_cast<unsigned>(args.query_heads));
    kernel<<<grid, Shape::threads, Shape::bytes, stream>>>(args);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::ampere
