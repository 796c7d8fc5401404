#pragma once
/// \file
/// Antidiagonal scores of all heads and sequences as one matrix product per tile of 128 strided rows, reduced on the
/// spot to the maximum of each row and the sums of its exponentials over the columns of each key block.
///
/// One warpgroup loads, two compute 64 rows each. They share the ring of operands but nothing else, so that one's
/// exponentials run while the other multiplies.

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/wgmma.cuh"
#include "cuda/hopper/xattention_args.hpp"
#include "cuda/hopper/xattention_plan.cuh"

namespace sparseattn::cuda::hopper {

template <int BlockColumns_>
struct ScoreShape {
    static constexpr int columns = tile_columns;
    static constexpr int block_columns = BlockColumns_;  // of a key block
    static constexpr int blocks = columns / block_columns;
    static constexpr int threads = 384;
    static constexpr int consumer_warps = 8;
    static constexpr int query_bytes = strided_tile * swizzle_row;
    static constexpr int key_bytes = columns * swizzle_row;
    static constexpr int stage_bytes = query_bytes + key_bytes;
    static constexpr int stages = 4;
    static constexpr int scores = columns / 2;  // of one thread
};

template <class Shape>
struct ScoreStorage {
    alignas(1024) unsigned char query[Shape::stages][Shape::query_bytes];
    alignas(1024) unsigned char key[Shape::stages][Shape::key_bytes];
    Barrier full[Shape::stages], empty[Shape::stages];
    Barrier landed[Shape::stages];  // instead of `full` where a row must still be cleared
    std::int32_t row_tile_begin[own_row_tiles + 1];
    RowTile row_tiles[own_row_tiles];
    TilePlace places[own_tiles];
    int warp_sum[Shape::threads / 32];
};

/// The plan, in shared or global memory.
struct TileList {
    const TilePlace *wholes, *halves;
    const RowTile* row_tiles;
};

/// One tile of one head.
struct ScoreTile {
    std::int64_t number;  // where its results go: (head of the table) * tiles + number of the tile
    int head;
    bool half;
    int first_row, first_column;  // in the sequence
    int query_begin, queries, key_begin, keys;
    bool clear;  // a short last row or column is followed by tokens of the next sequence
};

__device__ __forceinline__ ScoreTile find_score_tile(const ScoreArgs& args, const TileList& list, int index) {
    const int all_wholes = args.heads * args.wholes;
    const bool half = index >= all_wholes;  // behind all others, so that they fill the gaps at the end
    if (half) index -= all_wholes;
    const int tiles = half ? args.halves : args.wholes;
    const TilePlace* places = half ? list.halves : list.wholes;
    const int section = index / (tiles * args.span), inside = index - section * tiles * args.span;
    const int member = section * args.span + inside % args.span;
    const TilePlace place = places[inside / args.span];
    const RowTile rows = list.row_tiles[place.row_tile];
    const Batch& batch = args.shape.batch;
    ScoreTile tile;
    tile.half = half;
    tile.number = static_cast<std::int64_t>(member) * args.tiles + rows.begin + place.column - args.first_tile;
    tile.head = args.table.head[member];
    tile.first_row = rows.first;
    tile.first_column = place.column * tile_columns;
    tile.query_begin = batch.query_offsets[rows.sequence];
    tile.queries = batch.query_offsets[rows.sequence + 1] - tile.query_begin;
    tile.key_begin = batch.key_offsets[rows.sequence];
    tile.keys = batch.key_offsets[rows.sequence + 1] - tile.key_begin;
    const int mask = args.shape.stride - 1;
    const int last_row = tile.queries / args.shape.stride, last_column = tile.keys / args.shape.stride;
    tile.clear = ((tile.queries & mask) != 0 && last_row < tile.first_row + strided_tile &&
                  tile.query_begin + tile.queries < batch.queries) ||
                 ((tile.keys & mask) != 0 && last_column < tile.first_column + tile_columns &&
                  tile.key_begin + tile.keys < batch.keys);
    return tile;
}

/// Whether phase s of the strided row that holds the end of a sequence lies past that end.
__device__ __forceinline__ bool past_end(int phase, int tokens, int mask) {
    return (tokens & mask) != 0 && phase >= (tokens & mask);
}

/// Where a phase of the strided rows from the one of `token` on is found.
struct StridedPlace {
    const CUtensorMap* map;
    int phase, row;
    __device__ __forceinline__ StridedPlace(const StridedMap& strided, int token, int shift, int mask)
        : phase(token & mask), row(token >> shift) {
        const bool longer = phase < strided.rest;
        map = longer ? &strided.longer : &strided.full;
        if (!longer && strided.rows == 0) row += 1 << 24;  // nothing there: reads as zeros
    }
};

template <class Shape>
__device__ __forceinline__ void load_scores(const ScoreArgs& args, const TileList& list, ScoreStorage<Shape>& storage,
                                            int all) {
    Ring<Shape::stages> ring;
    const int stride = args.shape.stride, mask = stride - 1, shift = __ffs(stride) - 1;
    constexpr int half_bytes = Shape::key_bytes / 2;
    for (int index = blockIdx.x; index < all; index += gridDim.x) {
        const ScoreTile tile = find_score_tile(args, list, index);
        const int key_head = tile.head / args.group;
        for (int s = 0; s < stride; ++s) {
            const int query_phase = args.shape.reversed ? stride - 1 - s : s;
            const StridedPlace query(args.query, tile.query_begin + (tile.first_row << shift) + query_phase, shift,
                                     mask);
            const StridedPlace key(args.key, tile.key_begin + (tile.first_column << shift) + s, shift, mask);
            const bool clear =
                tile.clear && (past_end(query_phase, tile.queries, mask) || past_end(s, tile.keys, mask));
            for (int panel = 0; panel < args.panels; ++panel) {
                barrier_wait(&storage.empty[ring.stage], ring.phase ^ 1);
                Barrier* barrier = clear ? &storage.landed[ring.stage] : &storage.full[ring.stage];
                barrier_expect(barrier, Shape::query_bytes + (tile.half ? half_bytes : Shape::key_bytes));
                tensor_load(storage.query[ring.stage], query.map, barrier, panel * 64, tile.head, query.phase,
                            query.row);
                for (int half = 0; half < (tile.half ? 1 : 2); ++half) {
                    tensor_load(storage.key[ring.stage] + half * half_bytes, key.map, barrier, panel * 64, key_head,
                                key.phase, key.row + half * (tile_columns / 2));
                }
                ring.next();
            }
        }
    }
}

/// Clears, in the tiles that need it, the row past the end of a sequence where the next sequence's tokens were loaded.
template <class Shape>
__device__ __forceinline__ void clear_tails(const ScoreArgs& args, const TileList& list, ScoreStorage<Shape>& storage,
                                            int all, int lane) {
    const int stride = args.shape.stride, mask = stride - 1;
    std::uint32_t phases = 0;  // of the `landed` barriers
    int stage = 0;
    for (int index = blockIdx.x; index < all; index += gridDim.x) {
        const ScoreTile tile = find_score_tile(args, list, index);
        if (!tile.clear) {
            stage = (stage + stride * args.panels) % Shape::stages;
            continue;
        }
        const int row = tile.queries / stride - tile.first_row, column = tile.keys / stride - tile.first_column;
        for (int s = 0; s < stride; ++s) {
            const bool clear_row = past_end(args.shape.reversed ? stride - 1 - s : s, tile.queries, mask);
            const bool clear_column = past_end(s, tile.keys, mask);
            for (int panel = 0; panel < args.panels; ++panel) {
                if (clear_row || clear_column) {
                    barrier_wait(&storage.landed[stage], phases >> stage & 1);
                    phases ^= 1U << stage;
                    const uint4 zero = make_uint4(0, 0, 0, 0);
                    if (lane < 8 && clear_row && row < strided_tile) {
                        reinterpret_cast<uint4*>(storage.query[stage] + row * swizzle_row)[lane] = zero;
                    }
                    if (lane < 8 && clear_column && column >= 0 && column < Shape::columns) {
                        reinterpret_cast<uint4*>(storage.key[stage] + column * swizzle_row)[lane] = zero;
                    }
                    fence_async_shared();
                    __syncwarp();
                    if (lane == 0) barrier_arrive(&storage.full[stage]);
                }
                stage = stage + 1 == Shape::stages ? 0 : stage + 1;
            }
        }
    }
}

/// Sums of one row's exponentials over key blocks, each left in one lane of the quad: `store(block, sum)`. `value(i)`
/// is column 8 (i / 2) + 2 (lane % 4) + i % 2 of the tile. Always the same order of additions.
template <int Columns, int BlockColumns, class Value, class Store>
__device__ __forceinline__ float block_sums(const Value& value, const Store& store, int lane) {
    constexpr int groups = Columns / 8;
    const int quad = lane % 4;
    float total = 0;
    if constexpr (BlockColumns == 1) {
#pragma unroll
        for (int g = 0; g < groups; ++g) {
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                total += value(2 * g + b);
                store(8 * g + 2 * quad + b, value(2 * g + b));
            }
        }
    } else if constexpr (BlockColumns == 2) {
#pragma unroll
        for (int g = 0; g < groups; ++g) {
            const float sum = value(2 * g) + value(2 * g + 1);
            total += sum;
            store(4 * g + quad, sum);
        }
    } else if constexpr (BlockColumns == 4) {
#pragma unroll
        for (int g = 0; g < groups; g += 2) {
            const float first = value(2 * g) + value(2 * g + 1), second = value(2 * g + 2) + value(2 * g + 3);
            const bool upper = (quad & 1) != 0;
            const float sum = (upper ? second : first) + __shfl_xor_sync(0xffffffffu, upper ? first : second, 1);
            total += sum;
            store(2 * (g + (quad & 1)) + quad / 2, sum);
        }
    } else {
        constexpr int wide = BlockColumns / 8;  // groups of a block
#pragma unroll
        for (int block = 0; block < Columns / BlockColumns; block += 4) {
            float x[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[i] = 0;
#pragma unroll
                for (int w = 0; w < wide; ++w) {
                    const int g = (block + i) * wide + w;
                    x[i] += value(2 * g) + value(2 * g + 1);
                }
            }
            // Lanes with bit 1 keep x[2], x[3]; then those with bit 0 the odd one.
            const bool high = (quad & 2) != 0, odd = (quad & 1) != 0;
            const float even_sum = (high ? x[2] : x[0]) + __shfl_xor_sync(0xffffffffu, high ? x[0] : x[2], 2);
            const float odd_sum = (high ? x[3] : x[1]) + __shfl_xor_sync(0xffffffffu, high ? x[1] : x[3], 2);
            const float sum = (odd ? odd_sum : even_sum) + __shfl_xor_sync(0xffffffffu, odd ? even_sum : odd_sum, 1);
            total += sum;
            store(block + quad, sum);
        }
    }
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    return total + __shfl_xor_sync(0xffffffffu, total, 2);
}

