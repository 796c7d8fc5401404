/// \file
/// The order of work of the backward passes, made on the device from the lengths of the lists.

#include <algorithm>

#include "cuda/hopper/backward_lists.cuh"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int threads = 1024;
constexpr int shortest_cut = 2048;  // tokens of queries; shorter items are not worth merging

// Pieces are started in the order of their bins: long ones (more than 3/8 of the longest allowed) by length, whatever
// their head; then short ones by sections of heads that share what they read in the L2 cache, only the last section by
// length, so that the end is even. Within a bin the order is that of the items.
constexpr int long_classes = 32, long_bins = 20;
constexpr int section_bins = 8;  // for all sections but the last
constexpr int last_bins = 12;
constexpr int bins = long_bins + section_bins + last_bins;
constexpr int sums = bins + 2;  // and slots and merges

struct Sections {
    int heads;  // of the pass
    int size;   // heads of a section

    __device__ int bin(int head, int part, int limit) const {
        const int grade = static_cast<int>(static_cast<std::int64_t>(part) * long_classes / limit);
        if (grade > long_classes - 1 - long_bins) return max(0, long_classes - 1 - grade);
        const int before_last = (heads - 1) / size;  // sections but the last
        const int section = head / size;
        if (section < before_last) return long_bins + section * section_bins / before_last;
        const int shortness = last_bins - 1 - grade * last_bins / (long_classes - long_bins);
        return long_bins + section_bins + max(0, shortness);
    }
};

/// Lengths of the items of the key pass, in list entries.
struct KeyItems {
    const BackwardArgs& args;
    __device__ int count() const { return args.key_heads * args.layout.key_blocks; }
    __device__ int head(int item) const { return item / args.layout.key_blocks; }
    __device__ int length(int item) const {
        const int blocks = args.layout.key_blocks, group = args.query_heads / args.key_heads;
        const int head = item / blocks * group, block = item % blocks;
        int total = 0;
        for (int branch = 0; branch < args.branches; ++branch) {
            for (int member = 0; member < group; ++member) total += rows_of(args, branch, head + member, block).count;
        }
        return total;
    }
};
/// The same of the query pass, last rows first: those of a causal layout are the longest.
struct QueryItems {
    const BackwardArgs& args;
    __device__ int count() const { return args.query_heads * args.layout.rows; }
    __device__ int head(int item) const { return item / args.layout.rows; }
    __device__ int length(int item) const {
        const int rows = args.layout.rows;
        int total = 0;
        for (int branch = 0; branch < args.branches; ++branch) {
            total += columns_of(args, branch, item / rows, rows - 1 - item % rows).count;
        }
        return total;
    }
};

struct Shared {
    unsigned long long total;
    int longest;
    int counts[sums][threads];
    int totals[sums];
};

/// Total and largest length, in all threads.
template <class Items>
__device__ void measure(const Items& items, Shared& shared, std::int64_t& total, int& longest) {
    if (threadIdx.x == 0) shared.total = 0, shared.longest = 0;
    __syncthreads();
    std::int64_t my_total = 0;
    int my_longest = 0;
    for (int item = threadIdx.x; item < items.count(); item += threads) {
        const int length = items.length(item);
        my_total += length;
        my_longest = max(my_longest, length);
    }
    atomicAdd(&shared.total, static_cast<unsigned long long>(my_total));
    atomicMax(&shared.longest, my_longest);
    __syncthreads();
    total = static_cast<std::int64_t>(shared.total);
    longest = shared.longest;
}

/// Turns the counts of all threads into sums over the threads before, and leaves the totals. Rows are shared out to
/// warps.
__device__ void scan(Shared& shared) {
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < sums; row += threads / 32) {
        int before = 0;
        for (int begin = 0; begin < threads; begin += 32) {
            const int own = shared.counts[row][begin + lane];
            int upto = own;
            for (int distance = 1; distance < 32; distance *= 2) {
                const int other = __shfl_up_sync(0xffffffffu, upto, distance);
                if (lane >= distance) upto += other;
            }
            shared.counts[row][begin + lane] = before + upto - own;
            before += __shfl_sync(0xffffffffu, upto, 31);
        }
        if (lane == 0) shared.totals[row] = before;
    }
    __syncthreads();
}

