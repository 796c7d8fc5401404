#pragma once
/// \file
/// The key pass: what a thread block keeps in shared memory, the warp that fills it and the warps that empty it. Device
/// code for sm_90a only.

#include <type_traits>

#include "cuda/hopper/backward_look.cuh"
#include "cuda/hopper/backward_parts.cuh"

namespace sparseattn::cuda::hopper {

/// What the key pass does besides: nothing, sums of dQ too, single keys.
enum class KeyPassWith { nothing, queries, singles };

/// Head dimension, block. Calls without single keys have kernels of their own: what looks for them would slow them
/// down.
template <int D, int B, KeyPassWith With>
struct KeyPassLoad {
    static constexpr bool with_queries = With == KeyPassWith::queries, with_singles = With == KeyPassWith::singles;
    static_assert((D == 64 || D == 128 || D == 256) && (B == 64 || B == 128));
    static constexpr bool wide = D == 256;           // the warpgroups split the channels: backward_keys_wide.cuh
    static constexpr int tile_keys = wide ? 64 : B;  // of a block that are worked on at once
    static constexpr int stages = wide ? 2 : D == 64 ? 6 : (B == 128 ? 3 : 4);
    static constexpr int key_bytes = tile_keys * D * 2;
    static constexpr int query_bytes = query_tile * D * 2;
    static constexpr int key_panel = tile_keys * swizzle_row;
    static constexpr int query_panel = query_tile * swizzle_row;
    static constexpr int score_bytes = with_queries ? B * swizzle_row : 16;
    static constexpr bool split_keys = B == 128 && !wide;  // between the warpgroups; otherwise they split the tiles
    static constexpr int readers = split_keys || wide ? 8 : 4;  // warps that use a tile
    static constexpr int tile_step = split_keys || wide ? 1 : 2;
    // dQ: channels of one product; warpgroups that share tiles take a part each.
    static constexpr int part_channels = split_keys ? D / 2 : 64;
    // Exponentials are kept before the wait for dP^T. Where it was measured to help: warpgroups that work on the same
    // tile, and enough work in its products.
    static constexpr bool hold = split_keys && (D == 128 || !with_queries);
    // Registers of the loading warpgroup's threads and of the others'.
    static constexpr int load_registers = D == 128 ? 24 : 40, sum_registers = (504 - load_registers) / 2;
    static_assert(!with_queries || (split_keys && !wide) || D == 64,
                  "one warpgroup has no registers for 128 channels of dQ");

    struct Shared {
        alignas(1024) unsigned char key[key_bytes];
        alignas(1024) unsigned char value[key_bytes];
        alignas(1024) unsigned char query[stages][query_bytes];
        alignas(1024) unsigned char dout[stages][query_bytes];
        alignas(1024) unsigned char score[2][score_bytes];
        // dQ of a tile on its way to global memory, from each warpgroup what it has formed
        alignas(128) float dquery[2][with_queries ? query_tile * part_channels : 4];
        int dquery_tile[2];
        Barrier dquery_full[2], dquery_empty[2];
        // wide: P^T and dS^T of a tile, from the warpgroup that has formed them to the other, in fragment order
        alignas(128) std::uint32_t exchange[2][wide ? 16 * 128 : 4];
        alignas(16) float values[stages][2 * query_tile];
        TileNote notes[stages];
        ItemNote item;
        PieceNote piece;
        Share share;          // of the producer
        int keys[tile_keys];  // see KeyItem::key
        LookShared<tile_keys, with_singles ? stages : 0> look;
        Barrier keys_full, keys_empty, ragged;
        Barrier full[stages], empty[stages];
        Barrier query_full[wide ? stages : 1], query_empty[wide ? stages : 1];  // wide: of the queries alone
        NamedBarriers<1, 1, 256> both;                                          // warpgroups
        NamedBarriers<2, 2, wide ? 256 : 128> each;  // what `exchange` holds; or of each warpgroup its own
    };
    /// Warps that write what keys_full announces.
    static constexpr int key_writers = with_singles ? 2 : 1;

    // --- Producer ---------------------------------------------------------------------------------------------------

