/// \file
/// The order of work of the backward passes, made on the device from the lengths of the lists.

#include <algorithm>

#include "cuda/hopper/backward_lists.cuh"

namespace sparseattn::cuda::hopper {
int job_all_heads = 0, job_long = 6;
namespace {

constexpr int threads = 1024;
constexpr int shortest_cut = 2048;  // tokens of queries; shorter items are not worth merging
constexpr int digits = 32;          // of a pass of the sort
constexpr int classes = digits * digits;

// Pieces are started in this order: long ones (more than 3/8 of the longest allowed) by length, whatever their head;
// then short ones by sections of heads that share what they read and add to in the L2 cache, in each by length. Pieces
// of one length that start together stay together, so that what one of them reads the others find in the cache.
struct Order {
    int heads;  // of the pass
    int size;   // heads of a section
    int limit;  // length of the longest piece allowed
    int eighths;

    __device__ int shortness(int length) const {
        return classes - 1 - static_cast<int>(static_cast<std::int64_t>(length) * (classes - 1) / limit);
    }
    /// Digit `pass` of a piece's place, least significant first.
    __device__ int digit(int head, int length, int pass) const {
        const int place = shortness(length);
        if (pass < 2) return pass == 0 ? place % digits : place / digits;
        if (place < classes * (8 - eighths) / 8) return 0;
        const int sections = (heads + size - 1) / size;
        return 1 + static_cast<int>(static_cast<std::int64_t>(head / size) * (digits - 1) / sections);
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
    int counts[digits][threads];
    int totals[digits];
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

/// Turns the counts of all threads into sums over the threads before, and leaves the totals, in the first `rows` rows.
/// Rows are shared out to warps.
__device__ void scan(Shared& shared, int rows) {
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < rows; row += threads / 32) {
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

/// Where a thread's share of `count` things begins and ends.
struct Share {
    int begin, end;
    __device__ explicit Share(int count) {
        const int size = (count + threads - 1) / threads;
        begin = min(count, static_cast<int>(threadIdx.x) * size);
        end = min(count, begin + size);
    }
};

/// Cuts items longer than `limit`. The pieces are in the order of the items. Returns how many there are.
template <class Items>
__device__ int cut_items(const Items& items, Shared& shared, int limit, Piece* pieces, Merge* merges,
                         int* merge_count) {
    auto& counts = shared.counts;  // of pieces, slots and merges
    const int thread = threadIdx.x;
    const Share share(items.count());
    const auto parts_of = [&](int length) { return max(1, (length + limit - 1) / limit); };
    for (int row = 0; row < 3; ++row) counts[row][thread] = 0;
    for (int item = share.begin; item < share.end; ++item) {
        const int parts = parts_of(items.length(item));
        counts[0][thread] += parts;
        if (parts > 1) counts[1][thread] += parts, ++counts[2][thread];
    }
    __syncthreads();
    scan(shared, 3);
    if (thread == 0 && merge_count != nullptr) *merge_count = shared.totals[2];
    int at = counts[0][thread], slot = counts[1][thread], merge = counts[2][thread];
    for (int item = share.begin; item < share.end; ++item) {
        const int length = items.length(item), parts = parts_of(length);
        if (parts > 1) merges[merge++] = {item, slot, parts, 0};
        for (int part = 0; part < parts; ++part) {
            const int first = static_cast<int>(static_cast<std::int64_t>(length) * part / parts);
            const int last = static_cast<int>(static_cast<std::int64_t>(length) * (part + 1) / parts);
            pieces[at++] = {item, first, last - first, parts > 1 ? slot++ : -1};
        }
    }
    __syncthreads();
    return shared.totals[0];
}

/// One pass of the sort, stable.
template <class Items>
__device__ void sort_pass(const Items& items, const Order& order, int pass, Shared& shared, const Piece* from,
                          Piece* to, int count) {
    auto& counts = shared.counts;
    const int thread = threadIdx.x;
    const Share share(count);
    const auto digit = [&](const Piece& piece) { return order.digit(items.head(piece.item), piece.count, pass); };
    for (int row = 0; row < digits; ++row) counts[row][thread] = 0;
    for (int i = share.begin; i < share.end; ++i) ++counts[digit(from[i])][thread];
    __syncthreads();
    scan(shared, digits);
    int before = 0;
    for (int row = 0; row < digits; ++row) {
        counts[row][thread] += before;
        before += shared.totals[row];
    }
    for (int i = share.begin; i < share.end; ++i) {
        const Piece piece = from[i];
        to[counts[digit(piece)][thread]++] = piece;
    }
    __syncthreads();
}

/// Cuts items and puts the pieces in order. `spare` has room for them too.
template <class Items>
__device__ void plan_pieces(const Items& items, const Order& order, Shared& shared, Piece* pieces, Piece* spare,
                            Merge* merges, int* count, int* merge_count) {
    const int all = cut_items(items, shared, order.limit, spare, merges, merge_count);
    if (threadIdx.x == 0) *count = all;
    sort_pass(items, order, 0, shared, spare, pieces, all);
    sort_pass(items, order, 1, shared, pieces, spare, all);
    sort_pass(items, order, 2, shared, spare, pieces, all);
}

/// Block 0 plans the key pass, block 1 the query pass.
__global__ void __launch_bounds__(threads, 1)
    plan_kernel(const BackwardArgs args, int processors, Order key_order, Order query_order) {
    extern __shared__ unsigned char raw[];
    Shared& shared = *reinterpret_cast<Shared*>(raw);
    if (threadIdx.x == 0) args.plan.next[blockIdx.x] = 0;
    std::int64_t total;
    int longest;
    // 2/3 of a multiprocessor's share, rounded up: see Plan::slots
    const auto fair = [&] { return static_cast<int>((2 * total + 3 * processors - 1) / (3 * processors)); };
    if (blockIdx.x == 0) {
        const KeyItems items{args};
        measure(items, shared, total, longest);
        key_order.limit = max(fair(), shortest_cut / args.layout.block);
        plan_pieces(items, key_order, shared, args.plan.key_pieces, args.plan.spare_key_pieces, args.plan.merges,
                    args.plan.count, args.plan.count + 2);
    } else {  // nothing is cut
        const QueryItems items{args};
        measure(items, shared, total, longest);
        query_order.limit = max(max(longest, fair()), 1);
        plan_pieces(items, query_order, shared, args.plan.query_pieces, args.plan.spare_query_pieces, nullptr,
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
    Order keys{args.key_heads, heads_in_cache(1.0 * args.batch.queries * group), 0, job_long};
    Order queries{args.query_heads, heads_in_cache(args.batch.keys) * group, 0, job_long};
    if (job_all_heads) keys.size = keys.heads, queries.size = queries.heads;
    plan_kernel<<<args.plan.query_pieces != nullptr ? 2 : 1, threads, sizeof(Shared), params.stream>>>(
        args, machine.processors, keys, queries);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