template <class Shape, int Scores>
__device__ __forceinline__ void finish_tile(const ScoreArgs& args, const ScoreTile& tile, float (&acc)[Scores],
                                            int warpgroup, int warp, int lane) {
    constexpr int columns = 2 * Scores;
    const XAttentionShape& shape = args.shape;
    const int rows = (tile.queries + shape.stride - 1) / shape.stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int local = warpgroup * 64 + warp * 16 + lane / 4 + 8 * half, row = tile.first_row + local;
        const int end = row < rows ? column_end(shape, row, tile.queries, tile.keys) - tile.first_column : 0;
        if (end < columns) {
#pragma unroll
            for (int i = 0; i < columns / 4; ++i) {
                const int column = 8 * (i / 2) + 2 * (lane % 4) + i % 2;
                if (column >= end) acc[4 * (i / 2) + 2 * half + i % 2] = -INFINITY;
            }
        }
        float top = -INFINITY;
#pragma unroll
        for (int i = 0; i < columns / 4; ++i) top = fmaxf(top, acc[4 * (i / 2) + 2 * half + i % 2]);
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float base = top == -INFINITY ? 0.0f : top * shape.scale_log2;
#pragma unroll
        for (int i = 0; i < columns / 4; ++i) {
            float& value = acc[4 * (i / 2) + 2 * half + i % 2];
            value = exp2_fast(fmaf(value, shape.scale_log2, -base));
        }
        float* sums = args.sums + (tile.number * strided_tile + local) * Shape::blocks;
        const float total =
            block_sums<columns, Shape::block_columns>([&](int i) { return acc[4 * (i / 2) + 2 * half + i % 2]; },
                                                      [&](int block, float sum) { sums[block] = sum; }, lane);
        if (lane % 4 == 0) args.tops[tile.number * strided_tile + local] = make_float2(top, total);
    }
}

