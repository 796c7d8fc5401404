#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/ptx.cuh"
#include "cuda/hopper/xattention_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int scan_threads = 1024;
constexpr int fill_threads = 256;

/// Sums offsets[1 .. rows] in place, one thread block, a segment a warp; those past `mask_rows` count as 0.
__global__ void __launch_bounds__(scan_threads)
    scan_offsets(std::int64_t* offsets, std::int64_t rows, std::int64_t mask_rows) {
    constexpr int warps = scan_threads / 32;
    __shared__ std::int64_t warp_sum[warps];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t share = (rows + scan_threads - 1) / scan_threads * 32;
    const std::int64_t begin = min(warp * share, rows), end = min(begin + share, rows);
    dependents_may_launch();
    wait_for_previous_kernel();
    const auto count = [&](std::int64_t i) { return i < min(end, mask_rows) ? offsets[i + 1] : 0; };
    std::int64_t own = 0;
#pragma unroll 4
    for (std::int64_t i = begin + lane; i < end; i += 32) own += count(i);
    for (int distance = 16; distance > 0; distance /= 2) own += __shfl_xor_sync(0xffffffffu, own, distance);
    if (lane == 0) warp_sum[warp] = own;
    __syncthreads();
    std::int64_t before = 0;
    for (int w = 0; w < warp; ++w) before += warp_sum[w];
    if (threadIdx.x == 0) offsets[0] = 0;
    for (std::int64_t base = begin; base < end; base += 32) {
        std::int64_t sum = count(base + lane);
        for (int distance = 1; distance < 32; distance *= 2) {
            const std::int64_t other = __shfl_up_sync(0xffffffffu, sum, distance);
            if (lane >= distance) sum += other;
        }
        sum += before;
        if (base + lane < end) offsets[base + lane + 1] = sum;
        before = __shfl_sync(0xffffffffu, sum, 31);
    }
}

/// Bits to ascending columns, a warp a row.
__global__ void __launch_bounds__(fill_threads)
    fill_columns(SelectionTarget target, const std::uint32_t* words, int word_count, std::int64_t mask_rows) {
    wait_for_previous_kernel();
    const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * fill_threads + threadIdx.x) / 32;
    if (row >= mask_rows) return;
    const int lane = threadIdx.x % 32;
    std::int32_t* to = target.columns + target.offsets[row];
    for (int first = 0; first < word_count; first += 32) {
        std::uint32_t mine = first + lane < word_count ? words[row * word_count + first + lane] : 0;
        const int held = min(32, word_count - first);
        for (int w = 0; w < held; ++w) {
            const std::uint32_t word = __shfl_sync(0xffffffffu, mine, w);
            if ((word >> lane & 1) != 0) to[__popc(word & ((1u << lane) - 1))] = (first + w) * 32 + lane;
            to += __popc(word);
        }
    }
}

}  // namespace

cudaError_t launch_lists(const SelectionTarget& target, const std::uint32_t* words, int word_count, int mask_lists,
                         cudaStream_t stream) {
    const std::int64_t rows = static_cast<std::int64_t>(target.lists) * target.rows;
    const std::int64_t mask_rows = static_cast<std::int64_t>(mask_lists) * target.rows;
    const cudaError_t error =
        launch_overlapping(scan_offsets, dim3(1), scan_threads, 0, stream, target.offsets, rows, mask_rows);
    if (error != cudaSuccess || mask_rows == 0) return error;
    const dim3 blocks(static_cast<unsigned>((mask_rows * 32 + fill_threads - 1) / fill_threads));
    return launch_overlapping(fill_columns, blocks, fill_threads, 0, stream, target, words, word_count, mask_rows);
}

}  // namespace sparseattn::cuda::hopper
