/// \file
/// Where tiles are fewer than would keep the device busy, long lists are cut: the plan of the pieces, made on the
/// device from the lengths of the lists, and the sum of their results.

#include <cuda_bf16.h>

#include "cuda/hopper/forward_plan.cuh"
#include "cuda/hopper/ptx.cuh"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int most_threads = 1024, few_threads = 256;
constexpr int bins = 32;  // of lengths, by which pieces are sorted

/// What the block that plans shares.
struct PlanStorage {
    int steps[most_planned_tiles];
    int passes[most_planned_tiles];
    int first_item[most_planned_tiles];
    int first_slot[most_planned_tiles];
    int first_merge[most_planned_tiles];
    PlanTotals all;
    int limit[most_waves];  // longest piece when there are at most (i + 1) x teams pieces; 0: impossible
    int bin[bins];
    int slots, merges;
};

/// Reads the lengths of all lists.
__device__ void measure(const ForwardArgs& args, int tiles, PlanStorage& shared) {
    for (int base = 0; base < tiles; base += static_cast<int>(blockDim.x)) {
        const int tile = base + static_cast<int>(threadIdx.x);
        TileLength length{0, 0};
        if (tile < tiles) {
            length = tile_length(args, tile);
            shared.steps[tile] = length.steps;
            shared.passes[tile] = length.passes;
        }
        const int longest = __reduce_max_sync(0xffffffffu, length.steps);
        const int passes = __reduce_add_sync(0xffffffffu, length.passes);
        const auto steps =
            warp_sum(static_cast<unsigned long long>(length.steps) * static_cast<unsigned>(length.passes));
        if (threadIdx.x % 32 == 0 && passes > 0) {
            atomicMax(&shared.all.longest, longest);
            atomicAdd(&shared.all.passes, passes);
            atomicAdd(&shared.all.steps, steps);
        }
    }
}

/// Cuts the lists evenly. One warp per tile.
__device__ void write_pieces(const ForwardArgs& args, int tiles, int limit, const PlanStorage& shared) {
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    const int warps = static_cast<int>(blockDim.x / 32), parts = args.schedule.parts;
    for (int tile = warp; tile < tiles; tile += warps) {
        const int steps = shared.steps[tile], pieces = ceil_div(steps, limit);
        for (int i = lane; i < pieces * shared.passes[tile]; i += 32) {
            const int part = i / pieces, number = i % pieces;
            const StepRange range = piece_steps(steps, pieces, number);
            const int place = tile * parts + part, slot = shared.first_slot[tile] + i;
            args.pieces.items[shared.first_item[tile] + i] = {place, range.begin, range.steps, pieces > 1 ? slot : -1};
            if (pieces > 1 && number == 0) {
                args.pieces.merges[shared.first_merge[tile] + part] = {place, pieces, 0, slot};
            }
        }
    }
}

/// Fills `items`, longest first, and `merges`. One thread block.
__global__ void __launch_bounds__(most_threads) plan_pieces(const __grid_constant__ ForwardArgs args) {
    __shared__ PlanStorage shared;
    dependents_may_launch();
    const Schedule& schedule = args.schedule;
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    const int warp = thread / 32, lane = thread % 32;
    const int tiles = schedule.rows * schedule.units;
    if (thread < bins) shared.bin[thread] = 0;
    if (thread == 0) {
        shared.all = {0, 0, 0};
        shared.slots = shared.merges = 0;
        *schedule.counter = 0;
    }
    __syncthreads();
    measure(args, tiles, shared);
    __syncthreads();
    if (warp < most_waves) {
        const auto pieces = [&](int limit) {
            int count = 0;
            for (int tile = lane; tile < tiles; tile += 32) {
                count += ceil_div(shared.steps[tile], limit) * shared.passes[tile];
            }
            return __reduce_add_sync(0xffffffffu, count);
        };
        const int limit = shortest_limit(shared.all, (warp + 1) * args.pieces.teams, pieces);
        if (lane == 0) shared.limit[warp] = limit;
    }
    __syncthreads();
    const int limit = choose_limit(shared.all, shared.limit);

    const auto bin_of = [&](int steps, int pieces) {  // longest first
        return bins - 1 - static_cast<int>(static_cast<std::int64_t>(ceil_div(steps, pieces)) * (bins - 1) / limit);
    };
    for (int tile = thread; tile < tiles; tile += threads) {
        const int pieces = ceil_div(shared.steps[tile], limit);
        atomicAdd(&shared.bin[bin_of(shared.steps[tile], pieces)], pieces * shared.passes[tile]);
    }
    __syncthreads();
    if (warp == 0) {  // where each bin begins
        const int own = shared.bin[lane], before = warp_sum_before(own, lane);
        shared.bin[lane] = before;
        if (lane == 31) args.pieces.counts[0] = before + own;
    }
    __syncthreads();
    for (int tile = thread; tile < tiles; tile += threads) {
        const int passes = shared.passes[tile], pieces = ceil_div(shared.steps[tile], limit);
        shared.first_item[tile] = atomicAdd(&shared.bin[bin_of(shared.steps[tile], pieces)], pieces * passes);
        if (pieces > 1) {
            shared.first_slot[tile] = atomicAdd(&shared.slots, pieces * passes);
            shared.first_merge[tile] = atomicAdd(&shared.merges, passes);
        }
    }
    __syncthreads();
    if (thread == 0) args.pieces.counts[1] = shared.merges;
    write_pieces(args, tiles, limit, shared);
}