    struct Producer {
        const BackwardArgs& args;
        const KeyPassMaps& maps;
        Shared& shared;
        int lane;
        RaggedLoader ragged;
        Ring<stages> ring;
        std::uint32_t phase = 0;  // of the keys
        int ahead = 0;            // tiles that may be sent before the piece's keys are loaded; -1: they are

        /// Sends one tile of which `valid` queries are of its sequence, with values number `record`, or an item's end
        /// mark (note.begin < 0). `bit`: of the words of which keys visit it; -1: all do.
        __device__ __forceinline__ void send(const TileNote& note, int token, int valid, int record, int bit) {
            constexpr int value_bytes = 2 * query_tile * 4;
            if (ahead >= 0 && (--ahead < 0 || note.begin < 0)) take_keys();
            unsigned char *query = shared.query[ring.stage], *dout = shared.dout[ring.stage];
            Barrier* full = &shared.full[ring.stage];
            barrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
            if constexpr (with_singles) {
                if (note.masked != 0) shared.look.write_bits(ring.stage, bit, lane);
            }
            const bool whole = valid >= query_tile;
            if (!whole) {
                if constexpr (!wide) ragged.template load<query_tile, D>(query, &maps.query, token, note.head, valid);
                ragged.template load<query_tile, D>(dout, &maps.dout, token, note.head, valid);
            }
            const bool chosen = elect_one();
            if (chosen) {
                shared.notes[ring.stage] = note;
                if (note.begin < 0) {
                    barrier_arrive(full);
                } else {
                    barrier_expect(full, (whole ? (wide ? 1 : 2) * query_bytes : 0) + value_bytes);
                    if (whole) {
                        if constexpr (!wide) load_tile<query_tile, D>(query, &maps.query, full, token, note.head);
                        load_tile<query_tile, D>(dout, &maps.dout, full, token, note.head);
                    }
                    bulk_load(shared.values[ring.stage],
                              args.row_values + static_cast<std::int64_t>(record) * 2 * query_tile, value_bytes, full);
                }
            }
            announce_all(full, chosen);
            __syncwarp();
            if constexpr (wide) send_queries(note, token, valid);
            ring.next();
        }
        /// Queries alone: their stage is needed for longer than that of dO.
        __device__ __forceinline__ void send_queries(const TileNote& note, int token, int valid) {
            unsigned char* query = shared.query[ring.stage];
            Barrier* full = &shared.query_full[ring.stage];
            barrier_wait(&shared.query_empty[ring.stage], ring.phase ^ 1);
            if (valid < query_tile) ragged.template load<query_tile, D>(query, &maps.query, token, note.head, valid);
            const bool chosen = elect_one();
            if (chosen) {
                if (note.begin < 0 || valid < query_tile) {
                    barrier_arrive(full);
                } else {
                    barrier_expect(full, query_bytes);
                    load_tile<query_tile, D>(query, &maps.query, full, token, note.head);
                }
            }
            announce_all(full, chosen);
            __syncwarp();
        }

        /// One row (query block) of the share, as tiles that see keys [j0, j1).
        __device__ __forceinline__ void send_row(int row, int bit, const TokenRule& rule, int j0, int j1) {
            const PieceNote& piece = shared.piece;
            const Share& share = shared.share;
#pragma unroll
            for (int part = 0; part < B / query_tile; ++part) {
                const int i0 = row * B + part * query_tile;
                const int i1 = min(i0 + query_tile, rule.queries);
                if (i0 >= i1 || rule.none_visible(i0, i1, j0, j1)) continue;
                bool whole = rule.all_visible(i0, i1, j0, j1);
                if constexpr (with_singles) {
                    if (bit >= 0) whole = whole && shared.look.all_keys(shared.keys, bit, lane);
                }
                const int tile = share.head * args.tiles + (piece.row_begin + row) * (B / query_tile) + part;
                send({i0, whole ? 0 : 1 + share.branch, share.head, tile}, piece.span.query_begin + i0,
                     rule.queries - i0, share.branch * args.query_heads * args.tiles + tile, bit);
            }
        }
        /// The rows of the share: those of its list, then those that are looked at.
        __device__ __forceinline__ void send_share() {
            ListWalk rows(shared.share.entries, shared.share.count, lane);
            {
                // With blocks of 64 tiles come fastest, and there are registers to keep this.
                std::conditional_t<B == 64, const TokenRule, const TokenRule&> rule = shared.share.rule;
                const int& j0 = shared.piece.j0;
                for (int index = 0; index < shared.share.count; ++index) {
                    send_row(rows.entry(index), -1, rule, j0, j0 + tile_keys);
                }
            }
            if constexpr (with_singles) {
                for (int first = shared.share.first_row; first < shared.share.end_row; first += 32) {
                    for (unsigned found = shared.look.take(lane); found != 0; found &= found - 1) {
                        const int bit = __ffs(found) - 1;
                        send_row(first + bit, bit, shared.share.rule, shared.piece.j0, shared.piece.j1);
                    }
                    shared.look.give_back();
                }
            }
        }

