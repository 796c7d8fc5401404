/// \file
/// Where the last queries of a head look. Two passes over the products with all keys: the first for the maximum and sum
/// of each query's softmax, the second for the softmax itself, summed by key and by distance.
///
/// One warp loads, two warpgroups compute, each 64 queries of its own; heads of a group share the keys.

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/profile_args.hpp"
#include "cuda/hopper/wgmma.cuh"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int tail_threads = 288;
constexpr int panel_bytes = 64 * swizzle_row;  // 64 channels of 64 tokens
constexpr int share_pitch = 72;                // floats of a row of shares: stores and sums meet no bank twice
constexpr int scores_of_thread = tail_keys / 2;

template <bool Sums>
constexpr int tail_stages = Sums ? 2 : 3;

template <bool Sums>
constexpr int tail_bytes(int panels) {
    return 1024 + (2 + tail_stages<Sums>)*panels * panel_bytes + (Sums ? 2 * slot_rows * share_pitch * 4 : 0);
}

/// The queries of one slot in one sequence.
struct SlotRows {
    int first;  // query of the sequence
    int count;
    int position;  // among the keys, of the first

    __device__ __forceinline__ SlotRows(const TailArgs& args, int slot, const SequenceSpan& span) {
        const int tail = min(args.tail, span.queries), part = slot % args.parts;
        first = span.queries - tail + part * slot_rows;
        count = max(min(tail - part * slot_rows, slot_rows), 0);
        position = first + span.keys - span.queries;
    }
};

template <int Stages>
__device__ __forceinline__ void load_tail(const TailArgs& args, unsigned char* query, unsigned char* key,
                                          Barrier* query_full, Barrier* full, Barrier* empty, const SequenceSpan& span,
                                          int first_key, int tiles) {
    const int pair = blockIdx.y;
    const int slot_bytes = args.panels * panel_bytes;
    int key_head = 0;
    barrier_expect(query_full, 2 * slot_bytes);
    for (int i = 1; i >= 0; --i) {
        int member = args.heads.slot_member[2 * pair + i];
        if (member < 0) member = args.heads.slot_member[2 * pair];
        key_head = args.heads.key_head[member];
        const SlotRows rows(args, 2 * pair + i, span);
        for (int panel = 0; panel < args.panels; ++panel) {
            tensor_load(query + i * slot_bytes + panel * panel_bytes, &args.query, query_full, panel * 64,
                        args.heads.head[member], span.query_begin + rows.first);
        }
    }
    Ring<Stages> ring;
    for (int tile = 0; tile < tiles; ++tile) {
        barrier_wait(&empty[ring.stage], ring.phase ^ 1);
        barrier_expect(&full[ring.stage], slot_bytes);
        for (int panel = 0; panel < args.panels; ++panel) {
            tensor_load(key + ring.stage * slot_bytes + panel * panel_bytes, &args.key, &full[ring.stage], panel * 64,
                        key_head, span.key_begin + first_key + tile * tail_keys);
        }
        ring.next();
    }
}

/// Running maximum and sum of exponentials of one row.
struct RunningTop {
    float top = -INFINITY, sum = 0;

    __device__ __forceinline__ void merge(float other_top, float other_sum, float scale_log2) {
        const float most = fmaxf(top, other_top);
        if (most == -INFINITY) return;
        sum = sum * exp2_fast((top - most) * scale_log2) + other_sum * exp2_fast((other_top - most) * scale_log2);
        top = most;
    }
    __device__ __forceinline__ void merge_quad(float scale_log2) {
#pragma unroll
        for (int distance = 1; distance <= 2; distance *= 2) {
            const float other_top = __shfl_xor_sync(0xffffffffu, top, distance);
            const float other_sum = __shfl_xor_sync(0xffffffffu, sum, distance);
            merge(other_top, other_sum, scale_log2);
        }
    }
};

/// The scores of a thread's row `half`, those of keys past `last` (in the tile) left out.
__device__ __forceinline__ void hide(float (&acc)[scores_of_thread], int half, int last, int lane) {
#pragma unroll
    for (int i = 0; i < scores_of_thread / 2; ++i) {
        const int column = 8 * (i / 2) + 2 * (lane % 4) + i % 2;
        if (column > last) acc[4 * (i / 2) + 2 * half + i % 2] = -INFINITY;
    }
}

