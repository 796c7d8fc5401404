#pragma once
/// \file
/// The key pass: dK and dV of one key block at a time, from the transposed lists. Device code for sm_90a only.
///
/// A persistent block of one producer warp and two consumer warpgroups takes pieces of items (key head, key block). It
/// keeps K and V of the block in shared memory and dK and dV in registers while tiles of 64 queries (Q, dO, lse, delta)
/// stream through a ring, over all branches and query heads of the group and all rows of their lists, in ascending
/// order. Scores are formed transposed, S^T = K Q^T, so that P^T and dS^T leave the registers only as operands of dV +=
/// P^T dO, dK += dS^T Q. Blocks of 128: each warpgroup has 64 of the keys and both see every tile. Blocks of 64: both
/// have all keys and take tiles in turn; their sums are added at the end. With dq_sums, dS^T also goes through shared
/// memory into dQ = dS K, added to global memory as it comes.

#include "cuda/hopper/backward_keys_load.cuh"

namespace sparseattn::cuda::hopper {

template <int D, int B, KeyPassWith With>
struct KeyPass : KeyPassLoad<D, B, With> {
    using Load = KeyPassLoad<D, B, With>;
    using Load::hold, Load::key_bytes, Load::key_panel, Load::part_channels, Load::query_panel, Load::split_keys;
    using Load::stages, Load::tile_step, Load::with_queries;
    using typename Load::Shared;

    struct Consumer {
        // Registers are scarce (224 of 240 hold fragments at d 128): whatever can be read again is not kept.
        const BackwardArgs& args;
        Shared& shared;
        Ring<stages> ring;
        int turn = 0;  // buffer of dS^T
        float score[32], dscore[32];
        float narrow_dquery[16];
        std::uint32_t packed_score[16], packed_dscore[16];
        float dkey[D / 2], dvalue[D / 2];

        static __device__ __forceinline__ int group() { return threadIdx.x / 128 - 1; }  // of the consumers, 0 or 1
        static __device__ __forceinline__ int thread() { return threadIdx.x % 128; }     // in the warpgroup
        static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }

        __device__ __forceinline__ void next_tile() {
            for (int i = 0; i < tile_step; ++i) ring.next();
        }
        /// Waits for the tile at the current position; false when it is the item's end mark.
        __device__ __forceinline__ bool await_tile() {
            barrier_wait(&shared.full[ring.stage], ring.phase);
            return shared.notes[ring.stage].begin >= 0;
        }
        __device__ __forceinline__ const unsigned char* my_keys(const unsigned char* tile) const {
            return tile + (split_keys ? group() * 64 * swizzle_row : 0);
        }

        /// S^T of the tile at the current position, as a group of its own.
        __device__ __forceinline__ void start_scores() {
            product_fence();
            product_of_rows<D>(score, my_keys(shared.key), key_panel, shared.query[ring.stage], query_panel);
            product_commit();
        }
        /// dP^T, likewise.
        __device__ __forceinline__ void start_dscores() {
            product_fence();
            product_of_rows<D>(dscore, my_keys(shared.value), key_panel, shared.dout[ring.stage], query_panel);
            product_commit();
        }

