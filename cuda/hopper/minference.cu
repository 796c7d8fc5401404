/// \file
/// MInference's vertical_and_slash heads, from the masses of the last queries to bits and single keys.

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/lists.cuh"
#include "cuda/hopper/profile_args.hpp"
#include "cuda/hopper/selection.cuh"

namespace sparseattn::cuda::hopper {
namespace {

/// Inclusive count of `take` over the thread block; `total` of all threads.
__device__ __forceinline__ int count_to(bool take, int* counts, int& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned mine = __ballot_sync(every_lane, take);
    __syncthreads();  // of the call before
    if (lane == 0) counts[warp] = __popc(mine);
    __syncthreads();
    int before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < search_threads / 32; ++w) {
        if (w == warp) before = total;
        total += counts[w];
    }
    return before + __popc(mine & (every_lane >> (31 - lane)));
}

__device__ __forceinline__ int size_of(int size, double share, int least, int keys) {
    if (share > 0) size = static_cast<int>(fmin(floor(keys * share), 1073741824.0));
    return min(keys, max(size, least));
}

/// The columns (z even) or distances that a head keeps of a sequence. A cluster each.
__global__ void __cluster_dims__(search_blocks, 1, 1) __launch_bounds__(search_threads)
    keep_largest(const __grid_constant__ MInferenceArgs args) {
    __shared__ ClusterSearch::Storage storage;
    extern __shared__ float held[];
    __shared__ int counts[search_threads / 32];
    dependents_may_launch();
    wait_for_previous_kernel();
    const int sequence = blockIdx.z / 2, member = blockIdx.y;
    const bool columns = blockIdx.z % 2 == 0;
    const SequenceSpan span(args.batch, sequence);
    const int n = span.keys, list = args.heads.first_list + member;
    std::int32_t* kept_count = args.kept_count + static_cast<std::int64_t>(list) * args.batch.sequences + sequence;
    if (span.queries == 0) {
        if (columns && blockIdx.x == 0 && threadIdx.x == 0) *kept_count = 0;
        return;  // the whole cluster
    }
    const float* mass = (columns ? args.vertical : args.slash) +
                        static_cast<std::int64_t>(args.heads.slot[member]) * args.batch.keys + span.key_begin;
    const int forced = columns ? MInferenceParams::forced_columns : MInferenceParams::forced_distances;
    const int wanted = columns ? size_of(args.columns[member], args.column_share, forced, n)
                               : size_of(args.distances[member], args.distance_share, forced, n);
    ClusterSearch search(storage, held, mass, n);
    const Cut cut = search.find<false, true>(forced, [&](double) { return static_cast<double>(wanted - forced); });
    const auto takes = [&](int i) { return i < search.end() && (i < forced || cut.takes(mass[i], i)); };
    int own = 0, total = 0;
    for (int base = search.begin(); base < search.end(); base += search_threads) {
        own += __syncthreads_count(takes(base + static_cast<int>(threadIdx.x)));
    }
    int at = search.before(own, total);
    std::int32_t* kept =
        args.kept + (static_cast<std::int64_t>(list) * args.batch.sequences + sequence) * args.most_columns;
    std::int32_t* before = args.before + member * (static_cast<std::int64_t>(args.batch.keys) + args.batch.sequences) +
                           span.key_begin + sequence;
    for (int base = search.begin(); base < search.end(); base += search_threads) {
        const int i = base + static_cast<int>(threadIdx.x);
        const bool take = takes(i);
        int inside = 0;
        const int end = at + count_to(take, counts, inside);
        if (columns && take) kept[end - 1] = i;
        if (!columns && i < search.end()) before[i] = end - (take ? 1 : 0);
        at += inside;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) *(columns ? kept_count : before + n) = total;
}

/// The kept columns that a row sees outside its blocks, whose bits lie in shared memory.
struct SingleKeys {
    const std::int32_t* kept;
    int count, end, shift;
    const std::uint32_t* words;

    __device__ __forceinline__ SingleKeys(const MInferenceArgs& args, std::int64_t list_row, const std::uint32_t* bits)
        : words(bits) {
        const int list = static_cast<int>(list_row / args.target.rows),
                  row = static_cast<int>(list_row % args.target.rows);
        const int sequence = args.target.row_sequence[row], block = args.block;
        const SequenceSpan span(args.batch, sequence);
        const std::int64_t place = static_cast<std::int64_t>(list) * args.batch.sequences + sequence;
        kept = args.kept + place * args.most_columns;
        count = args.kept_count[place];
        shift = block == 64 ? 6 : 7;
        end = min((row - args.target.row_begin[sequence] + 1) * block, span.queries) + span.keys - span.queries;
    }
    /// Calls visit(key, taken) with a lane's key, for 32 at a time; `taken` says which lanes have one.
    template <class Visit>
    __device__ __forceinline__ void each(int lane, const Visit& visit) const {
#pragma unroll 4
        for (int base = 0; base < count; base += 32) {
            const int key = base + lane < count ? kept[base + lane] : end;
            const int J = key >> shift;
            visit(key, __ballot_sync(every_lane,
                                     key < end && (words[min(J, (end - 1) >> shift) >> 5] >> (J & 31) & 1) == 0));
        }
    }
};

constexpr int row_threads = 256;

constexpr int row_warps = row_threads / 32;

/// Which key blocks hold a key i - o for a query i of a row and a kept distance o.
struct Covered {
    const std::int32_t* less;        // [keys + 1] kept distances below o
    int block, keys, whole, offset;  // whole blocks and tokens that keys have before the queries