__device__ __forceinline__ void add_tops(RunningTop& own, const float (&acc)[scores_of_thread], int half,
                                         float scale_log2) {
    float top = own.top;
#pragma unroll
    for (int i = 0; i < scores_of_thread / 2; ++i) top = fmaxf(top, acc[4 * (i / 2) + 2 * half + i % 2]);
    if (top == -INFINITY) return;
    const float base = top * scale_log2;
    float sum = own.sum * exp2_fast((own.top - top) * scale_log2);
#pragma unroll
    for (int i = 0; i < scores_of_thread / 2; ++i) {
        sum += exp2_fast(fmaf(acc[4 * (i / 2) + 2 * half + i % 2], scale_log2, -base));
    }
    own.top = top;
    own.sum = sum;
}

/// Sums of a slot's 64 x 64 shares, a thread a column or a pair of diagonals: 64 additions each, always in one order.
__device__ __forceinline__ void sum_shares(const TailArgs& args, const float* shares, int slot, const SlotRows& rows,
                                           const SequenceSpan& span, int first_key, bool columns, int place) {
    const std::int64_t base = static_cast<std::int64_t>(slot) * args.batch.keys + span.key_begin;
    if (columns) {
        float sum = 0;
#pragma unroll 16
        for (int r = 0; r < slot_rows; ++r) sum += shares[r * share_pitch + place];
        if (first_key + place < span.keys) args.vertical[base + first_key + place] = sum;
        return;
    }
    // Row r meets key r - place of the tile, or r - place + 64: two straight lines through the shares.
    const float *near_line = shares - place, *far_line = near_line + tail_keys;
    float near = 0, far = 0;
#pragma unroll 16
    for (int r = 0; r < slot_rows; ++r) {
        const bool is_near = r >= place;
        const float share = (is_near ? near_line : far_line)[r * (share_pitch + 1)];
        if (is_near) {
            near += share;
        } else {
            far += share;
        }
    }
    const int distance = rows.position - first_key + place;  // of row r from key r - place
    if (distance >= 0 && distance < span.keys) args.nearer[base + distance] = near;
    if (distance >= tail_keys && distance - tail_keys < span.keys) args.farther[base + distance - tail_keys] = far;
}

/// What the exponents of the slot's rows are reduced by, from the maxima and sums of all splits; 64 of the warpgroup's
/// threads a row each.
__device__ __forceinline__ void find_bases(const TailArgs& args, const float2* tops, int splits, float* bases) {
    const int row = threadIdx.x % 128;
    if (row >= slot_rows) return;
    RunningTop all;
    for (int split = 0; split < splits; ++split) {
        const float2 part = tops[split * slot_rows + row];
        all.merge(part.x, part.y, args.scale_log2);
    }
    // Rows past the last query have no sum; their shares are 0 whatever is subtracted.
    bases[row] = all.top == -INFINITY ? 0.0f : all.top * args.scale_log2 + __log2f(all.sum);
}

/// The shares of a thread's row `half`.
__device__ __forceinline__ void store_shares(const float (&acc)[scores_of_thread], int half, float scale_log2,
                                             float base, float* row) {
#pragma unroll
    for (int g = 0; g < tail_keys / 8; ++g) {
        const float2 pair = {exp2_fast(fmaf(acc[4 * g + 2 * half], scale_log2, -base)),
                             exp2_fast(fmaf(acc[4 * g + 2 * half + 1], scale_log2, -base))};
        *reinterpret_cast<float2*>(row + 8 * g) = pair;
    }
}

/// The scores of one tile.
__device__ __forceinline__ void multiply_keys(const unsigned char* query, const unsigned char* key, int panels,
                                              float (&acc)[scores_of_thread]) {
    product_fence();
    for (int panel = 0; panel < panels; ++panel) {
        const std::uint64_t a = operand(query + panel * panel_bytes), b = operand(key + panel * panel_bytes);
#pragma unroll
        for (int k = 0; k < 4; ++k) product(acc, advance(a, k * 32), advance(b, k * 32), panel + k > 0);
    }
    product_commit();
    product_wait<0>();
    pin(acc);
}