/// Which query and head row `row` of a cut tile is; false when it is none.
struct MergedRow {
    int branch;
    std::int64_t token;
    int head;
};
__device__ __forceinline__ bool find_row(const ForwardArgs& args, int place, int row, MergedRow& found) {
    const Schedule& schedule = args.schedule;
    const int tile = place / schedule.parts, unit = tile % schedule.units, block_row = tile / schedule.units;
    found.branch = unit % schedule.branches;
    const Layout& layout = args.branch[found.branch].layout;
    int query = row, head = 0;
    if (schedule.tokens > 0) {  // a group
        query = place % schedule.parts * schedule.tokens + row / schedule.heads_per_unit;
        head = row % schedule.heads_per_unit;
        if (row >= schedule.tokens * schedule.heads_per_unit) return false;
    } else if (schedule.heads_per_unit == 2) {  // folded
        query = row % 64;
        head = row / 64;
    }
    if (query >= layout.block) return false;
    const int sequence = layout.row_sequence[block_row];
    query += (block_row - layout.row_begin[sequence]) * layout.block;
    found.token = args.batch.query_offsets[sequence] + static_cast<std::int64_t>(query);
    found.head = unit_head(schedule, unit) + head;
    return found.token < args.batch.query_offsets[sequence + 1];
}

constexpr int merge_warps = 8;

/// One thread block per row of a tile whose list was cut; its warps share the pieces.
__global__ void __launch_bounds__(32 * merge_warps) merge_pieces(const __grid_constant__ ForwardArgs args) {
    __shared__ float4 values[merge_warps][64];
    __shared__ float sums[merge_warps];
    const ListPieces& pieces = args.pieces;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int head_dim = args.head_dim;
    dependents_may_launch();  // the next call, where it has no plan to wait for
    wait_for_previous_kernel();
    const int count = __ldcg(pieces.counts + 1) * pieces.slot_rows;
    for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
        const int4 merge = __ldcg(reinterpret_cast<const int4*>(pieces.merges + i / pieces.slot_rows));
        const int row = i % pieces.slot_rows;
        MergedRow found;
        if (!find_row(args, merge.x, row, found)) continue;
        const std::int64_t first = static_cast<std::int64_t>(merge.w) * pieces.slot_rows + row;
        const auto row_of = [&](int piece) { return first + static_cast<std::int64_t>(piece) * pieces.slot_rows; };
        float highest = -INFINITY;
        for (int piece = lane; piece < merge.y; piece += 32) {
            highest = fmaxf(highest, __ldcg(pieces.lse + row_of(piece)));
        }
        for (int distance = 16; distance > 0; distance /= 2) {
            highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, distance));
        }
        float sum = 0;
        float4 value[2] = {};  // channels 4 lane, ... and 128 more
#pragma unroll 4
        for (int piece = warp; piece < merge.y; piece += merge_warps) {
            const float lse = __ldcg(pieces.lse + row_of(piece));
            const float weight = highest == -INFINITY ? 0.0f : expf(lse - highest);
            const auto* from = reinterpret_cast<const float4*>(pieces.out + row_of(piece) * head_dim) + lane;
            sum += weight;
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                if (4 * lane + 128 * c >= head_dim) continue;
                const float4 x = __ldcg(from + 32 * c);
                value[c] = make_float4(fmaf(weight, x.x, value[c].x), fmaf(weight, x.y, value[c].y),
                                       fmaf(weight, x.z, value[c].z), fmaf(weight, x.w, value[c].w));
            }
        }
        if (lane == 0) sums[warp] = sum;
        values[warp][lane] = value[0];
        values[warp][lane + 32] = value[1];
        __syncthreads();
        float total = 0;
        for (int other = 0; other < merge_warps; ++other) total += sums[other];
        const ForwardBranch& branch = args.branch[found.branch];
        if (thread < head_dim) {
            float channel = 0;
            for (int other = 0; other < merge_warps; ++other) {
                channel += reinterpret_cast<const float*>(values[other])[thread];
            }
            static_cast<__nv_bfloat16*>(
                branch.out.data)[found.token * branch.out.token_stride + found.head * branch.out.head_stride + thread] =
                __float2bfloat16(total > 0 ? channel / total : 0.0f);
        }
        if (thread == 0) {
            branch.lse.data[found.token * branch.lse.token_stride + found.head * branch.lse.head_stride] =
                total > 0 ? highest + logf(total) : -INFINITY;
        }
        __syncthreads();  // before `values` is written again
    }
}

}  // namespace

cudaError_t launch_plan(const ForwardArgs& args, cudaStream_t stream) {
    const int threads = args.schedule.tiles > few_threads ? most_threads : few_threads;
    plan_pieces<<<1, threads, 0, stream>>>(args);
    return cudaGetLastError();
}

cudaError_t launch_merge(const ForwardArgs& args, int grid, cudaStream_t stream) {
    cudaLaunchAttribute overlap{};  // the launch itself runs under the kernel that computes the pieces
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(32 * merge_warps);
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, merge_pieces, args);
}

}  // namespace sparseattn::cuda::hopper
