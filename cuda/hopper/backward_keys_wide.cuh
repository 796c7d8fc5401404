#pragma once
/// \file
/// The key pass for 256 channels: dK and dV of 64 keys at a time. Device code for sm_90a only.
///
/// As in backward_keys.cuh, but each warpgroup has half of the channels of dK and dV of all keys, since none has
/// registers for more. The first forms S^T and from it P^T, the second dP^T and, with P^T, dS^T; they hand P^T and dS^T
/// to each other in the order of their registers, where both take them as operands. A step is one tile of 64 queries:
/// dK of the tile before runs beside its S^T and dP^T.

#include "cuda/hopper/backward_keys_load.cuh"

namespace sparseattn::cuda::hopper {

template <int B>
struct WideKeyPass : KeyPassLoad<256, B, KeyPassWith::singles> {
    using Load = KeyPassLoad<256, B, KeyPassWith::singles>;
    using Load::key_panel, Load::query_panel, Load::stages;
    using typename Load::Shared;

    template <int Group>
    struct Consumer {
        static constexpr int channels = 128;  // of this warpgroup
        const BackwardArgs& args;
        Shared& shared;
        Ring<stages> ring;
        float score[32];  // S^T of group 0, dP^T of group 1
        std::uint32_t packed_score[16], packed_dscore[16];
        float dkey[channels / 2], dvalue[channels / 2];

        static __device__ __forceinline__ int thread() { return threadIdx.x % 128; }  // in the warpgroup
        static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }

        /// Waits for the tile at the current position; false when it is the item's end mark.
        __device__ __forceinline__ bool await_tile() {
            barrier_wait(&shared.full[ring.stage], ring.phase);
            barrier_wait(&shared.query_full[ring.stage], ring.phase);
            return shared.notes[ring.stage].begin >= 0;
        }
        /// S^T or dP^T of the tile at the current position, as a group of its own.
        __device__ __forceinline__ void start_scores() {
            product_fence();
            product_of_rows<256>(score, Group == 0 ? shared.key : shared.value, key_panel,
                                 Group == 0 ? shared.query[ring.stage] : shared.dout[ring.stage], query_panel);
            product_commit();
        }
        /// dK += dS^T Q of the tile in ring stage `stage`, likewise.
        __device__ __forceinline__ void start_dkey(int stage) {
            product_fence();
            product_of_packed<64>(dkey, packed_dscore, shared.query[stage] + Group * 2 * query_panel, query_panel);
            product_commit();
        }
        /// dV += P^T dO of the tile at the current position, likewise.
        __device__ __forceinline__ void start_dvalue() {
            product_fence();
            product_of_packed<64>(dvalue, packed_score, shared.dout[ring.stage] + Group * 2 * query_panel, query_panel);
            product_commit();
        }

        /// Gives P^T (0) or dS^T (1) to the other warpgroup.
        __device__ __forceinline__ void hand_over(int which, const std::uint32_t (&packed)[16]) {
            auto* memory = reinterpret_cast<uint4*>(shared.exchange[which]) + thread();
#pragma unroll
            for (int f = 0; f < 4; ++f) {
                memory[f * 128] = make_uint4(packed[4 * f], packed[4 * f + 1], packed[4 * f + 2], packed[4 * f + 3]);
            }
            shared.each.arrive(which);
        }
        /// Takes it from the other.
        __device__ __forceinline__ void take_over(int which, std::uint32_t (&packed)[16]) {
            shared.each.sync(which);
            const auto* memory = reinterpret_cast<const uint4*>(shared.exchange[which]) + thread();
#pragma unroll
            for (int f = 0; f < 4; ++f) {
                const uint4 four = memory[f * 128];
                packed[4 * f] = four.x, packed[4 * f + 1] = four.y;
                packed[4 * f + 2] = four.z, packed[4 * f + 3] = four.w;
            }
            pin(packed);
        }

