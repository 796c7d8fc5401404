#include <algorithm>

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/selection.cuh"
#include "cuda/hopper/xattention_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int most_warps = 4;  // of a thread block; each works on a row of its own

/// Sums and extremes over a warp, in every lane and always in the same order.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(every_lane, value, distance);
    return value;
}

/// Blocks taken: those of mass above `least`, and of those equal to it the ones below `tie_end`. Masses are not
/// negative, so that their bits order like they do; forced blocks hold -1.
struct MassCut {
    int least = 0x7fffffff;
    int tie_end = 0;
    __device__ __forceinline__ bool takes(float mass, int block) const {
        const int bits = __float_as_int(mass);
        return bits > least || (bits == least && block < tie_end);
    }
};
constexpr MassCut take_all{0, 0x7fffffff};

/// The masses of a row, searched by one warp. Loops unrolled `Unroll` times.
template <int Unroll>
struct RowMasses {
    const float* masses;  // shared
    int* few;             // shared, [32]
    int count, lane;

    struct Part {
        double sum;
        int blocks;
    };
    /// Those whose bits are at least `least`.
    __device__ __forceinline__ Part from(int least) const {
        double sum = 0;
        int blocks = 0;
#pragma unroll Unroll
        for (int block = lane; block < count; block += 32) {
            const float mass = masses[block];
            if (__float_as_int(mass) >= least) {
                sum += static_cast<double>(mass);
                ++blocks;
            }
        }
        return {warp_sum(sum), static_cast<int>(__reduce_add_sync(every_lane, blocks))};
    }
    /// The cut among at most 32 blocks with bits in [low, high), a lane each: every lane sums those before its own.
    __device__ __forceinline__ MassCut cut_few(int low, int high, double required) const {
        int found = 0;
#pragma unroll Unroll
        for (int base = 0; base < count; base += 32) {
            const int bits = base + lane < count ? __float_as_int(masses[base + lane]) : -1;
            const unsigned inside = __ballot_sync(every_lane, bits >= low && bits < high);
            if ((inside >> lane & 1) != 0) few[found + __popc(inside & ((1u << lane) - 1))] = base + lane;
            found += __popc(inside);
        }
        __syncwarp();
        const int block = lane < found ? few[lane] : 0;
        const float mass = lane < found ? masses[block] : -1.0f;
        double sum = static_cast<double>(mass);
        int before = 0;
#pragma unroll Unroll
        for (int other = 0; other < found; ++other) {
            const float theirs = __shfl_sync(every_lane, mass, other);
            if (theirs > mass || (theirs == mass && other < lane)) {  // lanes hold ascending blocks
                sum += static_cast<double>(theirs);
                ++before;
            }
        }
        const bool reaches = lane < found && sum >= required;
        const int first = __reduce_min_sync(every_lane, reaches ? before : 32);
        const unsigned crossing = __ballot_sync(every_lane, reaches && before == first);
        if (crossing == 0) return {low, 0x7fffffff};  // but for rounding: all of them
        const int holder = __ffs(crossing) - 1;
        return {__float_as_int(__shfl_sync(every_lane, mass, holder)), __shfl_sync(every_lane, block, holder) + 1};
    }
    /// One past the place of the `wanted`-th (from 1) block with these bits.
    __device__ __forceinline__ int tie_end(int bits, int wanted) const {
#pragma unroll 1
        for (int base = 0; base < count; base += 32) {
            const int block = base + lane;
            unsigned ties = __ballot_sync(every_lane, block < count && __float_as_int(masses[block]) == bits);
            if (__popc(ties) >= wanted) {
                for (; wanted > 1; --wanted) ties &= ties - 1;
                return base + __ffs(ties);
            }
            wanted -= __popc(ties);
        }
        return count;
    }
    /// The smallest set of largest masses, ties lower block first, whose sum reaches `required`; `all` of those not
    /// forced.
    __device__ __forceinline__ MassCut cut(double required, const Part& all) const {
        if (required <= 0) return {};
        if (!(all.sum >= required)) return take_all;  // they fall short, or one is NaN
        int least = 0x7fffffff, most = 0;
#pragma unroll Unroll
        for (int block = lane; block < count; block += 32) {
            const int bits = __float_as_int(masses[block]);
            least = bits >= 0 ? min(least, bits) : least;
            most = max(most, bits);
        }
        // The sum from `low` on reaches, that from `high` on does not.
        int low = __reduce_min_sync(every_lane, least), high = __reduce_max_sync(every_lane, most) + 1;
        Part at_low = all, at_high{};
#pragma unroll 1
        while (at_low.blocks - at_high.blocks > 32 && high - low > 1) {
            const int middle = low + (high - low) / 2;
            const Part part = from(middle);
            const bool reached = part.sum >= required;
            (reached ? low : high) = middle;
            (reached ? at_low : at_high) = part;
        }
        const double rest = required - at_high.sum;
        if (at_low.blocks - at_high.blocks <= 32) return cut_few(low, high, rest);
        // Only ties are left between them. Multiples of a float are exact here.
        const double each = __int_as_float(low);
        int wanted = max(1, static_cast<int>(rest / each));
        while (wanted > 1 && (wanted - 1) * each >= rest) --wanted;
        while (wanted * each < rest) ++wanted;
        return {low, tie_end(low, wanted)};
    }
};