template <bool Sums>
__device__ __forceinline__ void compute_tail(const TailArgs& args, const unsigned char* query, const unsigned char* key,
                                             float* shares, float* bases, Barrier* query_full, Barrier* full,
                                             Barrier* empty, NamedBarriers<1, 2, 128>& each, const SequenceSpan& span,
                                             int first_key, int tiles) {
    const int lane = threadIdx.x % 32, warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4;
    const int slot = 2 * blockIdx.y + warpgroup, slot_bytes = args.panels * panel_bytes;
    const int own_row = warp * 16 + lane / 4;  // and 8 below
    const bool real = args.heads.slot_member[slot] >= 0;
    const SlotRows rows(args, slot, span);
    float2* tops =
        args.tops + (static_cast<std::int64_t>(slot) * args.batch.sequences + blockIdx.z) * args.splits * slot_rows;
    float base[2] = {0, 0};
    RunningTop running[2];
    if constexpr (Sums) {
        bases += warpgroup * slot_rows;
        find_bases(args, tops, (span.keys + args.span - 1) / args.span, bases);
        each.sync(warpgroup);
        for (int half = 0; half < 2; ++half) base[half] = bases[own_row + 8 * half];
        shares += warpgroup * slot_rows * share_pitch;
    }
    barrier_wait(query_full, 0);
    Ring<tail_stages<Sums>> ring;
    float acc[scores_of_thread];
    for (int tile = 0; tile < tiles; ++tile, ring.next()) {
        const int tile_key = first_key + tile * tail_keys;
        barrier_wait(&full[ring.stage], ring.phase);
        multiply_keys(query + warpgroup * slot_bytes, key + ring.stage * slot_bytes, args.panels, acc);
        if (lane == 0) barrier_arrive(&empty[ring.stage]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = own_row + 8 * half, last = row < rows.count ? rows.position + row - tile_key : -1;
            if (last < tail_keys - 1) hide(acc, half, last, lane);
            if constexpr (!Sums) add_tops(running[half], acc, half, args.scale_log2);
        }
        if constexpr (Sums) {
            if (tile > 0) each.sync(warpgroup);  // the sums of the tile before are formed
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                store_shares(acc, half, args.scale_log2, base[half],
                             shares + (own_row + 8 * half) * share_pitch + 2 * (lane % 4));
            }
            each.sync(warpgroup);
            const bool columns = (warp / 2 + warpgroup) % 2 == 0;  // warpgroups take turns at the dearer half
            if (real) sum_shares(args, shares, slot, rows, span, tile_key, columns, threadIdx.x % 64);
        }
        pin(acc);
    }
    if constexpr (!Sums) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            running[half].merge_quad(args.scale_log2);
            const float2 top = make_float2(running[half].top, running[half].sum);
            if (lane % 4 == 0) tops[blockIdx.x * slot_rows + own_row + 8 * half] = top;
        }
    }
}

template <bool Sums>
__global__ void __launch_bounds__(tail_threads, 2) tail_kernel(const __grid_constant__ TailArgs args) {
    extern __shared__ unsigned char raw[];
    constexpr int stages = tail_stages<Sums>;
    __shared__ Barrier query_full, full[stages], empty[stages];
    __shared__ NamedBarriers<1, 2, 128> each;  // warpgroup
    __shared__ float bases[2 * slot_rows];
    unsigned char* query = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
    unsigned char* key = query + 2 * args.panels * panel_bytes;
    float* shares = reinterpret_cast<float*>(key + stages * args.panels * panel_bytes);
    if (threadIdx.x == 0) {
        barrier_init(&query_full, 1);
        for (int i = 0; i < stages; ++i) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8);
        }
        each.init();
        barrier_init_fence();
    }
    __syncthreads();
    dependents_may_launch();
    wait_for_previous_kernel();
    const SequenceSpan span(args.batch, blockIdx.z);
    const int first_key = blockIdx.x * args.span;
    const int tiles = (min(span.keys - first_key, args.span) + tail_keys - 1) / tail_keys;
    if (span.queries == 0 || first_key >= span.keys) return;
    if (threadIdx.x == 256) {
        load_tail<stages>(args, query, key, &query_full, full, empty, span, first_key, tiles);
    } else if (threadIdx.x < 256) {
        compute_tail<Sums>(args, query, key, shares, bases, &query_full, full, empty, each, span, first_key, tiles);
    }
}