        /// Once the consumers are done with the keys before: notes the piece's keys and loads K and V of a key block.
        __device__ __forceinline__ void take_keys() {
            const PieceNote& note = shared.piece;
            ahead = -1;
            barrier_wait(&shared.keys_empty, phase ^ 1);
#pragma unroll 1
            for (int i = fresh(lane); i < tile_keys; i += 32) shared.keys[i] = note.item.key(args, note.span, i);
            __syncwarp();
            if (elect_one()) {
                shared.item = {note.item.head,    note.span.key_begin, note.part,       0,
                               note.span.queries, note.span.keys,      note.piece.slot, 0};
            }
            if (!note.item.lines) {
                load_keys(note.span.key_begin + note.item.begin, note.item.head, note.item.keys);
            } else {
                announce_all(&shared.keys_full, false);  // the looking warp arrives
            }
            __syncwarp();
        }
        __device__ __forceinline__ void load_keys(int token, int head, int valid) {
            if (valid < tile_keys) {
                ragged.template load<tile_keys, D>(shared.key, &maps.key, token, head, valid);
                ragged.template load<tile_keys, D>(shared.value, &maps.value, token, head, valid);
            }
            const bool chosen = elect_one();
            if (chosen) {
                if (valid < tile_keys) {
                    barrier_arrive(&shared.keys_full);
                } else {
                    barrier_expect(&shared.keys_full, 2 * key_bytes);
                    load_tile<tile_keys, D>(shared.key, &maps.key, &shared.keys_full, token, head);
                    load_tile<tile_keys, D>(shared.value, &maps.value, &shared.keys_full, token, head);
                }
            }
            announce_all<key_writers>(&shared.keys_full, chosen);
        }
        /// Notes part `part` of the piece's block; false: it has no keys.
        __device__ __forceinline__ bool note_part(int part) {
            PieceNote& note = shared.piece;
            if (elect_one()) {
                note.item = KeyItem(args, note.piece.item);
                note.item.begin += part * tile_keys;
                note.item.keys -= part * tile_keys;
                note.span = SequenceSpan(args.batch, note.item.sequence);
                note.row_begin = args.layout.row_begin[note.item.sequence];
                note.part = part;
                note.j0 = note.item.begin;
                note.j1 = note.item.begin + tile_keys;
            }
            __syncwarp();
            return part == 0 || note.item.keys > 0;
        }

        /// A piece: its share of the lists of the group's heads. The first tile is sent before the consumers are done
        /// with the piece before, unless single keys are looked for.
        __device__ __forceinline__ void send_piece(const Piece& piece) {
            if (elect_one()) shared.piece.piece = piece;
            __syncwarp();
            for (int part = 0; part < B / tile_keys; ++part) {
                if (!note_part(part)) break;
                ahead = 1;
                if constexpr (with_singles) {
                    if (shared.piece.item.looks) start_looking();
                }
                for (shared.share.start(shared.piece); shared.share.next(args, shared.piece);) send_share();
                for (int mark = 0; mark < tile_step; ++mark) send({-1, 0, 0, 0}, 0, query_tile, 0, -1);
                if constexpr (with_singles) {
                    if (shared.piece.item.looks) shared.look.finish();
                }
                phase ^= 1;
                if constexpr (B > tile_keys) __syncwarp();  // the lanes have read what the next part's note overwrites
            }
        }
        __device__ __forceinline__ void start_looking() {
            take_keys();
            if (shared.piece.item.lines && elect_one()) {
                shared.piece.j0 = shared.keys[0];
                shared.piece.j1 = shared.keys[min(shared.piece.item.keys, tile_keys) - 1] + 1;
            }
            __syncwarp();
            shared.look.order(false);
        }