        /// A step of the warpgroup that forms P^T. `before`: ring stage of the tile before, unless the tile is the
        /// item's first. No product is in flight on entry or on return.
        template <bool First>
        __device__ __forceinline__ void step_scores(int before) {
            start_scores();
            if constexpr (!First) {
                take_over(1, packed_dscore);
                start_dkey(before);
            }
            product_wait<First ? 0 : 1>();
            pin(score);
            if (shared.notes[ring.stage].masked != 0) {
                Load::mask(args, shared, ring.stage, lane(), score);
            }
            Load::exponentiate(args, shared.values[ring.stage], lane(), score);
            pack(score, packed_score);
            hand_over(0, packed_score);
            pin(packed_score);
        }
        /// Of the other one, which forms dS^T.
        template <bool First>
        __device__ __forceinline__ void step_dscores(int before) {
            if constexpr (!First) start_dkey(before);
            start_scores();
            if constexpr (!First) {
                product_wait<1>();
                pin(dkey);
                warp_release(&shared.query_empty[before], lane());
            }
            take_over(0, packed_score);
            product_wait<0>();
            pin(score);
            Load::differentiate(shared.values[ring.stage], lane(), packed_score, score, packed_dscore);
            hand_over(1, packed_dscore);
            pin(packed_dscore);
        }
        template <bool First>
        __device__ __forceinline__ void step(int before) {
            if constexpr (Group == 0) {
                step_scores<First>(before);
                product_wait<0>();
                if constexpr (!First) {
                    pin(dkey);
                    warp_release(&shared.query_empty[before], lane());
                }
            } else {
                step_dscores<First>(before);
            }
            start_dvalue();
            product_wait<0>();
            pin(dvalue);
            warp_release(&shared.empty[ring.stage], lane());
        }

        /// All tiles of an item.
        __device__ __forceinline__ void sum() {
#pragma unroll
            for (int i = 0; i < channels / 2; ++i) dkey[i] = dvalue[i] = 0;
            pin(dkey);
            pin(dvalue);
            if (!await_tile()) return;
            step<true>(0);
            int before = ring.stage;
            ring.next();
            while (await_tile()) {
                step<false>(before);
                before = ring.stage;
                ring.next();
            }
            if constexpr (Group == 0) take_over(1, packed_dscore);
            start_dkey(before);
            product_wait<0>();
            pin(dkey);
            warp_release(&shared.query_empty[before], lane());
        }

        __device__ __forceinline__ void run() {
            for (std::uint32_t phase = 0;; phase ^= 1) {
                barrier_wait(&shared.keys_full, phase);
                if (shared.item.head < 0) break;
                sum();
                warp_release(&shared.empty[ring.stage], lane());  // the end mark
                warp_release(&shared.query_empty[ring.stage], lane());
                ring.next();
                finish();
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
            barrier_arrive(&shared.keys_empty);
            write(item, 0, tokens, dkey);
            write(item, 1, tokens, dvalue);
        }
        __device__ __forceinline__ void write(const ItemNote& item, int matrix, const std::int64_t (&tokens)[2],
                                              const float (&sums)[channels / 2]) {
            if (item.slot >= 0) {
                const std::int64_t at = (static_cast<std::int64_t>(item.slot) * 2 + matrix) * (B / 64) + item.begin;
                write_fragments<channels / 2>(args.plan.partials + (at * 256 + Group * channels) * 64, sums, thread());
            } else {
                store_rows<channels / 2>(matrix == 0 ? args.dk : args.dv, sums, matrix == 0 ? args.scale : 1.0f, tokens,
                                         item.head, Group * channels, args.head_dim, lane());
            }
        }
    };
};

template <int B>
__global__ void __launch_bounds__(384, 1)
    wide_key_pass_kernel(const __grid_constant__ BackwardArgs args, const __grid_constant__ KeyPassMaps maps) {
    using Pass = WideKeyPass<B>;
    extern __shared__ __align__(1024) unsigned char raw[];
    auto& shared = *reinterpret_cast<typename Pass::Shared*>(raw);
    Pass::open(shared);
    const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (warpgroup == 0) {
        give_registers<Pass::load_registers>();
        Pass::load(args, maps, shared);
    } else if (warpgroup == 1) {
        take_registers<Pass::sum_registers>();
        typename Pass::template Consumer<0> consumer{args, shared, {}};
        consumer.run();
    } else {
        take_registers<Pass::sum_registers>();
        typename Pass::template Consumer<1> consumer{args, shared, {}};
        consumer.run();
    }
}

}  // namespace sparseattn::cuda::hopper
