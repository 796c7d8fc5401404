#pragma once
/// \file
/// The query pass: dQ of one query block at a time, from the forward lists. Device code for sm_90a only.
///
/// A persistent block of one producer warp and two consumer warpgroups takes items (query head, row). It keeps Q and dO
/// of the row in shared memory and dQ in registers while key blocks stream through two rings, one of K and one of V.
/// Single keys follow the blocks of a list, gathered by the other warps of the producer's warpgroup as blocks of their
/// own. S = Q K^T and dP = dO V^T are formed again; dS leaves the registers only as operand of dQ += dS K. Blocks of
/// 128: each warpgroup has 64 of the queries and both see every key block. Blocks of 64: both have all queries and take
/// key blocks in turn; their sums are added at the end. With 256 channels a key block is worked on 64 keys at a time.
/// Every sum has a fixed order.

#include "cuda/hopper/backward_queries_load.cuh"

namespace sparseattn::cuda::hopper {

template <int D, int B, bool Singles>
struct QueryPass : QueryPassLoad<D, B, Singles> {
    using Load = QueryPassLoad<D, B, Singles>;
    using Load::key_panel, Load::key_stages, Load::query_bytes, Load::query_panel, Load::scores, Load::split_queries;
    using Load::tile_keys, Load::tile_step, Load::value_stages;
    using typename Load::Shared;

    struct Consumer {
        // Registers are scarce (224 of 240 hold fragments at d 128): whatever can be read again is not kept.
        const BackwardArgs& args;
        Shared& shared;
        Ring<key_stages> keys;
        Ring<value_stages> values;
        float lse[2], delta[2];  // of the thread's two queries, 8 apart
        float score[scores], dscore[scores];
        std::uint32_t packed_dscore[scores / 2];
        float dquery[D / 2];

        static __device__ __forceinline__ int group() { return threadIdx.x / 128 - 1; }  // of the consumers, 0 or 1
        static __device__ __forceinline__ int thread() { return threadIdx.x % 128; }     // in the warpgroup
        static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
        static __device__ __forceinline__ int first_query() { return split_queries ? group() * 64 : 0; }
        static __device__ __forceinline__ int row() { return first_row_of(thread()); }

        __device__ __forceinline__ void next_tile() {
            for (int i = 0; i < tile_step; ++i) {
                keys.next();
                values.next();
            }
        }
        /// Stage of the key block before the current position.
        __device__ __forceinline__ int stage_before() const {
            return keys.stage < tile_step ? keys.stage + key_stages - tile_step : keys.stage - tile_step;
        }
        /// Waits for the key block at the current position; false when it is the branch's end mark.
        __device__ __forceinline__ bool await_tile() {
            barrier_wait(&shared.key_full[keys.stage], keys.phase);
            return shared.notes[keys.stage].begin >= 0;
        }

        __device__ __forceinline__ void start_scores() {
            product_fence();
            product_of_rows<D>(score, shared.query + first_query() * swizzle_row, query_panel, shared.key[keys.stage],
                               key_panel);
            product_commit();
        }
        __device__ __forceinline__ void start_dscores() {
            product_fence();
            product_of_rows<D>(dscore, shared.dout + first_query() * swizzle_row, query_panel,
                               shared.value[values.stage], key_panel);
            product_commit();
        }
        /// dQ += dS K of the key block in stage `stage`.
        __device__ __forceinline__ void start_dquery(int stage) {
            product_fence();
            product_of_packed<tile_keys>(dquery, packed_dscore, shared.key[stage], key_panel);
            product_commit();
        }

        /// Sets scores of pairs that the token rule hides to -inf.
        __device__ __forceinline__ void mask() {
            const ItemNote item = shared.item;
            const int branch = shared.notes[keys.stage].masked - 1;
            const TokenRule rule{item.queries, item.keys, causal_of(args, branch), window_of(args, branch, item.head)};
            // Positions are counted from the thread's first key where there are no single keys.
            const int first = lane() % 4 * 2, j0 = Singles ? 0 : shared.notes[keys.stage].begin + first;
            const int* tile = shared.table[keys.stage] + first;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int query = item.begin + first_query() + row() + 8 * half;
                const int end = rule.key_end(query) - j0, local = rule.local_begin(query) - j0;
                const int sink = rule.window.sink - j0;
#pragma unroll
                for (int i = 0; i < scores; i += 4) {
#pragma unroll
                    for (int side = 0; side < 2; ++side) {
                        const int key = Singles ? tile[i * 2 + side] : i * 2 + side;
                        if (key >= end || (key >= sink && key < local)) score[i + 2 * half + side] = -INFINITY;
                    }
                }
            }
        }