        __device__ __forceinline__ void run() {
            PieceQueue<false> queue(args.plan.next, args.plan.key_pieces, args.plan.count[0], lane);
            for (Piece piece = queue.take(); piece.item >= 0; piece = queue.take()) send_piece(piece);
            if constexpr (with_singles) {
                if (args.lines.taken != nullptr) shared.look.order(true);
            }
            barrier_wait(&shared.keys_empty, phase ^ 1);
            const bool chosen = elect_one();
            if (chosen) {
                shared.item.head = -1;
                barrier_arrive(&shared.keys_full);
            }
            announce_all<key_writers>(&shared.keys_full, chosen);
        }
    };

    // --- Single keys ------------------------------------------------------------------------------------------------

    /// The warp that finds the rows that visit them, and gathers keys and values of tiles of lines.
    static __device__ __forceinline__ void look(const BackwardArgs& args, Shared& shared, int lane) {
        shared.look.run(args, shared.piece, shared.keys, lane, [&] {
            const int head = shared.piece.item.head, first = shared.piece.span.key_begin;
            gather_rows<tile_keys, D, 32>(shared.key, args.key, head, first, args.head_dim, shared.keys, lane);
            gather_rows<tile_keys, D, 32>(shared.value, args.value, head, first, args.head_dim, shared.keys, lane);
            __syncwarp();
            const bool chosen = elect_one();
            if (chosen) barrier_arrive(&shared.keys_full);
            announce_all(&shared.keys_full, chosen);
            __syncwarp();
        });
    }

    // --- Scores -----------------------------------------------------------------------------------------------------