        /// Where dS^T of a tile lies. Warpgroups that share tiles have two buffers in turn: whoever passes the barrier
        /// of a tile has finished reading the tile before.
        __device__ __forceinline__ unsigned char* score_buffer() const {
            return shared.score[split_keys ? turn : group()];
        }
        /// dS^T to shared memory in rows of keys.
        __device__ __forceinline__ void publish_dscores() {
            turn ^= 1;
            const int row = (split_keys ? group() * 64 : 0) + thread() / 32 * 16 + lane() % 16;
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                const std::uint32_t* p = packed_dscore + 4 * step;
                store_matrix_x4(score_buffer() + swizzled(row, 2 * step + lane() / 16), p[0], p[1], p[2], p[3]);
            }
            fence_async_shared();
            if constexpr (split_keys) {
                shared.both.sync();
            } else {
                shared.each.sync(group());
            }
        }
        /// Where dQ is formed: the registers of dP^T, which are free then (two names for them would cost the compiler
        /// the registers it lacks), or fewer of its own.
        __device__ __forceinline__ auto& dquery() {
            if constexpr (part_channels == 64) {
                return dscore;
            } else {
                return narrow_dquery;
            }
        }
        /// Channels [part * part_channels, + part_channels) of dQ = dS K of a tile, as a group of its own.
        __device__ __forceinline__ void start_dquery(int part) {
            const int first = part * part_channels;
            const std::uint64_t a = operand(score_buffer());
            const std::uint64_t b = operand(shared.key + first / 64 * key_panel + first % 64 * 2);
            product_fence();
#pragma unroll
            for (int step = 0; step < B / 16; ++step) {
                product<true, true>(dquery(), advance(a, step * 2 * swizzle_atom), advance(b, step * 2 * swizzle_atom),
                                    step > 0);
            }
            product_commit();
        }
        /// Leaves them to the warp that adds them to global memory. `Younger` groups were committed after start_dquery.
        template <int Younger>
        __device__ __forceinline__ void hand_over_dquery(int stage) {
            product_wait<Younger>();
            pin(dquery());
            barrier_wait(&shared.dquery_empty[group()], turn);
            write_fragments<part_channels / 2>(shared.dquery[group()], dquery(), thread());
            if (thread() == 0) shared.dquery_tile[group()] = shared.notes[stage].tile;
            fence_async_shared();
            barrier_arrive(&shared.dquery_full[group()]);
        }
        /// dK and dQ of the tile in ring stage `before`, and S^T of the one at the current position if there is one.
        template <bool Scores>
        __device__ __forceinline__ void finish_before(int before) {
            start_dquery(split_keys ? group() : 0);
            if constexpr (Scores) start_scores();
            start_dkey(before);
            hand_over_dquery<Scores ? 2 : 1>(before);
        }

        /// dV += P^T dO of the tile at the current position, as a group of its own.
        __device__ __forceinline__ void start_dvalue() {
            product_fence();
            product_of_packed<64>(dvalue, packed_score, shared.dout[ring.stage], query_panel);
            product_commit();
        }
        /// dK += dS^T Q of the tile in ring stage `stage`, likewise.
        __device__ __forceinline__ void start_dkey(int stage) {
            product_fence();
            product_of_packed<64>(dkey, packed_dscore, shared.query[stage], query_panel);
            product_commit();
        }

        /// P^T, dS^T and dV of the tile at the current position and meanwhile, unless the tile is the item's first, dK
        /// (and dQ) of the tile before, in ring stage `before`. No product is in flight on entry or on return: the
        /// compiler would serialise products that cross the end of a loop.
        template <bool First>
        __device__ __forceinline__ void step(int before) {
            if constexpr (First) {
                start_scores();
            } else if constexpr (with_queries) {
                finish_before<true>(before);
            } else {
                start_scores();
                start_dkey(before);
            }
            start_dscores();
            product_wait<First ? 1 : 2>();
            pin(score);
            if (shared.notes[ring.stage].masked != 0) {
                Load::mask(args, shared, ring.stage, lane(), score);
            }
            Load::exponentiate(args, shared.values[ring.stage], lane(), score);
            if constexpr (hold) {
                pack(score, packed_score);
                stay_before(packed_score, 0x80008000u);
            }
            product_wait<0>();
            pin(dscore);
            if constexpr (!First) warp_release(&shared.empty[before], lane());
            if constexpr (!hold) pack(score, packed_score);
            pin(packed_score);
            start_dvalue();
#ifdef SPARSEATTN_CUDA_CHECKED  // the code that tools insert at loads overwrites what a product is writing
            product_wait<0>();
            pin(dvalue);
#endif
            Load::differentiate(shared.values[ring.stage], lane(), packed_score, dscore, packed_dscore);
            pin(packed_dscore);
            if constexpr (with_queries) publish_dscores();
            product_wait<0>();
        }