/// The strided columns of the tile that some row of the warpgroup's 64 sees.
__device__ __forceinline__ int columns_seen(const ScoreArgs& args, const ScoreTile& tile, int warpgroup) {
    const int rows = (tile.queries + args.shape.stride - 1) / args.shape.stride;
    const int last = min(tile.first_row + warpgroup * 64 + 64, rows) - 1;
    return column_end(args.shape, last, tile.queries, tile.keys) - tile.first_column;
}

/// The tiles from `index` to `end` (all whole, or all half ones: half the accumulators); returns the next index.
template <class Shape, int Scores>
__device__ __forceinline__ int compute_tiles(const ScoreArgs& args, const TileList& list, ScoreStorage<Shape>& storage,
                                             Ring<Shape::stages>& ring, int index, int end, int warpgroup, int warp,
                                             int lane) {
    constexpr int fewer = Scores == Shape::scores ? 3 * Scores / 4 : Scores / 2;
    const int steps = args.shape.stride * args.panels;
    float acc[Scores];
    auto& part = reinterpret_cast<float(&)[fewer]>(acc);
    for (; index < end; index += gridDim.x) {
        const ScoreTile tile = find_score_tile(args, list, index);
        // Upper rows on the diagonal need fewer columns; those left out are hidden below.
        const bool wide = columns_seen(args, tile, warpgroup) > 2 * fewer;
        int before = 0;
        for (int step = 0; step < steps; ++step) {
            barrier_wait(&storage.full[ring.stage], ring.phase);
            const std::uint64_t query = operand(storage.query[ring.stage] + warpgroup * 64 * swizzle_row);
            const std::uint64_t key = operand(storage.key[ring.stage]);
            product_fence();
            if (wide) {
#pragma unroll
                for (int k = 0; k < 4; ++k) product(acc, advance(query, k * 32), advance(key, k * 32), step + k > 0);
                product_commit();  // in both branches: behind them it would be an empty product of its own
            } else {
#pragma unroll
                for (int k = 0; k < 4; ++k) product(part, advance(query, k * 32), advance(key, k * 32), step + k > 0);
                product_commit();
            }
            product_wait<1>();
            if (step > 0 && lane == 0) barrier_arrive(&storage.empty[before]);
            before = ring.stage;
            ring.next();
        }
        product_wait<0>();
        pin(acc);
        if (lane == 0) barrier_arrive(&storage.empty[before]);
        finish_tile<Shape>(args, tile, acc, warpgroup, warp, lane);
        pin(acc);
    }
    return index;
}

