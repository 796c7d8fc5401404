/// \file
/// FlexPrefill's decisions, from the masses of the last queries to bits.

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/profile_args.hpp"
#include "cuda/hopper/selection.cuh"

namespace sparseattn::cuda::hopper {
namespace {

__device__ __forceinline__ bool sees_everything(const FlexArgs& args, const SequenceSpan& span) {
    return span.keys <= args.dense_keys;
}

/// How many entries of a head's mass by key (z even) or by distance reach gamma. A cluster each.
__global__ void __cluster_dims__(search_blocks, 1, 1) __launch_bounds__(search_threads)
    count_prefix(const __grid_constant__ FlexArgs args) {
    __shared__ ClusterSearch::Storage storage;
    extern __shared__ float held[];
    dependents_may_launch();
    wait_for_previous_kernel();
    const int sequence = blockIdx.z / 2, which = blockIdx.z % 2, member = blockIdx.y;
    const SequenceSpan span(args.batch, sequence);
    if (span.queries == 0 || sees_everything(args, span)) return;  // the whole cluster
    const float* mass = (which == 0 ? args.vertical : args.slash) +
                        static_cast<std::int64_t>(args.heads.slot[member]) * args.batch.keys + span.key_begin;
    int taken = span.keys;
    if (args.gamma < 1) {
        ClusterSearch search(storage, held, mass, span.keys);
        taken = search.find<true, false>(0, [&](double total) { return args.gamma * total; }).taken;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        args.choices[member * args.batch.sequences + sequence].taken[which] = taken;
    }
}

constexpr int pattern_threads = 512;

template <class Value>
__device__ __forceinline__ double sum_block(int count, const Value& value, double* part) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += pattern_threads) sum += value(i);
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(every_lane, sum, distance);
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < pattern_threads / 32; ++w) sum += part[w];
    return sum;
}

constexpr int rank_keys = 2048;  // at a time, in shared memory

/// Marks the `wanted` largest, ties lower index first: those with fewer than that many before them.
__device__ __forceinline__ void keep_largest(const float* mass, int count, int wanted, std::uint32_t* keys,
                                             unsigned char* keep) {
    for (int first = 0; first < count; first += pattern_threads) {
        const int i = first + threadIdx.x;
        const std::uint32_t own = i < count ? order_key(mass[i]) : 0;
        int before = 0;
        for (int base = 0; base < count; base += rank_keys) {
            const int held = min(rank_keys, count - base);
            __syncthreads();
            for (int j = threadIdx.x; j < (held + 3) / 4 * 4; j += pattern_threads) {
                keys[j] = j < held ? order_key(mass[base + j]) : 0;  // 0: before nothing
            }
            __syncthreads();
            const auto* fours = reinterpret_cast<const uint4*>(keys);
            const int turn = min(max((i - base) / 4, 0), (held + 3) / 4);  // equal keys count before `i` only
#pragma unroll 4
            for (int j = 0; j < turn; ++j) {
                const uint4 four = fours[j];
                before += (four.x >= own) + (four.y >= own) + (four.z >= own) + (four.w >= own);
            }
#pragma unroll 4
            for (int j = turn; j < (held + 3) / 4; ++j) {
                const uint4 four = fours[j];
                before += (four.x > own) + (four.y > own) + (four.z > own) + (four.w > own);
            }
            for (int j = 4 * turn; j < min(i - base, held); ++j) before += keys[j] == own ? 1 : 0;
        }
        if (i < count) keep[i] = before < wanted ? 1 : 0;
    }
}

/// Pattern, budgets, and blocks kept for all rows, of one head in one sequence.
__global__ void __launch_bounds__(pattern_threads) choose_pattern(const __grid_constant__ FlexArgs args) {
    __shared__ double part[pattern_threads / 32];
    __shared__ float top_of_warp[pattern_threads / 32];
    __shared__ alignas(16) std::uint32_t keys[rank_keys];
    dependents_may_launch();
    wait_for_previous_kernel();
    const int sequence = blockIdx.y, member = blockIdx.x, at = member * args.batch.sequences + sequence;
    const SequenceSpan span(args.batch, sequence);
    if (span.queries == 0 || sees_everything(args, span)) {
        if (threadIdx.x == 0) args.aware[at] = 0;
        return;
    }
    const int count = (span.keys + args.block - 1) / args.block;
    const std::int64_t place =
        static_cast<std::int64_t>(member) * args.block_room + first_block(span.key_begin, args.block, sequence);
    const float *columns = args.columns + place, *distances = args.distances + place, *logits = args.logits + place;
    float most = -INFINITY;
    for (int i = threadIdx.x; i < count; i += pattern_threads) most = fmaxf(most, logits[i]);
    for (int distance = 16; distance > 0; distance /= 2)
        most = fmaxf(most, __shfl_xor_sync(every_lane, most, distance));
    if (threadIdx.x % 32 == 0) top_of_warp[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < pattern_threads / 32; ++w) most = fmaxf(most, top_of_warp[w]);
    const double top = most, tail = min(args.tail, span.queries);
    const double total = sum_block(
        count, [&](int J) { return exp(logits[J] - top); }, part);
    // The Jensen-Shannon divergence of the block means' softmax and the mass by key.
    const double divergence = sum_block(
        count,
        [&](int J) {
            const double p = exp(logits[J] - top) / total, v = columns[J] / tail, m = 0.5 * (p + v);
            return (p > 0 ? 0.5 * p * log(p / m) : 0.0) + (v > 0 ? 0.5 * v * log(v / m) : 0.0);
        },
        part);
    const bool aware = sqrt(divergence > 0 ? divergence : 0.0) < args.tau;
    FlexChoice& choice = args.choices[at];
    const int limit = args.most > 0 ? min(count, args.most) : count, least = min(limit, args.least);
    int wanted[2] = {least, least};
    for (int which = 0; which < 2 && !aware; ++which) {
        wanted[which] = max(least, min(limit, (choice.taken[which] + args.block - 1) / args.block));
    }
    keep_largest(columns, count, wanted[0], keys, args.keep_columns + place);
    keep_largest(distances, count, wanted[1], keys, args.keep_distances + place);
    if (threadIdx.x == 0) {
        args.aware[at] = aware ? 1 : 0;
        choice.pair_key = 0xffffffffu;
        choice.pair_end = 0;
    }
}

