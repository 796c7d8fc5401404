/// \file
/// Which keys are visited singly and often enough alone to be worked on apart from their blocks.

#include "cuda/hopper/backward_lists.cuh"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int mark_threads = 256, threads = 1024;

/// Whether a head of the group visits a key (packed number) singly.
__device__ __forceinline__ bool visited_singly(const BackwardArgs& args, int key_head, int key) {
    const int group = args.group;
    bool found = false;
    for (int branch = 0; branch < args.branches; ++branch) {
        const Branch& lists = args.branch[branch];
        if (lists.single_row_offsets == nullptr) continue;
        for (int head = key_head * group; head < (key_head + 1) * group; ++head) {
            if (branch_weight(args, branch, head) == 0) continue;
            const std::int64_t at = static_cast<std::int64_t>(lists.head_list[head]) * args.batch.keys + key;
            found = found || lists.single_row_offsets[at + 1] > lists.single_row_offsets[at];
        }
    }
    return found;
}

/// Marks them, one thread per (key, key head).
__global__ void __launch_bounds__(mark_threads) mark_kernel(const __grid_constant__ BackwardArgs args) {
    const int key = static_cast<int>(blockIdx.x * mark_threads + threadIdx.x), key_head = blockIdx.y;
    if (key >= args.batch.keys) return;
    args.lines.taken[static_cast<std::int64_t>(key_head) * args.batch.keys + key] =
        visited_singly(args, key_head, key) ? 1 : 0;
}

/// How often rows visit keys of a sequence singly, over the heads of the group.
__device__ std::int64_t single_visits(const BackwardArgs& args, int key_head, const SequenceSpan& span) {
    const int group = args.group;
    std::int64_t visits = 0;
    for (int branch = 0; branch < args.branches; ++branch) {
        const Branch& lists = args.branch[branch];
        if (lists.single_row_offsets == nullptr) continue;
        for (int head = key_head * group; head < (key_head + 1) * group; ++head) {
            if (branch_weight(args, branch, head) == 0) continue;
            const std::int64_t* at = lists.single_row_offsets +
                                     static_cast<std::int64_t>(lists.head_list[head]) * args.batch.keys +
                                     span.key_begin;
            visits += at[span.keys] - at[0];
        }
    }
    return visits;
}

/// Of each thread the sum over the threads before, and the total.
struct Scanned {
    int before, total;
};
__device__ Scanned scan(int value) {
    __shared__ int sums[threads / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int upto = value;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, upto, distance);
        if (lane >= distance) upto += other;
    }
    if (lane == 31) sums[warp] = upto;
    __syncthreads();
    Scanned result{upto - value, 0};
    for (int w = 0; w < threads / 32; ++w) {
        if (w < warp) result.before += sums[w];
        result.total += sums[w];
    }
    return result;
}

/// Counts and lists the marked keys, one thread block per (sequence, key head).
__global__ void __launch_bounds__(threads, 1) lines_kernel(const __grid_constant__ BackwardArgs args) {
    const int sequence = blockIdx.x, key_head = blockIdx.y;
    const SequenceSpan span(args.batch, sequence);
    const std::int64_t first = static_cast<std::int64_t>(key_head) * args.batch.keys + span.key_begin;
    unsigned char* taken = args.lines.taken + first;
    const int share = (span.keys + threads - 1) / threads;
    const int begin = min(span.keys, static_cast<int>(threadIdx.x) * share), end = min(span.keys, begin + share);
    int own = 0;
    for (int key = begin; key < end; ++key) own += taken[key];
    const Scanned scanned = scan(own);
    // Few keys, and more visits than their tiles have rows to go through.
    const std::int64_t tiles = (scanned.total + args.layout.block - 1) / args.layout.block;
    const std::int64_t rows = (span.queries + args.layout.block - 1) / args.layout.block;
    const bool few = static_cast<std::int64_t>(scanned.total) * Lines::most <= span.keys &&
                     single_visits(args, key_head, span) >= tiles * rows * args.group;
    if (threadIdx.x == 0) {
        args.lines.counts[key_head * args.batch.sequences + sequence] = few ? scanned.total : -1;
    }
    std::int32_t* at = args.lines.keys + first + scanned.before;
    for (int key = begin; key < end; ++key) {
        if (!few)
            taken[key] = 0;
        else if (taken[key] != 0)
            *at++ = key;
    }
}

}  // namespace

cudaError_t launch_lines(const BackwardArgs& args, const GatedBackwardParams& params) {
    if (args.lines.taken == nullptr || args.batch.keys == 0) return cudaSuccess;
    const auto heads = static_cast<unsigned>(args.key_heads);
    const auto blocks = static_cast<unsigned>((args.batch.keys + mark_threads - 1) / mark_threads);
    mark_kernel<<<dim3(blocks, heads), mark_threads, 0, params.stream>>>(args);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    lines_kernel<<<dim3(static_cast<unsigned>(args.batch.sequences), heads), threads, 0, params.stream>>>(args);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