template <bool Sums>
cudaError_t launch_tail(const TailArgs& args, int longest, cudaStream_t stream) {
    const int bytes = tail_bytes<Sums>(args.panels);
    const cudaError_t error =
        cudaFuncSetAttribute(tail_kernel<Sums>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    const dim3 grid((longest + args.span - 1) / args.span, args.heads.slots / 2, args.batch.sequences);
    return launch_overlapping(tail_kernel<Sums>, grid, tail_threads, bytes, stream, args);
}

constexpr int fold_threads = 128;

/// One block of keys (and of distances) of a member in a sequence a thread block.
__global__ void __launch_bounds__(fold_threads) fold_kernel(const __grid_constant__ FoldArgs args) {
    __shared__ float part[3][fold_threads / 32];
    dependents_may_launch();
    wait_for_previous_kernel();
    const TailArgs& tail = args.tail;
    const int sequence = blockIdx.z, member = blockIdx.y, J = blockIdx.x, block = args.block;
    const SequenceSpan span(tail.batch, sequence);
    if (span.queries == 0 || J * block >= span.keys || span.keys <= args.dense_keys) return;
    const int slot = tail.heads.slot[member];
    const int end = min((J + 1) * block, span.keys);
    float sums[3] = {0, 0, 0};
    for (int i = J * block + threadIdx.x; i < end; i += fold_threads) {
        float column = 0, behind = 0;
        for (int p = 0; p < tail.parts; ++p) {
            const SlotRows rows(tail, slot + p, span);
            if (rows.count == 0) continue;
            const std::int64_t at = static_cast<std::int64_t>(slot + p) * tail.batch.keys + span.key_begin + i;
            column += tail.vertical[at];
            // Tiles begin at keys 0, 64, ...; the last one's nearest distance, and the first one's farthest.
            const int nearest = rows.position - (span.keys - 1) / tail_keys * tail_keys;
            if (i >= nearest && i < rows.position + tail_keys) behind += tail.nearer[at];
            if (i < rows.position) behind += tail.farther[at];
        }
        const std::int64_t to = static_cast<std::int64_t>(slot) * tail.batch.keys + span.key_begin + i;
        tail.vertical[to] = column;
        tail.nearer[to] = behind;
        sums[0] += column;
        sums[1] += behind;
    }
    if (args.columns == nullptr) return;
    const int place = first_block(span.key_begin, block, sequence) + J;
    const float* mean =
        args.mean_keys +
        (static_cast<std::int64_t>(tail.heads.key_head[member]) * args.block_room + place) * args.head_dim;
    const float* query =
        args.mean_tails + (static_cast<std::int64_t>(member) * tail.batch.sequences + sequence) * args.head_dim;
    for (int c = threadIdx.x; c < args.head_dim; c += fold_threads) sums[2] += query[c] * mean[c];
    for (int k = 0; k < 3; ++k) {
        for (int distance = 16; distance > 0; distance /= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], distance);
        if (threadIdx.x % 32 == 0) part[k][threadIdx.x / 32] = sums[k];
    }
    __syncthreads();
    if (threadIdx.x < 3) {
        float sum = 0;
        for (int w = 0; w < fold_threads / 32; ++w) sum += part[threadIdx.x][w];
        float* to = threadIdx.x == 0 ? args.columns : threadIdx.x == 1 ? args.distances : args.logits;
        to[static_cast<std::int64_t>(member) * args.block_room + place] = sum;
    }
}

}  // namespace

cudaError_t launch_tail_tops(const TailArgs& args, int longest, cudaStream_t stream) {
    return launch_tail<false>(args, longest, stream);
}
cudaError_t launch_tail_sums(const TailArgs& args, int longest, cudaStream_t stream) {
    return launch_tail<true>(args, longest, stream);
}
cudaError_t launch_fold(const FoldArgs& args, int longest, cudaStream_t stream) {
    const dim3 grid((longest + args.block - 1) / args.block, args.tail.heads.count, args.tail.batch.sequences);
    return launch_overlapping(fold_kernel, grid, fold_threads, 0, stream, args);
}

}  // namespace sparseattn::cuda::hopper
