#pragma once
/// \file
/// From the number of entries of each row to offsets and entries, in one launch.

#include <algorithm>

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/ptx.cuh"

namespace sparseattn::cuda::hopper {

inline constexpr int fill_threads = 256;
inline constexpr int fill_blocks = 264;  // two a multiprocessor

/// Rows in runs, a thread block each, which adds up the counts before its run itself: a scan without a second launch.
/// Rows from `mask_rows` on are empty. fill(row, offset, lane) writes a row, a warp each.
template <class Fill>
__global__ void __launch_bounds__(fill_threads)
    fill_rows(const __grid_constant__ Fill fill, const std::int32_t* counts, std::int64_t rows, std::int64_t mask_rows,
              std::int64_t share, std::int64_t* offsets) {
    constexpr int warps = fill_threads / 32;
    __shared__ std::int64_t warp_sum[warps], row_begin[fill_threads];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t begin = blockIdx.x * share, end = min(begin + share, rows);
    dependents_may_launch();
    wait_for_previous_kernel();
    std::int64_t before = 0;
    const std::int64_t past = min(begin, mask_rows);
    const auto* fours = reinterpret_cast<const int4*>(counts);
#pragma unroll 4
    for (std::int64_t i = threadIdx.x; i < past / 4; i += fill_threads) {
        const int4 four = fours[i];
        before += std::int64_t{four.x} + four.y + four.z + four.w;
    }
    if (threadIdx.x < past % 4) before += counts[past / 4 * 4 + threadIdx.x];
    for (int distance = 16; distance > 0; distance /= 2) before += __shfl_xor_sync(0xffffffffu, before, distance);
    if (lane == 0) warp_sum[warp] = before;
    __syncthreads();
    before = 0;
    for (int w = 0; w < warps; ++w) before += warp_sum[w];
    if (blockIdx.x == 0 && threadIdx.x == 0) offsets[0] = 0;
    for (std::int64_t base = begin; base < end; base += fill_threads) {
        const std::int64_t row = base + threadIdx.x;
        const std::int64_t own = row < min(end, mask_rows) ? counts[row] : 0;
        std::int64_t sum = own;
        for (int distance = 1; distance < 32; distance *= 2) {
            const std::int64_t other = __shfl_up_sync(0xffffffffu, sum, distance);
            if (lane >= distance) sum += other;
        }
        __syncthreads();
        if (lane == 31) warp_sum[warp] = sum;
        __syncthreads();
        std::int64_t total = 0;
        for (int w = 0; w < warps; ++w) {
            if (w == warp) sum += before + total;
            total += warp_sum[w];
        }
        if (row < end) offsets[row + 1] = sum;
        row_begin[threadIdx.x] = sum - own;
        __syncthreads();
        for (int i = warp; i < fill_threads && base + i < min(end, mask_rows); i += warps)
            fill(base + i, row_begin[i], lane);
        before += total;
    }
}

template <class Fill>
cudaError_t launch_fill(const Fill& fill, const std::int32_t* counts, std::int64_t rows, std::int64_t mask_rows,
                        std::int64_t* offsets, cudaStream_t stream, int shared_bytes = 0) {
    constexpr std::int64_t warps = fill_threads / 32;
    const std::int64_t share =
        std::max<std::int64_t>((rows + fill_blocks * warps - 1) / (fill_blocks * warps), 1) * warps;
    const dim3 grid(static_cast<unsigned>(std::max<std::int64_t>((rows + share - 1) / share, 1)));
    return launch_overlapping(fill_rows<Fill>, grid, fill_threads, shared_bytes, stream, fill, counts, rows, mask_rows,
                              share, offsets);
}

}  // namespace sparseattn::cuda::hopper
