/// \file
/// The order of work of the backward passes, made on the device from the lengths of the lists.

#include <algorithm>

#include "cuda/hopper/backward_lists.cuh"
#include "cuda/hopper/ptx.cuh"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int threads = 1024;
constexpr int shortest_cut = 2048;  // tokens of queries; shorter items are not worth merging
constexpr int digits = 32;          // of a pass of the sort
constexpr int classes = digits * digits;

// Pieces are started in this order: long ones (more than 3/4 of the longest allowed) by length, whatever their head;
// then short ones by sections of heads that share what they read and add to in the L2 cache, in each by length. Pieces
// of one length that start together stay together, so that what one of them reads the others find in the cache.
struct Order {
    int heads;  // of the pass
    int size;   // heads of a section
    int limit;  // length of the longest piece allowed

    __device__ int shortness(int length) const {
        return classes - 1 - static_cast<int>(static_cast<std::int64_t>(length) * (classes - 1) / limit);
    }
    /// Digit `pass` of a piece's place, least significant first.
    __device__ int digit(int head, int length, int pass) const {
        const int place = shortness(length);
        if (pass < 2) return pass == 0 ? place % digits : place / digits;
        if (place < classes / 4) return 0;
        const int sections = (heads + size - 1) / size;
        return 1 + static_cast<int>(static_cast<std::int64_t>(head / size) * (digits - 1) / sections);
    }
};

/// Lengths of the items of the key pass, in list entries and rows looked at; -1: there is no such item.
struct KeyItems {
    const BackwardArgs& args;
    __device__ int count() const {
        return args.key_heads * args.layout.key_blocks * (args.lines.taken != nullptr ? 2 : 1);
    }
    __device__ int head(int item) const { return item / args.layout.key_blocks % args.key_heads; }
    __device__ int length(int number) const {
        const KeyItem item(args, number);
        if (item.keys <= 0) return -1;
        const SequenceSpan span(args.batch, item.sequence);
        const int group = args.group, first = item.head * group;
        int total = 0;
        for (int branch = 0; branch < args.branches; ++branch) {
            for (int head = first; head < first + group; ++head) {
                if (!item.lines) total += rows_of(args, branch, head, item.block).count;
                total += item.looked_rows(args, span, branch, head);
            }
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
            const int head = item / rows, row = rows - 1 - item % rows;
            const int singles = singles_of(args, branch, head, row).count;
            total += columns_of(args, branch, head, row).count + (singles + args.layout.block - 1) / args.layout.block;
        }
        return total;
    }
};

// A word after each 32, so that the lanes of a warp can walk 32 in a row each without meeting in a bank.
constexpr int padded = threads + threads / 32;
__device__ __forceinline__ int column_of(int thread) {
    return thread + thread / 32;
}

struct Shared {
    unsigned long long total;
    int longest;
    int counts[digits][padded];
    int totals[digits];
};

/// Total and largest length, in all threads; each item's length as the count of the piece of its number.
template <class Items>
__device__ void measure(const Items& items, Shared& shared, Piece* lengths, std::int64_t& total, int& longest) {
    if (threadIdx.x == 0) shared.total = 0, shared.longest = 0;
    __syncthreads();
    std::int64_t my_total = 0;
    int my_longest = 0;
    for (int item = threadIdx.x; item < items.count(); item += threads) {
        const int length = items.length(item);
        lengths[item].count = length;
        my_total += max(length, 0);
        my_longest = max(my_longest, length);
    }
    atomicAdd(&shared.total, static_cast<unsigned long long>(my_total));
    atomicMax(&shared.longest, my_longest);
    __syncthreads();
    total = static_cast<std::int64_t>(shared.total);
    longest = shared.longest;
}

