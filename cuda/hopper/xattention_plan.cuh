#pragma once
/// \file
/// The list of score tiles, made by one thread block.

#include "cuda/hopper/xattention_args.hpp"

namespace sparseattn::cuda::hopper {

/// Inclusive sum over the thread block.
__device__ __forceinline__ int plan_scan(int value, int* warp_sum) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, value, distance);
        if (lane >= distance) value += other;
    }
    __syncthreads();  // of the call before
    if (lane == 31) warp_sum[warp] = value;
    __syncthreads();
    for (int w = 0; w < warp; ++w) value += warp_sum[w];
    return value;
}

/// Writes begins[0 .. count] so that begins[i + 1] - begins[i] = size(i).
template <int threads, class Size, class Store>
__device__ __forceinline__ void scan_sizes(int count, const Size& size, const Store& store, int* warp_sum) {
    __shared__ int carry;
    if (threadIdx.x == 0) carry = 0;
    for (int first = 0; first < count; first += threads) {
        const int i = first + threadIdx.x;
        const int own = i < count ? size(i) : 0;
        const int end = plan_scan(own, warp_sum);
        if (i < count) store(i, carry + end - own);
        __syncthreads();
        if (threadIdx.x == threads - 1) carry += end;
    }
    __syncthreads();
    if (threadIdx.x == 0) store(count, carry);
    __syncthreads();
}

/// The last of begins[0 .. count) that is not above `value`.
template <class Begin>
__device__ __forceinline__ int find_last(int count, int value, const Begin& begin) {
    int low = 0, high = count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (begin(middle) <= value ? low : high) = middle;
    }
    return low;
}

/// By one thread block of `threads`; the plan's arrays may lie in shared memory.
template <int threads>
__device__ __forceinline__ void build_plan(const XAttentionShape& shape, const XAttentionPlan& plan, int* warp_sum) {
    const Batch& batch = shape.batch;
    const auto queries_of = [&](int s) { return batch.query_offsets[s + 1] - batch.query_offsets[s]; };
    const auto keys_of = [&](int s) { return batch.key_offsets[s + 1] - batch.key_offsets[s]; };
    scan_sizes<threads>(
        batch.sequences,
        [&](int s) {
            const int rows = (queries_of(s) + shape.stride - 1) / shape.stride;
            return (rows + strided_tile - 1) / strided_tile;
        },
        [&](int s, int begin) { plan.row_tile_begin[s] = begin; }, warp_sum);
    const auto tiles_of = [&](int tile) {
        const int s = find_last(batch.sequences, tile, [&](int i) { return plan.row_tile_begin[i]; });
        RowTile& rows = plan.row_tiles[tile];
        rows.sequence = s;
        rows.first = (tile - plan.row_tile_begin[s]) * strided_tile;
        const TileCount count = count_tiles(shape, rows.first, queries_of(s), keys_of(s));
        rows.half = count.halves;
        return rows.columns = count.tiles;
    };
    const int count = plan.row_tile_count;
    scan_sizes<threads>(
        count, tiles_of,
        [&](int tile, int begin) {
            if (tile < count) plan.row_tiles[tile].begin = begin;
        },
        warp_sum);
    scan_sizes<threads>(
        count, [&](int tile) { return plan.row_tiles[tile].half; },
        [&](int tile, int begin) {
            if (tile < count) plan.row_tiles[tile].half_begin = begin;
        },
        warp_sum);
    // Within a band of row tiles all whole tiles of column 0, then all of column 1, ...
    for (int number = threadIdx.x; number < plan.tile_count; number += threads) {
        const int tile = find_last(count, number, [&](int i) { return plan.row_tiles[i].begin; });
        const RowTile& rows = plan.row_tiles[tile];
        const int column = number - rows.begin, first = tile / band * band, last = min(first + band, count);
        if (column + 1 == rows.columns && rows.half == 1) {
            plan.half_places()[rows.half_begin] = {tile, column};
            continue;
        }
        int place = plan.row_tiles[first].begin - plan.row_tiles[first].half_begin;
        for (int other = first; other < last; ++other) {
            const int wholes = plan.row_tiles[other].columns - plan.row_tiles[other].half;
            place += min(wholes, column) + (other < tile && wholes > column ? 1 : 0);
        }
        plan.places[place] = {tile, column};
    }
}

}  // namespace sparseattn::cuda::hopper