/// The pairs of a query-aware head. A cluster each.
__global__ void __cluster_dims__(search_blocks, 1, 1) __launch_bounds__(search_threads)
    cut_pairs(const __grid_constant__ FlexArgs args) {
    __shared__ ClusterSearch::Storage storage;
    extern __shared__ float held[];
    dependents_may_launch();
    wait_for_previous_kernel();
    const int sequence = blockIdx.z, member = blockIdx.y, at = member * args.batch.sequences + sequence;
    if (args.aware[at] == 0) return;
    const SequenceSpan span(args.batch, sequence);
    const int rows = (span.queries + args.block - 1) / args.block, blocks = (span.keys + args.block - 1) / args.block;
    const float* pairs = args.pairs + (static_cast<std::int64_t>(member) * args.row_room +
                                       first_block(span.query_begin, args.block, sequence)) *
                                          args.pair_stride;
    Cut cut{0, rows * blocks};
    if (args.gamma < 1) {
        ClusterSearch search(storage, held, pairs, rows * blocks);
        cut = search.find<true, true>(0, [&](double) { return args.gamma * rows; });
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        args.choices[at].pair_key = cut.key;
        args.choices[at].pair_end = cut.tie_end;
    }
}

constexpr int row_threads = 256;

/// A warp a (head, query block).
__global__ void __launch_bounds__(row_threads) mark_rows(const __grid_constant__ FlexArgs args) {
    dependents_may_launch();
    wait_for_previous_kernel();
    const int row = blockIdx.x * (row_threads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, member = blockIdx.y;
    if (row >= args.target.rows) return;
    const int sequence = args.target.row_sequence[row], local = row - args.target.row_begin[sequence];
    const SequenceSpan span(args.batch, sequence);
    const RowSpan see(args.block, true, local, span.queries, span.keys);
    const int blocks = (span.keys + args.block - 1) / args.block, at = member * args.batch.sequences + sequence;
    const bool everything = sees_everything(args, span);
    const bool aware = !everything && args.aware[at] != 0;
    Cut cut;
    if (aware) cut = {args.choices[at].pair_key, args.choices[at].pair_end};
    const std::int64_t place =
        static_cast<std::int64_t>(member) * args.block_room + first_block(span.key_begin, args.block, sequence);
    const float* pairs = args.pairs + (static_cast<std::int64_t>(member) * args.row_room +
                                       first_block(span.query_begin, args.block, sequence)) *
                                          args.pair_stride;
    const std::int64_t list_row = static_cast<std::int64_t>(args.heads.first_list + member) * args.target.rows + row;
    int marked = 0;
    for (int w = 0; w < args.word_count; ++w) {
        const int J = w * 32 + lane;
        bool take = J < see.end;
        if (take && !everything && J != 0 && J < see.own_begin) {
            take = args.keep_columns[place + J] != 0 || args.keep_distances[place + see.end - 1 - J] != 0;
            if (aware && !take) {
                const int pair = local * blocks + J;
                take = cut.takes(pairs[pair], pair);
            }
        }
        const unsigned word = __ballot_sync(every_lane, take);
        marked += __popc(word);
        if (lane == 0) args.words[list_row * args.word_count + w] = word;
    }
    if (lane == 0) args.counts[list_row] = marked;
}

}  // namespace

cudaError_t launch_flex_patterns(const FlexArgs& args, int longest, cudaStream_t stream) {
    const dim3 grid(search_blocks, args.heads.count, 2 * args.batch.sequences);
    const cudaError_t error = launch_search(count_prefix, grid, longest, stream, args);
    if (error != cudaSuccess) return error;
    return launch_overlapping(choose_pattern, dim3(args.heads.count, args.batch.sequences), pattern_threads, 0, stream,
                              args);
}

cudaError_t launch_flex_pairs(const FlexArgs& args, std::int64_t longest, cudaStream_t stream) {
    return launch_search(cut_pairs, dim3(search_blocks, args.heads.count, args.batch.sequences), longest, stream, args);
}

cudaError_t launch_flex_rows(const FlexArgs& args, cudaStream_t stream) {
    const dim3 grid((args.target.rows + row_threads / 32 - 1) / (row_threads / 32), args.heads.count);
    return launch_overlapping(mark_rows, grid, row_threads, 0, stream, args);
}

}  // namespace sparseattn::cuda::hopper