    /// The thread's first key of the tile; its second one is 8 further on.
    static __device__ __forceinline__ int first_row() {
        return (split_keys ? (threadIdx.x / 128 - 1) * 64 : 0) + first_row_of(threadIdx.x % 128);
    }
    /// Sets transposed scores of pairs that the token rule hides to -inf. Of key j the queries [low, high) are visible,
    /// and those from `tail` on that are not before low (TokenRule, solved for the query).
    static __device__ __forceinline__ void mask(const BackwardArgs& args, const Shared& shared, int stage, int lane,
                                                float (&score)[32]) {
        const TileNote& note = shared.notes[stage];
        const int branch = note.masked - 1;
        const Window window = window_of(args, branch, note.head);
        constexpr int far = 1 << 30;
        const int first = note.begin + lane % 4 * 2;  // the thread's first query
        const int tail = shared.item.queries - window.dense_tail - first;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = fresh(first_row()) + 8 * half, j = shared.keys[row];
            const int equal = j - (shared.item.keys - shared.item.queries) - first;  // the query that ends at j
            int low = causal_of(args, branch) ? equal : (j < shared.item.keys ? -far : far);
            if constexpr (with_singles) {
                if ((shared.look.key_bits[stage][row / 32] >> row % 32 & 1) == 0) low = far;
            }
            const int high =
                window.local == Window::everything || j < window.sink ? far : equal + min(window.local, far);
#pragma unroll
            for (int i = 0; i < 32; i += 4) {
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int query = i * 2 + side;
                    if (query < low || (query >= high && query < tail)) score[i + 2 * half + side] = -INFINITY;
                }
            }
        }
    }
    /// P^T from S^T.
    static __device__ __forceinline__ void exponentiate(const BackwardArgs& args, const float* values, int lane,
                                                        float (&score)[32]) {
        const float* lse = values + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 32; i += 4) {
            const float2 l = *reinterpret_cast<const float2*>(lse + i * 2);
            score[i] = exp2_fast(score[i] * args.scale_log2 - l.x);
            score[i + 1] = exp2_fast(score[i + 1] * args.scale_log2 - l.y);
            score[i + 2] = exp2_fast(score[i + 2] * args.scale_log2 - l.x);
            score[i + 3] = exp2_fast(score[i + 3] * args.scale_log2 - l.y);
        }
    }
    /// dS^T = P^T (dP^T - delta), packed. P is the rounded one that dV sums: its unrounded registers are free by now.
    static __device__ __forceinline__ void differentiate(const float* values, int lane, const std::uint32_t (&p)[16],
                                                         const float (&dscore)[32], std::uint32_t (&packed)[16]) {
        const float* delta = values + query_tile + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 32; i += 4) {
            const float2 l = *reinterpret_cast<const float2*>(delta + i * 2);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const std::uint32_t pair = p[i / 2 + half];
                packed[i / 2 + half] = pack_bf16(unpack_low(pair) * (dscore[i + 2 * half] - l.x),
                                                 unpack_high(pair) * (dscore[i + 2 * half + 1] - l.y));
            }
        }
    }

    // --- Adders of dQ -----------------------------------------------------------------------------------------------

    /// One warp for each warpgroup: adds its dQ to global memory by bulk copies.
    static __device__ __forceinline__ void add_dqueries(const BackwardArgs& args, Shared& shared, int group) {
        constexpr int floats = query_tile * part_channels;
        for (std::uint32_t phase = 0;; phase ^= 1) {
            barrier_wait(&shared.dquery_full[group], phase);
            const int tile = shared.dquery_tile[group];
            if (tile < 0) break;
            if (elect_one()) {
                float* sums = args.dq_sums + static_cast<std::int64_t>(tile) * query_tile * D;
                bulk_add_f32(sums + (split_keys ? group * floats : 0), shared.dquery[group], floats * 4);
                bulk_commit();
                bulk_wait_read<0>();
            }
            warp_release(&shared.dquery_empty[group], static_cast<int>(threadIdx.x) % 32);
        }
        bulk_wait<0>();
    }

    // --- The kernel's beginning -------------------------------------------------------------------------------------

    static __device__ __forceinline__ void open(Shared& shared) {
        if (shared_address(&shared) % 1024 != 0) __trap();  // the swizzle counts on it
        if (threadIdx.x == 0) {
            barrier_init(&shared.keys_full, announcements<key_writers>);
            barrier_init(&shared.ragged, 1);
            barrier_init(&shared.keys_empty, 256);  // every reader of the item's note
            for (int group = 0; group < 2; ++group) {
                barrier_init(&shared.dquery_full[group], 128);
                barrier_init(&shared.dquery_empty[group], releasing_lanes);
            }
            for (int stage = 0; stage < stages; ++stage) {
                barrier_init(&shared.full[stage], announcements<>);
                barrier_init(&shared.empty[stage], readers * releasing_lanes);
                if constexpr (wide) {
                    barrier_init(&shared.query_full[stage], announcements<>);
                    barrier_init(&shared.query_empty[stage], readers * releasing_lanes);
                }
            }
            barrier_init_fence();
            shared.both.init();
            shared.each.init();
            if constexpr (with_singles) shared.look.init();
        }
        __syncthreads();
        wait_for_previous_kernel();
        dependents_may_launch();  // the query pass needs nothing of this one
    }
    /// The warps of the first warpgroup.
    static __device__ __forceinline__ void load(const BackwardArgs& args, const KeyPassMaps& maps, Shared& shared) {
        const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // uniform, as the compiler must know
        const int lane = static_cast<int>(threadIdx.x) % 32;
        if (warp == 0) {
            Producer producer{args, maps, shared, lane, {&shared.ragged, lane}, {}};
            producer.run();
        } else if constexpr (with_queries) {
            if (warp < 3) add_dqueries(args, shared, warp - 1);
        } else if constexpr (with_singles) {
            if (warp == 1 && args.lines.taken != nullptr) look(args, shared, lane);
        }
    }
};

}  // namespace sparseattn::cuda::hopper
