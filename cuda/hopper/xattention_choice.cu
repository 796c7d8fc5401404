#include <algorithm>

#include "cuda/hopper/xattention_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int threads = 128;
constexpr int warps = threads / 32;

/// A sum over the thread block, the same in every thread and from run to run.
struct BlockSum {
    double* partial;  // shared, [2][warps]
    int turn = 0;

    __device__ __forceinline__ double operator()(double value) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
        double* mine = partial + turn * warps;
        turn ^= 1;  // so that one barrier a sum is enough
        if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = value;
        __syncthreads();
        double sum = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) sum += mine[w];
        return sum;
    }
};

__device__ __forceinline__ std::uint32_t order_key(float value) {
    const std::uint32_t bits = __float_as_uint(value);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// As select/detail/cut.hpp: values above `key` are taken, and of those equal to it the ones below `tie_end`.
struct Cut {
    std::uint32_t key = 0xffffffffu;
    int tie_end = 0;
    __device__ __forceinline__ bool takes(float value, int index) const {
        const std::uint32_t k = order_key(value);
        return k > key || (k == key && index < tie_end);
    }
};

/// The smallest set of largest values, ties lower index first, whose sum reaches `required`; forced ones count nothing.
template <class Forced>
__device__ __forceinline__ Cut find_cut(const float* values, int count, const Forced& forced, double required,
                                        BlockSum& block_sum) {
    if (required <= 0) return {};
    const auto sum_where = [&](int end, const auto& takes) {
        double sum = 0;
        for (int i = threadIdx.x; i < end; i += threads) {
            if (takes(order_key(values[i])) && !forced(i)) sum += values[i];
        }
        return block_sum(sum);
    };
    const auto sum_from = [&](std::uint64_t key) {
        return sum_where(count, [=](std::uint32_t k) { return k >= key; });
    };
    std::uint64_t low = 0, high = std::uint64_t{1} << 32;
    if (!(sum_from(low) >= required)) return {0, count};
    low = 0x80000000u;  // no mass is negative
    while (high - low > 1) {
        const std::uint64_t middle = (low + high) / 2;
        (sum_from(middle) >= required ? low : high) = middle;
    }
    const auto key = static_cast<std::uint32_t>(low);
    const double rest = required - sum_from(high);
    int below = 0, tie_end = count;  // ties [0, below) fall short, [0, tie_end) suffice
    while (tie_end - below > 1) {
        const int middle = below + (tie_end - below) / 2;
        (sum_where(middle, [=](std::uint32_t k) { return k == key; }) >= rest ? tie_end : below) = middle;
    }
    return {key, tie_end};
}

/// The blocks that matter to a query block, as select/detail/problem.hpp has them.
struct Span {
    int end, own_begin, own_end;
};
__device__ __forceinline__ Span row_span(const XAttentionShape& shape, int row, int queries, int keys) {
    const int shift = keys - queries, blocks = (keys + shape.block - 1) / shape.block;
    const int last = min((row + 1) * shape.block, queries) - 1 + shift, first = row * shape.block + shift;
    Span span;
    span.end = min(shape.causal ? last / shape.block + 1 : blocks, blocks);
    span.own_begin = first < 0 ? 0 : first / shape.block;
    span.own_end = min(last < 0 ? 0 : last / shape.block + 1, blocks);
    return span;
}

/// One (head, query block) a thread block: its masses from the row sums of the tiles, then the cut, then the bits.
__global__ void __launch_bounds__(threads) choose_blocks(const __grid_constant__ ChoiceArgs args) {
    extern __shared__ float shared[];
    __shared__ double partial[2 * warps];
    const XAttentionShape& shape = args.shape;
    const int member = blockIdx.y, row = args.first_row + blockIdx.x;
    const int sequence = args.target.row_sequence[row], local = row - args.target.row_begin[sequence];
    const int queries = shape.batch.query_offsets[sequence + 1] - shape.batch.query_offsets[sequence];
    const int keys = shape.batch.key_offsets[sequence + 1] - shape.batch.key_offsets[sequence];
    const Span span = row_span(shape, local, queries, keys);
    const std::int64_t list_row = static_cast<std::int64_t>(args.table.list[member]) * args.target.rows + row;
    std::uint32_t* words = args.words + list_row * args.word_count;
    if (args.sums == nullptr || keys == 0) {
        for (int w = threadIdx.x; w < args.word_count; w += threads) {
            const int bits = span.end - w * 32;
            words[w] = bits >= 32 ? 0xffffffffu : bits > 0 ? (1u << bits) - 1 : 0;
        }
        return;
    }

    const int per_block = shape.block_columns(), tile_blocks = shape.tile_blocks();
    const int strided = (queries + shape.stride - 1) / shape.stride;
    const int first = local * per_block, count = min(per_block, strided - first);
    const RowTile tile = args.plan.row_tiles[args.plan.row_tile_begin[sequence] + first / strided_tile];
    const int tiles = (span.end + tile_blocks - 1) / tile_blocks;
    const std::int64_t number = static_cast<std::int64_t>(member) * args.tiles + tile.begin - args.first_tile;
    const int in_tile = first % strided_tile;
    float* factors = shared;  // [count, tiles]
    float* masses = shared + count * tiles;

    for (int r = threadIdx.x / 32; r < count; r += warps) {  // a warp a strided row
        const float2* tops = args.tops + number * strided_tile + in_tile + r;
        float top = -INFINITY;
        for (int t = threadIdx.x % 32; t < tiles; t += 32) top = fmaxf(top, tops[t * strided_tile].x);
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, distance));
        float total = 0;
        for (int t = threadIdx.x % 32; t < tiles; t += 32) {
            const float2 own = tops[t * strided_tile];
            // A tile of -inf has sums of 0; a row of nothing else becomes NaN, as its softmax is.
            const float factor = own.x == -INFINITY ? 1.0f : exp2f((own.x - top) * shape.scale_log2);
            factors[r * tiles + t] = factor;
            total += factor * own.y;
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffffu, total, distance);
        const float scale = 1.0f / total;
        for (int t = threadIdx.x % 32; t < tiles; t += 32) factors[r * tiles + t] *= scale;
    }
    __syncthreads();
    for (int block = threadIdx.x; block < span.end; block += threads) {
        const int t = block / tile_blocks;
        const float* sums = args.sums + ((number + t) * strided_tile + in_tile) * tile_blocks + block % tile_blocks;
        float mass = 0;
        for (int r = 0; r < count; ++r) mass = fmaf(sums[r * tile_blocks], factors[r * tiles + t], mass);
        masses[block] = mass;
        if (args.masses != nullptr) args.masses[list_row * args.mass_stride + block] = mass;
    }
    __syncthreads();

    const bool sink = shape.keep_sink, recent = shape.keep_recent;
    const auto forced = [=](int block) {
        return (sink && block == 0) || (recent && block >= span.own_begin && block < span.own_end);
    };
    BlockSum block_sum{partial};
    double all = 0, held = 0;
    for (int block = threadIdx.x; block < span.end; block += threads) {
        all += masses[block];
        if (forced(block)) held += masses[block];
    }
    const double total = block_sum(all);
    const double required = args.table.threshold[member] * total - block_sum(held);
    const Cut cut = find_cut(masses, span.end, forced, required, block_sum);
    for (int base = threadIdx.x - threadIdx.x % 32; base < args.word_count * 32; base += threads) {
        const int block = base + threadIdx.x % 32;
        const bool taken = block < span.end && (forced(block) || cut.takes(masses[block], block));
        const std::uint32_t word = __ballot_sync(0xffffffffu, taken);
        if (threadIdx.x % 32 == 0) words[base / 32] = word;
    }
}

}  // namespace

cudaError_t launch_choice(const ChoiceArgs& args, int shared_floats, cudaStream_t stream) {
    const int bytes = shared_floats * static_cast<int>(sizeof(float));
    if (bytes > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(choose_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (error != cudaSuccess) return error;
    }
    choose_blocks<<<dim3(args.rows, args.heads), threads, bytes, stream>>>(args);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