        /// All tiles of an item.
        __device__ __forceinline__ void sum() {
#pragma unroll
            for (int i = 0; i < D / 2; ++i) dkey[i] = dvalue[i] = 0;
            pin(dkey);
            pin(dvalue);
            if (!await_tile()) return;
            step<true>(0);
            int before = ring.stage;
            next_tile();
            while (await_tile()) {
                step<false>(before);
                before = ring.stage;
                next_tile();
            }
            if constexpr (with_queries) {
                finish_before<false>(before);
            } else {
                start_dkey(before);
            }
            product_wait<0>();
            pin(dkey);
            pin(dvalue);
            warp_release(&shared.empty[before], lane());
        }

        __device__ __forceinline__ void run() {
            if (!split_keys && group() == 1) ring.next();
            for (std::uint32_t phase = 0;; phase ^= 1) {
                barrier_wait(&shared.keys_full, phase);
                if (shared.item.head < 0) break;
                sum();
                warp_release(&shared.empty[ring.stage], lane());  // the end mark
                next_tile();
                finish();
            }
            if constexpr (with_queries) {
                barrier_wait(&shared.dquery_empty[group()], turn ^ 1);
                if (thread() == 0) shared.dquery_tile[group()] = -1;
                barrier_arrive(&shared.dquery_full[group()]);
            }
        }

        /// Writes dK and dV, or a piece's part of them.
        __device__ __forceinline__ void finish() {
            const ItemNote item = shared.item;
            std::int64_t tokens[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int key = shared.keys[Load::first_row() + 8 * half];
                tokens[half] = key == no_key ? -1 : item.token + key;
            }
            if constexpr (split_keys) {
                barrier_arrive(&shared.keys_empty);
                write(item, 0, tokens, dkey);
                write(item, 1, tokens, dvalue);
            } else if (group() == 0) {
                exchange(dkey, dvalue);
                write(item, 1, tokens, dvalue);
            } else {
                exchange(dvalue, dkey);
                write(item, 0, tokens, dkey);
            }
        }
        /// Writes the sums of 64 keys to dK (matrix 0) or dV (1) or to partial sums.
        __device__ __forceinline__ void write(const ItemNote& item, int matrix, const std::int64_t (&tokens)[2],
                                              const float (&sums)[D / 2]) {
            if (item.slot >= 0) {
                const std::int64_t part = split_keys ? group() : 0;
                const std::int64_t at = (static_cast<std::int64_t>(item.slot) * 2 + matrix) * (B / 64) + part;
                write_fragments<D / 2>(args.plan.partials + at * 64 * D, sums, thread());
            } else {
                store_rows<D / 2>(matrix == 0 ? args.dk : args.dv, sums, matrix == 0 ? args.scale : 1.0f, tokens,
                                  item.head, 0, args.head_dim, lane());
            }
        }
        /// Gives one sum to the other warpgroup and adds what that one gives to the other sum, through the memory of K
        /// and V in two rounds.
        __device__ __forceinline__ void exchange(const float (&given)[D / 2], float (&kept)[D / 2]) {
            constexpr int floats = key_bytes / 4;  // D / 4 registers of 128 threads
            float* memory = reinterpret_cast<float*>(shared.key);
#pragma unroll
            for (int round = 0; round < 2; ++round) {
                shared.both.sync();
                write_fragments<D / 4>(memory + group() * floats, given + round * (D / 4), thread());
                shared.both.sync();
                add_fragments<D / 4>(kept + round * (D / 4), memory + (1 - group()) * floats, thread());
            }
            fence_async_shared();
            barrier_arrive(&shared.keys_empty);
        }
    };
};

template <int D, int B, KeyPassWith With>
__global__ void __launch_bounds__(384, 1)
    key_pass_kernel(const __grid_constant__ BackwardArgs args, const __grid_constant__ KeyPassMaps maps) {
    using Pass = KeyPass<D, B, With>;
    extern __shared__ __align__(1024) unsigned char raw[];
    auto& shared = *reinterpret_cast<typename Pass::Shared*>(raw);
    Pass::open(shared);
    if (threadIdx.x / 128 == 0) {
        give_registers<Pass::load_registers>();
        Pass::load(args, maps, shared);
    } else {
        take_registers<Pass::sum_registers>();
        typename Pass::Consumer consumer{args, shared, {}};
        consumer.run();
    }
}

}  // namespace sparseattn::cuda::hopper