/// factors[r, t] turn the sums that row r has in tile t into shares of the whole row: 32 / per_block lanes a row.
__device__ __forceinline__ void row_factors(const float2* tops, int count, int tiles, int per_block, float scale_log2,
                                            float* factors, int lane) {
    const int lanes = 32 / per_block, r = min(lane / lanes, count - 1), sub = lane % lanes;
    float top = -INFINITY;
#pragma unroll 4
    for (int t = sub; t < tiles; t += lanes) top = fmaxf(top, tops[t * strided_tile + r].x);
#pragma unroll 1
    for (int distance = lanes / 2; distance > 0; distance /= 2)
        top = fmaxf(top, __shfl_xor_sync(every_lane, top, distance));
    float total = 0;
#pragma unroll 4
    for (int t = sub; t < tiles; t += lanes) {
        const float2 own = tops[t * strided_tile + r];
        // A tile of -inf has sums of 0; a row of nothing else becomes NaN, as its softmax is.
        const float factor = own.x == -INFINITY ? 1.0f : exp2_fast((own.x - top) * scale_log2);
        if (lane / lanes < count) factors[r * tiles + t] = factor;
        total += factor * own.y;
    }
#pragma unroll 1
    for (int distance = lanes / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(every_lane, total, distance);
    const float scale = 1.0f / total;
    if (lane / lanes < count) {
#pragma unroll 1
        for (int t = sub; t < tiles; t += lanes) factors[r * tiles + t] *= scale;
    }
}

/// A mass from the sums of up to 16 strided rows.
template <int Rows>
__device__ __forceinline__ float block_mass(const float* sums, int pitch, const float* factors, int tiles, int count) {
    float own[Rows], mass = 0;
#pragma unroll
    for (int r = 0; r < Rows; ++r) own[r] = r < count ? __ldcs(sums + r * pitch) : 0.0f;
#pragma unroll
    for (int r = 0; r < Rows; ++r) mass = fmaf(own[r], r < count ? factors[r * tiles] : 0.0f, mass);
    return mass;
}

/// One (head, query block) a warp: its masses from the row sums of the tiles, then the cut, then the bits.
template <int PerBlock>
__global__ void __launch_bounds__(32 * most_warps)
    choose_blocks(const __grid_constant__ ChoiceArgs args, int warp_floats) {
    extern __shared__ float shared[];
    constexpr int unroll = PerBlock < 8 ? 4 : 1;  // more is slower from 8 on: registers, and instructions to fetch
    constexpr int unroll_masses = PerBlock < 8 ? 2 : 1;
    const XAttentionShape& shape = args.shape;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int member = blockIdx.y, in_part = blockIdx.x * (blockDim.x / 32) + warp;
    // Behind the score kernel, which waited itself: all that it does not write is there.
    if (args.sums == nullptr) wait_for_previous_kernel();
    const int row = args.first_row + min(in_part, args.rows - 1);
    const int sequence = args.target.row_sequence[row], local = row - args.target.row_begin[sequence];
    const int queries = shape.batch.query_offsets[sequence + 1] - shape.batch.query_offsets[sequence];
    const int keys = shape.batch.key_offsets[sequence + 1] - shape.batch.key_offsets[sequence];
    const RowSpan span(shape.block, shape.causal, local, queries, keys);
    dependents_may_launch();
    wait_for_previous_kernel();
    if (in_part >= args.rows) return;
    const std::int64_t list_row = static_cast<std::int64_t>(args.table.list[member]) * args.target.rows + row;
    std::uint32_t* words = args.words + list_row * args.word_count;
    if (args.sums == nullptr || keys == 0) {
#pragma unroll 1
        for (int w = lane; w < args.word_count; w += 32) {
            const int bits = span.end - w * 32;
            words[w] = bits >= 32 ? every_lane : bits > 0 ? (1u << bits) - 1 : 0;
        }
        if (lane == 0) args.counts[list_row] = max(span.end, 0);
        return;
    }

    constexpr int tile_blocks = tile_columns / PerBlock;
    const int tile_shift = __ffs(tile_blocks) - 1, strided = (queries + shape.stride - 1) / shape.stride;
    const int first = local * PerBlock, count = min(PerBlock, strided - first);
    const RowTile tile = args.plan.row_tiles[args.plan.row_tile_begin[sequence] + first / strided_tile];
    const int tiles = (span.end + tile_blocks - 1) / tile_blocks;
    const std::int64_t number = static_cast<std::int64_t>(member) * args.tiles + tile.begin - args.first_tile;
    const int in_tile = first % strided_tile;
    float* masses = shared + warp * warp_floats;
    float* factors = masses + args.word_count * 32;  // [count, tiles]
    row_factors(args.tops + number * strided_tile + in_tile, count, tiles, PerBlock, shape.scale_log2, factors, lane);
    __syncwarp();
    double rest = 0, held = 0;
    int rest_blocks = 0;
    const bool sink = shape.keep_sink, recent = shape.keep_recent;
#pragma unroll unroll_masses
    for (int block = lane; block < span.end; block += 32) {
        const int t = block >> tile_shift;
        const float* sums =
            args.sums + ((number + t) * strided_tile + in_tile) * tile_blocks + (block & (tile_blocks - 1));
        const float mass = block_mass<PerBlock>(sums, tile_blocks, factors + t, tiles, count);
        const bool forced = (sink && block == 0) || (recent && block >= span.own_begin && block < span.own_end);
        masses[block] = forced ? -1.0f : mass;
        if (args.masses != nullptr) args.masses[list_row * args.mass_stride + block] = mass;
        (forced ? held : rest) += static_cast<double>(mass);
        rest_blocks += forced ? 0 : 1;
    }
    __syncwarp();
    const RowMasses<unroll> row_masses{masses, reinterpret_cast<int*>(factors), span.end,
                                       lane};  // factors have done their part
    rest = warp_sum(rest);
    held = warp_sum(held);
    const MassCut cut = row_masses.cut(args.table.threshold[member] * (rest + held) - held,
                                       {rest, static_cast<int>(__reduce_add_sync(every_lane, rest_blocks))});
    int taken_blocks = 0;
#pragma unroll unroll
    for (int w = 0; w < args.word_count; ++w) {
        const int block = w * 32 + lane;
        const float mass = block < span.end ? masses[block] : 0.0f;
        const bool taken = block < span.end && (mass < 0 || cut.takes(mass, block));
        const unsigned word = __ballot_sync(every_lane, taken);
        taken_blocks += __popc(word);
        if (lane == 0) words[w] = word;
    }
    if (lane == 0) args.counts[list_row] = taken_blocks;
}

template <int PerBlock>
cudaError_t launch(const ChoiceArgs& args, int warp_floats, cudaStream_t stream) {
    const int warp_bytes = warp_floats * static_cast<int>(sizeof(float));
    const int warps = std::clamp(most_choice_bytes / warp_bytes, 1, most_warps);
    const cudaError_t error =
        cudaFuncSetAttribute(choose_blocks<PerBlock>, cudaFuncAttributeMaxDynamicSharedMemorySize, warps * warp_bytes);
    if (error != cudaSuccess) return error;
    return launch_overlapping(choose_blocks<PerBlock>, dim3((args.rows + warps - 1) / warps, args.heads), 32 * warps,
                              warps * warp_bytes, stream, args, warp_floats);
}

}  // namespace

cudaError_t launch_choice(const ChoiceArgs& args, int warp_floats, cudaStream_t stream) {
    switch (args.shape.block_columns()) {
        case 1:
            return launch<1>(args, warp_floats, stream);
        case 2:
            return launch<2>(args, warp_floats, stream);
        case 4:
            return launch<4>(args, warp_floats, stream);
        case 8:
            return launch<8>(args, warp_floats, stream);
        case 16:
            return launch<16>(args, warp_floats, stream);
        default:
            return cudaErrorNotSupported;
    }
}

}  // namespace sparseattn::cuda::hopper