    /// Of a full row and a block `behind` blocks before the one of the row's first query's position.
    __device__ __forceinline__ bool at(int behind) const {
        const int first = behind * block + offset;
        return first + block <= keys && less[max(first + block, 0)] > less[max(first - block + 1, 0)];
    }
    /// Of queries at positions first .. last.
    __device__ __forceinline__ bool at(int first, int last, int J) const {
        const int j0 = J * block, j1 = min(j0 + block, keys) - 1;
        return less[last - j0 + 1] > less[first > j1 ? first - j1 : 0];
    }
};

/// Blocks and numbers of single keys; a warp a (head, query block). Full rows of a sequence differ by a shift, so that
/// one table serves the rows of a thread block.
__global__ void __launch_bounds__(row_threads) mark_rows(const __grid_constant__ MInferenceArgs args) {
    extern __shared__ std::uint32_t bits[];  // [warps, word_count], then the table
    dependents_may_launch();
    wait_for_previous_kernel();
    auto* table = reinterpret_cast<unsigned char*>(bits + row_warps * args.word_count);
    const int first_row = blockIdx.x * row_warps,
              row = min(first_row + static_cast<int>(threadIdx.x) / 32, args.target.rows - 1);
    const int lane = threadIdx.x % 32, member = blockIdx.y, block = args.block;
    const int sequence = args.target.row_sequence[row], local = row - args.target.row_begin[sequence];
    const int table_sequence = args.target.row_sequence[first_row];
    const auto covered_of = [&](int s) {
        const SequenceSpan span(args.batch, s);
        const int shift = span.keys - span.queries;
        const std::int64_t begin = member * (static_cast<std::int64_t>(args.batch.keys) + args.batch.sequences);
        return Covered{args.before + begin + span.key_begin + s, block, span.keys, shift / block, shift % block};
    };
    const Covered tabled = covered_of(table_sequence);
    const int last_local = first_row + row_warps - 1 - args.target.row_begin[table_sequence];
    const int table_size = min(last_local + tabled.whole + 2, (tabled.keys + block - 1) / block + 1);
    for (int i = threadIdx.x; i < table_size; i += row_threads) table[i] = tabled.at(i - 1) ? 1 : 0;
    __syncthreads();

    const SequenceSpan span(args.batch, sequence);
    const Covered covered = covered_of(sequence);
    const int end = RowSpan(block, true, local, span.queries, span.keys).end, shift = span.keys - span.queries;
    const int first = local * block + shift, last = min((local + 1) * block, span.queries) - 1 + shift;
    const bool in_table = sequence == table_sequence && last - first + 1 == block;
    const std::int64_t list_row = static_cast<std::int64_t>(args.heads.first_list + member) * args.target.rows + row;
    std::uint32_t* words = bits + threadIdx.x / 32 * args.word_count;
    int marked = 0;
    for (int w = 0; w < args.word_count; ++w) {
        const int J = w * 32 + lane;
        bool take = false;
        if (J < end) take = in_table ? table[local + covered.whole - J + 1] != 0 : covered.at(first, last, J);
        const unsigned word = __ballot_sync(every_lane, take);
        marked += __popc(word);
        if (lane == 0) words[w] = word;
    }
    __syncwarp();
    for (int w = lane; w < args.word_count; w += 32) args.words[list_row * args.word_count + w] = words[w];
    int single = 0;
    SingleKeys(args, list_row, words).each(lane, [&](int, unsigned taken) { single += __popc(taken); });
    if (lane == 0) {
        args.counts[list_row] = marked;
        args.key_counts[list_row] = single;
    }
}

struct FillKeys {
    MInferenceArgs args;
    std::int32_t* to;
    __device__ __forceinline__ void operator()(std::int64_t row, std::int64_t begin, int lane) const {
        extern __shared__ std::uint32_t bits[];
        std::uint32_t* words = bits + threadIdx.x / 32 * args.word_count;
        if (args.key_counts[row] == 0) return;
        __syncwarp();
        for (int w = lane; w < args.word_count; w += 32) words[w] = args.words[row * args.word_count + w];
        __syncwarp();
        std::int32_t* out = to + begin;
        SingleKeys(args, row, words).each(lane, [&](int key, unsigned taken) {
            if ((taken >> lane & 1) != 0) out[__popc(taken & ((1u << lane) - 1))] = key;
            out += __popc(taken);
        });
    }
};

}  // namespace

cudaError_t launch_minference_keep(const MInferenceArgs& args, int longest, cudaStream_t stream) {
    const dim3 grid(search_blocks, args.heads.count, 2 * args.batch.sequences);
    return launch_search(keep_largest, grid, longest, stream, args);
}

cudaError_t launch_minference_rows(const MInferenceArgs& args, cudaStream_t stream) {
    const int bytes = args.word_count * (row_warps * 4 + 32) + 64;
    const cudaError_t error = cudaFuncSetAttribute(mark_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    const dim3 grid((args.target.rows + row_warps - 1) / row_warps, args.heads.count);
    return launch_overlapping(mark_rows, grid, row_threads, bytes, stream, args);
}

cudaError_t launch_minference_keys(const MInferenceArgs& args, int mask_lists, std::int64_t* offsets,
                                   std::int32_t* keys, cudaStream_t stream) {
    const std::int64_t rows = static_cast<std::int64_t>(args.target.lists) * args.target.rows;
    const std::int64_t mask_rows = static_cast<std::int64_t>(mask_lists) * args.target.rows;
    return launch_fill(FillKeys{args, keys}, args.key_counts, rows, mask_rows, offsets, stream,
                       args.word_count * (fill_threads / 32) * 4);
}

}  // namespace sparseattn::cuda::hopper