        /// dS of the key block at the current position, packed, and meanwhile, unless it is the branch's first, the
        /// product with the keys of the block before. No product is in flight on entry or on return.
        template <bool First>
        __device__ __forceinline__ void step() {
            const int before = stage_before();
            if constexpr (!First) start_dquery(before);
            start_scores();
            barrier_wait(&shared.value_full[values.stage], values.phase);
            if constexpr (!First) {
                product_wait<1>();  // packed_dscore is free: there are no registers for it beside S and dP
                pin(dquery);
                warp_release(&shared.key_empty[before], lane());
            }
            start_dscores();
            product_wait<1>();
            pin(score);
            if (shared.notes[keys.stage].masked != 0) mask();
#pragma unroll
            for (int i = 0; i < scores; ++i) score[i] = exp2_fast(score[i] * args.scale_log2 - lse[i / 2 % 2]);
            if constexpr (split_queries) {  // measured: it does not help blocks of 64
                std::uint32_t bits[scores];
#pragma unroll
                for (int i = 0; i < scores; ++i) bits[i] = __float_as_uint(score[i]);
                stay_before(bits, 0x80000000u);
            }
            product_wait<0>();
            pin(dscore);
            warp_release(&shared.value_empty[values.stage], lane());
#pragma unroll
            for (int i = 0; i < scores; i += 2) {
                const float d = delta[i / 2 % 2];
                packed_dscore[i / 2] = pack_bf16(score[i] * (dscore[i] - d), score[i + 1] * (dscore[i + 1] - d));
            }
            pin(packed_dscore);
        }

        /// lse and delta of the thread's queries.
        __device__ __forceinline__ void read_row_values(int branch) {
            const int tile = branch * args.query_heads * args.tiles + shared.item.tile + (split_queries ? group() : 0);
            const float* values_of_row = args.row_values + static_cast<std::int64_t>(tile) * 2 * query_tile;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                lse[half] = values_of_row[row() + 8 * half];
                delta[half] = values_of_row[query_tile + row() + 8 * half];
            }
        }

        /// All key blocks of a branch.
        __device__ __forceinline__ void sum_branch() {
            if (!await_tile()) return;
            step<true>();
            next_tile();
            while (await_tile()) {
                step<false>();
                next_tile();
            }
            const int before = stage_before();
            start_dquery(before);
            product_wait<0>();
            pin(dquery);
            warp_release(&shared.key_empty[before], lane());
        }

        /// All branches of an item.
        __device__ __forceinline__ void sum() {
#pragma unroll
            for (int i = 0; i < D / 2; ++i) dquery[i] = 0;
            pin(dquery);
            for (int branch = shared.item.branch; branch >= 0;) {
                read_row_values(branch);
                sum_branch();
                barrier_wait(&shared.value_full[values.stage], values.phase);
                branch = shared.notes[keys.stage].head;
                warp_release(&shared.key_empty[keys.stage], lane());  // the end mark
                warp_release(&shared.value_empty[values.stage], lane());
                next_tile();
            }
        }

        __device__ __forceinline__ void run() {
            if (!split_queries && group() == 1) {
                keys.next();
                values.next();
            }
            for (std::uint32_t phase = 0;; phase ^= 1) {
                barrier_wait(&shared.queries_full, phase);
                if (shared.item.head < 0) break;
                sum();
                finish();
            }
        }

        /// Writes dQ.
        __device__ __forceinline__ void finish() {
            const ItemNote item = shared.item;
            const int query = first_query() + row();
            std::int64_t tokens[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const bool valid = item.begin + query + 8 * half < item.queries;
                tokens[half] = valid ? item.token + query + 8 * half : -1;
            }
            if constexpr (split_queries) {
                barrier_arrive(&shared.queries_empty);
                store_rows<D / 2>(args.dq, dquery, args.scale, tokens, item.head, 0, args.head_dim, lane());
            } else if (group() == 0) {
                exchange(dquery + D / 4, dquery);
                store_rows<D / 4>(args.dq, dquery, args.scale, tokens, item.head, 0, args.head_dim, lane());
            } else {
                exchange(dquery, dquery + D / 4);
                store_rows<D / 4>(args.dq, dquery + D / 4, args.scale, tokens, item.head, D / 2, args.head_dim, lane());
            }
        }
        /// Gives one half of the channels to the other warpgroup and adds what that one gives to the other half,
        /// through the memory of Q and dO.
        __device__ __forceinline__ void exchange(const float* given, float* kept) {
            constexpr int floats = query_bytes / 4;  // D / 4 registers of 128 threads
            float* memory = reinterpret_cast<float*>(shared.query);
            shared.both.sync();
            write_fragments<D / 4>(memory + group() * floats, given, thread());
            shared.both.sync();
            add_fragments<D / 4>(kept, memory + (1 - group()) * floats, thread());
            fence_async_shared();
            barrier_arrive(&shared.queries_empty);
        }
    };
};

template <int D, int B, bool Singles>
__global__ void __launch_bounds__(384, 1)
    query_pass_kernel(const __grid_constant__ BackwardArgs args, const __grid_constant__ QueryPassMaps maps) {
    using Pass = QueryPass<D, B, Singles>;
    extern __shared__ __align__(1024) unsigned char raw[];
    auto& shared = *reinterpret_cast<typename Pass::Shared*>(raw);
    Pass::open(shared);
    if (threadIdx.x / 128 == 0) {
        give_registers<24>();
        Pass::load(args, maps, shared);
    } else {
        take_registers<240>();
        typename Pass::Consumer consumer{args, shared, {}, {}};
        consumer.run();
    }
}

}  // namespace sparseattn::cuda::hopper