/// Cuts items longer than `limit` and sorts the pieces by bin.
template <class Items>
__device__ void plan_pieces(const Items& items, const Sections& sections, Shared& shared, int limit, Piece* pieces,
                            Merge* merges, int* count, int* merge_count) {
    auto& counts = shared.counts;
    const int thread = threadIdx.x, all = items.count();
    const int share = (all + threads - 1) / threads;
    const int begin = min(all, thread * share), end = min(all, begin + share);
    const auto parts_of = [&](int length) { return max(1, (length + limit - 1) / limit); };
    const auto bin_of = [&](int item, int length, int parts) {
        return sections.bin(items.head(item), (length + parts - 1) / parts, limit);
    };
    for (int row = 0; row < sums; ++row) counts[row][thread] = 0;
    for (int item = begin; item < end; ++item) {
        const int length = items.length(item), parts = parts_of(length);
        counts[bin_of(item, length, parts)][thread] += parts;
        if (parts > 1) counts[bins][thread] += parts, ++counts[bins + 1][thread];
    }
    __syncthreads();
    scan(shared);
    int before = 0;
    for (int row = 0; row < bins; ++row) {
        counts[row][thread] += before;
        before += shared.totals[row];
    }
    if (thread == 0) {
        *count = before;
        if (merge_count != nullptr) *merge_count = shared.totals[bins + 1];
    }
    for (int item = begin; item < end; ++item) {
        const int length = items.length(item), parts = parts_of(length);
        int& at = counts[bin_of(item, length, parts)][thread];
        int& slot = counts[bins][thread];
        if (parts > 1) merges[counts[bins + 1][thread]++] = {item, slot, parts, 0};
        for (int part = 0; part < parts; ++part) {
            const int first = static_cast<int>(static_cast<std::int64_t>(length) * part / parts);
            const int last = static_cast<int>(static_cast<std::int64_t>(length) * (part + 1) / parts);
            pieces[at++] = {item, first, last - first, parts > 1 ? slot++ : -1};
        }
    }
}

/// Block 0 plans the key pass, block 1 the query pass.
__global__ void __launch_bounds__(threads, 1)
    plan_kernel(const BackwardArgs args, int processors, Sections key_sections, Sections query_sections) {
    extern __shared__ unsigned char raw[];
    Shared& shared = *reinterpret_cast<Shared*>(raw);
    if (threadIdx.x == 0) args.plan.next[blockIdx.x] = 0;
    std::int64_t total;
    int longest;
    // 2/3 of a multiprocessor's share, rounded up: see Plan::slots
    const auto share = [&] { return static_cast<int>((2 * total + 3 * processors - 1) / (3 * processors)); };
    if (blockIdx.x == 0) {
        const KeyItems items{args};
        measure(items, shared, total, longest);
        const int limit = max(share(), shortest_cut / args.layout.block);
        plan_pieces(items, key_sections, shared, limit, args.plan.key_pieces, args.plan.merges, args.plan.count,
                    args.plan.count + 2);
    } else {  // nothing is cut
        const QueryItems items{args};
        measure(items, shared, total, longest);
        plan_pieces(items, query_sections, shared, max(max(longest, share()), 1), args.plan.query_pieces, nullptr,
                    args.plan.count + 1, nullptr);
    }
}

}  // namespace

cudaError_t launch_plan(const BackwardArgs& args, const GatedBackwardParams& params, const Machine& machine) {
    cudaError_t error = cudaFuncSetAttribute(plan_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
    if (error != cudaSuccess) return error;
    // What the items of a key head read over and over: Q and dO of its group, or K and V.
    const int group = args.query_heads / args.key_heads;
    const auto heads_in_cache = [&](double tokens) {
        const double bytes = 4.0 * params.head_dim * std::max(tokens, 1.0);
        return static_cast<int>(std::clamp(0.6 * machine.l2_bytes / bytes, 1.0, 1.0 * args.key_heads));
    };
    // With few items a multiprocessor, an even end counts for more than the cache: one section.
    const auto sections = [&](int heads, int blocks, int size) {
        return Sections{heads, static_cast<double>(heads) * blocks < 6.0 * machine.processors ? heads : size};
    };
    const Sections keys =
        sections(args.key_heads, args.layout.key_blocks, heads_in_cache(1.0 * args.batch.queries * group));
    const Sections queries = sections(args.query_heads, args.layout.rows, heads_in_cache(args.batch.keys) * group);
    plan_kernel<<<args.plan.query_pieces != nullptr ? 2 : 1, threads, sizeof(Shared), params.stream>>>(
        args, machine.processors, keys, queries);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