/// Turns the counts of all threads into sums over the threads before, and leaves the totals, in the first `rows` rows.
/// A row is a warp's work, 32 threads' counts a lane's.
__device__ void scan(Shared& shared, int rows) {
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < rows; row += threads / 32) {
        int* counts = shared.counts[row] + column_of(lane * 32);
        int own = 0;
        for (int i = 0; i < 32; ++i) own += counts[i];
        int upto = own;
        for (int distance = 1; distance < 32; distance *= 2) {
            const int other = __shfl_up_sync(0xffffffffu, upto, distance);
            if (lane >= distance) upto += other;
        }
        int before = upto - own;
        for (int i = 0; i < 32; ++i) {
            const int count = counts[i];
            counts[i] = before;
            before += count;
        }
        if (lane == 31) shared.totals[row] = upto;
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
__device__ int cut_items(const Items& items, Shared& shared, int limit, const Piece* lengths, Piece* pieces,
                         Merge* merges, int* merge_count) {
    auto& counts = shared.counts;  // of pieces, slots and merges
    const int thread = column_of(static_cast<int>(threadIdx.x));
    const Share share(items.count());
    const auto parts_of = [&](int length) { return length < 0 ? 0 : max(1, (length + limit - 1) / limit); };
    for (int row = 0; row < 3; ++row) counts[row][thread] = 0;
    for (int item = share.begin; item < share.end; ++item) {
        const int parts = parts_of(lengths[item].count);
        counts[0][thread] += parts;
        if (parts > 1) counts[1][thread] += parts, ++counts[2][thread];
    }
    __syncthreads();
    scan(shared, 3);
    if (threadIdx.x == 0 && merge_count != nullptr) *merge_count = shared.totals[2];
    int at = counts[0][thread], slot = counts[1][thread], merge = counts[2][thread];
    for (int item = share.begin; item < share.end; ++item) {
        const int length = lengths[item].count, parts = parts_of(length);
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
    const int thread = column_of(static_cast<int>(threadIdx.x));
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

/// Measures the items, cuts those longer than `limit_of(total, longest)` and puts the pieces in order.
template <class Items, class Limit>
__device__ void plan_pieces(const Items& items, Order order, Shared& shared, Piece* pieces, Piece* spare, Merge* merges,
                            int* count, int* merge_count, const Limit& limit_of) {
    const bool sections = order.size < order.heads;  // otherwise the length is all
    const int passes = sections ? 3 : 2;             // each from one array to the other; the last to `pieces`
    Piece *from = sections ? spare : pieces, *to = sections ? pieces : spare;
    std::int64_t total;
    int longest;
    measure(items, shared, to, total, longest);
    order.limit = limit_of(total, longest);
    const int all = cut_items(items, shared, order.limit, to, from, merges, merge_count);
    if (threadIdx.x == 0) *count = all;
    for (int pass = 0; pass < passes; ++pass) {
        sort_pass(items, order, pass, shared, from, to, all);
        Piece* other = from;
        from = to;
        to = other;
    }
}

/// Block 0 plans the key pass, block 1 the query pass.
__global__ void __launch_bounds__(threads, 1)
    plan_kernel(const BackwardArgs args, int processors, Order key_order, Order query_order) {
    dependents_may_launch();  // preparing needs nothing of the plan
    extern __shared__ unsigned char raw[];
    Shared& shared = *reinterpret_cast<Shared*>(raw);
    const Plan& plan = args.plan;
    if (threadIdx.x == 0) plan.next[blockIdx.x] = 0;
    // 2/3 of a multiprocessor's share, rounded up: see Plan::slots
    const auto fair = [&](std::int64_t total) {
        return static_cast<int>((2 * total + 3 * processors - 1) / (3 * processors));
    };
    if (blockIdx.x == 0) {
        plan_pieces(KeyItems{args}, key_order, shared, plan.key_pieces, plan.spare_key_pieces, plan.merges, plan.count,
                    plan.count + 2,
                    [&](std::int64_t total, int) { return max(fair(total), shortest_cut / args.layout.block); });
    } else {  // nothing is cut
        plan_pieces(QueryItems{args}, query_order, shared, plan.query_pieces, plan.spare_query_pieces, nullptr,
                    plan.count + 1, nullptr,
                    [&](std::int64_t total, int longest) { return max(max(longest, fair(total)), 1); });
    }
}

}  // namespace

cudaError_t launch_plan(const BackwardArgs& args, const GatedBackwardParams& params, const Machine& machine) {
    cudaError_t error = cudaFuncSetAttribute(plan_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
    if (error != cudaSuccess) return error;
    // What the items of a key head read over and over: Q and dO of its group, or K and V.
    const int group = args.group;
    const auto heads_in_cache = [&](double tokens) {
        const double bytes = 4.0 * params.head_dim * std::max(tokens, 1.0);
        return static_cast<int>(std::clamp(0.6 * machine.l2_bytes / bytes, 1.0, 1.0 * args.key_heads));
    };
    const Order keys{args.key_heads, heads_in_cache(1.0 * args.batch.queries * group), 0};
    const Order queries{args.query_heads, heads_in_cache(args.batch.keys) * group, 0};
    plan_kernel<<<args.plan.query_pieces != nullptr ? 2 : 1, threads, sizeof(Shared), params.stream>>>(
        args, machine.processors, keys, queries);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