template <class Shape>
__device__ __forceinline__ void compute_scores(const ScoreArgs& args, const TileList& list,
                                               ScoreStorage<Shape>& storage, int all, int warpgroup, int warp,
                                               int lane) {
    Ring<Shape::stages> ring;
    const int next = compute_tiles<Shape, Shape::scores>(args, list, storage, ring, blockIdx.x,
                                                         args.heads * args.wholes, warpgroup, warp, lane);
    compute_tiles<Shape, Shape::scores / 2>(args, list, storage, ring, next, all, warpgroup, warp, lane);
}

/// Makes the plan where it is small, or finds the one that was made.
template <class Shape>
__device__ __forceinline__ TileList find_list(const ScoreArgs& args, ScoreStorage<Shape>& storage) {
    XAttentionPlan plan = args.plan;
    if (plan.own()) {
        plan.row_tile_begin = storage.row_tile_begin;
        plan.row_tiles = storage.row_tiles;
        plan.places = storage.places;
        build_plan<Shape::threads>(args.shape, plan, storage.warp_sum);
        __syncthreads();
        for (int i = threadIdx.x; blockIdx.x == 0 && i < max(plan.row_tile_count, plan.sequences + 1);
             i += Shape::threads) {
            if (i < plan.row_tile_count) args.plan.row_tiles[i] = plan.row_tiles[i];
            if (i <= plan.sequences) args.plan.row_tile_begin[i] = plan.row_tile_begin[i];
        }
    }
    return {plan.places + args.first_whole, plan.half_places() + args.first_half, plan.row_tiles};
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1) score_kernel(const __grid_constant__ ScoreArgs args) {
    extern __shared__ __align__(1024) unsigned char raw[];
    auto& storage = *reinterpret_cast<ScoreStorage<Shape>*>(raw);
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32 % 4, 0);
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < Shape::stages; ++i) {
            barrier_init(&storage.full[i], 1);
            barrier_init(&storage.empty[i], Shape::consumer_warps);
            barrier_init(&storage.landed[i], 1);
        }
        barrier_init_fence();
    }
    __syncthreads();
    wait_for_previous_kernel();
    dependents_may_launch();  // not before: the next kernel reads the batch's offsets before it waits
    const TileList list = find_list<Shape>(args, storage);
    const int all = args.heads * args.tiles;
    if (warpgroup == 0) {
        give_registers<40>();
        if (warp == 0) {
            if (lane == 0) load_scores<Shape>(args, list, storage, all);
        } else if (warp == 1) {
            clear_tails<Shape>(args, list, storage, all, lane);
        }
    } else {
        take_registers<232>();
        compute_scores<Shape>(args, list, storage, all, warpgroup - 1, warp, lane);
    }
}

template <int BlockColumns>
cudaError_t launch_score_kernel(const ScoreArgs& args, int multiprocessors, cudaStream_t stream) {
    using Shape = ScoreShape<BlockColumns>;
    constexpr int bytes = static_cast<int>(sizeof(ScoreStorage<Shape>));
    static_assert(bytes <= 227 * 1024, "shared memory of one multiprocessor");
    const cudaError_t error =
        cudaFuncSetAttribute(score_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    const int all = args.heads * args.tiles;
    const dim3 grid(static_cast<unsigned>(all < multiprocessors ? all : multiprocessors));
    return launch_overlapping(score_kernel<Shape>, grid, Shape::threads, bytes, stream, args);
}

}  // namespace sparseattn::cuda::hopper
