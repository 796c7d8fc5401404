#pragma once
/// \file
/// The key pass: what a thread block keeps in shared memory, the warp that fills it and the warps that empty it. Device
/// code for sm_90a only.

#include "cuda/hopper/backward_look.cuh"
#include "cuda/hopper/backward_parts.cuh"

namespace sparseattn::cuda::hopper {

/// Head dimension, block, whether dQ is summed too.
template <int D, int B, bool WithQueries>
struct KeyPassLoad {
    static_assert((D == 64 || D == 128) && (B == 64 || B == 128));
    static constexpr int stages = D == 64 ? 6 : (B == 128 ? 3 : 4);
    static constexpr int key_bytes = B * D * 2;
    static constexpr int query_bytes = query_tile * D * 2;
    static constexpr int key_panel = B * swizzle_row;
    static constexpr int query_panel = query_tile * swizzle_row;
    static constexpr int score_bytes = WithQueries ? B * swizzle_row : 16;
    static constexpr bool split_keys = B == 128;        // between the warpgroups; otherwise they split the tiles
    static constexpr int readers = split_keys ? 8 : 4;  // warps that use a tile
    static constexpr int tile_step = split_keys ? 1 : 2;
    // dQ: channels of one product; warpgroups that share tiles take a part each.
    static constexpr int part_channels = split_keys ? D / 2 : 64;
    // Exponentials are kept before the wait for dP^T. Where it was measured to help: warpgroups that work on the same
    // tile, and enough work in its products.
    static constexpr bool hold = split_keys && (D == 128 || !WithQueries);
    // Registers of the loading warpgroup's threads and of the others'.
    static constexpr int load_registers = D == 64 ? 40 : 24, sum_registers = (504 - load_registers) / 2;
    static_assert(!WithQueries || split_keys || D == 64, "one warpgroup has no registers for 128 channels of dQ");

    struct Shared {
        alignas(1024) unsigned char key[key_bytes];
        alignas(1024) unsigned char value[key_bytes];
        alignas(1024) unsigned char query[stages][query_bytes];
        alignas(1024) unsigned char dout[stages][query_bytes];
        alignas(1024) unsigned char score[2][score_bytes];
        // dQ of a tile on its way to global memory, from each warpgroup what it has formed
        alignas(128) float dquery[2][WithQueries ? query_tile * part_channels : 4];
        int dquery_tile[2];
        Barrier dquery_full[2], dquery_empty[2];
        alignas(16) float values[stages][2 * query_tile];
        TileNote notes[stages];
        ItemNote item;
        PieceNote piece;
        Share share;  // of the producer
        int keys[B];  // see KeyItem::key
        LookShared<B, WithQueries ? 0 : stages> look;
        Barrier keys_full, keys_empty, ragged;
        Barrier full[stages], empty[stages];
    };

    // --- Producer ---------------------------------------------------------------------------------------------------

    struct Producer {
        const BackwardArgs& args;
        const KeyPassMaps& maps;
        Shared& shared;
        int lane;
        RaggedLoader ragged;
        Ring<stages> ring;

        /// Sends one tile of which `valid` queries are of its sequence, with values number `record`, or an item's end
        /// mark (note.begin < 0). `bit`: of the words of which keys visit it; -1: all do.
        __device__ __forceinline__ void send(const TileNote& note, int token, int valid, int record, int bit) {
            constexpr int value_bytes = 2 * query_tile * 4;
            unsigned char *query = shared.query[ring.stage], *dout = shared.dout[ring.stage];
            Barrier* full = &shared.full[ring.stage];
            barrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
            if constexpr (!WithQueries) {
                if (note.masked != 0) shared.look.write_bits(ring.stage, bit, lane);
            }
            const bool whole = valid >= query_tile;
            if (!whole) {
                ragged.template load<query_tile, D>(query, &maps.query, token, note.head, valid);
                ragged.template load<query_tile, D>(dout, &maps.dout, token, note.head, valid);
            }
            if (elect_one()) {
                shared.notes[ring.stage] = note;
                if (note.begin < 0) {
                    barrier_arrive(full);
                } else {
                    barrier_expect(full, (whole ? 2 * query_bytes : 0) + value_bytes);
                    if (whole) {
                        load_tile<query_tile, D>(query, &maps.query, full, token, note.head);
                        load_tile<query_tile, D>(dout, &maps.dout, full, token, note.head);
                    }
                    bulk_load(shared.values[ring.stage],
                              args.row_values + static_cast<std::int64_t>(record) * 2 * query_tile, value_bytes, full);
                }
            }
            __syncwarp();
            ring.next();
        }

        /// One row (query block) of the share, as tiles.
        __device__ __forceinline__ void send_row(int row, int bit) {
            const PieceNote& piece = shared.piece;
            const Share& share = shared.share;
#pragma unroll
            for (int part = 0; part < B / query_tile; ++part) {
                const int i0 = row * B + part * query_tile;
                const int i1 = min(i0 + query_tile, piece.span.queries);
                if (i0 >= i1 || share.rule.none_visible(i0, i1, piece.j0, piece.j1)) continue;
                bool whole = share.rule.all_visible(i0, i1, piece.j0, piece.j1);
                if constexpr (!WithQueries) whole = whole && shared.look.all_keys(shared.keys, bit, lane);
                const int tile = share.head * args.tiles + (piece.row_begin + row) * (B / query_tile) + part;
                send({i0, whole ? 0 : 1 + share.branch, share.head, tile}, piece.span.query_begin + i0,
                     piece.span.queries - i0, share.branch * args.query_heads * args.tiles + tile, bit);
            }
        }
        /// The rows of the share: those of its list, then those that are looked at.
        __device__ __forceinline__ void send_share() {
            ListWalk rows(shared.share.entries, shared.share.count, lane);
            for (int index = 0; index < shared.share.count; ++index) send_row(rows.entry(index), -1);
            if constexpr (!WithQueries) {
                for (int first = shared.share.first_row; first < shared.share.end_row; first += 32) {
                    for (unsigned found = shared.look.take(lane); found != 0; found &= found - 1) {
                        const int bit = __ffs(found) - 1;
                        send_row(first + bit, bit);
                    }
                    shared.look.give_back();
                }
            }
        }

        /// Notes the piece and its keys.
        __device__ __forceinline__ void note_piece(const Piece& piece) {
            PieceNote& note = shared.piece;
            if (elect_one()) {
                note.piece = piece;
                note.item = KeyItem(args, piece.item);
                note.span = SequenceSpan(args.batch, note.item.sequence);
            }
            __syncwarp();
#pragma unroll 1
            for (int i = fresh(lane); i < B; i += 32) shared.keys[i] = note.item.key(args, note.span, i);
            __syncwarp();
            if (elect_one()) {
                note.row_begin = args.layout.row_begin[note.item.sequence];
                note.j0 = note.item.lines ? shared.keys[0] : note.item.begin;
                note.j1 = note.item.lines ? shared.keys[min(note.item.keys, B) - 1] + 1 : note.item.begin + B;
                shared.item = {note.item.head,    note.span.key_begin, 0, 0,
                               note.span.queries, note.span.keys,      note.piece.slot, 0};
            }
            __syncwarp();
        }
        /// K and V of a key block.
        __device__ __forceinline__ void load_keys() {
            const KeyItem& item = shared.piece.item;
            const int token = shared.piece.span.key_begin + item.begin;
            if (item.keys < B) {
                ragged.template load<B, D>(shared.key, &maps.key, token, item.head, item.keys);
                ragged.template load<B, D>(shared.value, &maps.value, token, item.head, item.keys);
            }
            if (elect_one()) {
                if (item.keys < B) {
                    barrier_arrive(&shared.keys_full);
                } else {
                    barrier_expect(&shared.keys_full, 2 * key_bytes);
                    load_tile<B, D>(shared.key, &maps.key, &shared.keys_full, token, item.head);
                    load_tile<B, D>(shared.value, &maps.value, &shared.keys_full, token, item.head);
                }
            }
            __syncwarp();
        }

        /// K and V of a piece, then its share of the lists of the group's heads.
        __device__ __forceinline__ void send_piece(const Piece& piece, std::uint32_t phase) {
            barrier_wait(&shared.keys_empty, phase ^ 1);
            note_piece(piece);
            if constexpr (!WithQueries) {
                if (shared.piece.item.looks) shared.look.order(false);
            }
            if (!shared.piece.item.lines) load_keys();
            for (shared.share.start(shared.piece); shared.share.next(args, shared.piece);) send_share();
            for (int mark = 0; mark < tile_step; ++mark) send({-1, 0, 0, 0}, 0, query_tile, 0, -1);
            if constexpr (!WithQueries) {
                if (shared.piece.item.looks) shared.look.finish();
            }
        }

        __device__ __forceinline__ void run() {
            PieceQueue<false> queue(args.plan.next, args.plan.key_pieces, args.plan.count[0], lane);
            std::uint32_t phase = 0;
            for (Piece piece = queue.take(); piece.item >= 0; piece = queue.take(), phase ^= 1) {
                send_piece(piece, phase);
            }
            if constexpr (!WithQueries) {
                if (args.lines.taken != nullptr) shared.look.order(true);
            }
            barrier_wait(&shared.keys_empty, phase ^ 1);
            if (elect_one()) {
                shared.item.head = -1;
                barrier_arrive(&shared.keys_full);
            }
        }
    };

    // --- Single keys ------------------------------------------------------------------------------------------------

    /// The warp that finds the rows that visit them, and gathers keys and values of tiles of lines.
    static __device__ __forceinline__ void look(const BackwardArgs& args, Shared& shared, int lane) {
        shared.look.run(args, shared.piece, shared.keys, lane, [&] {
            const int head = shared.piece.item.head, first = shared.piece.span.key_begin;
            gather_rows<B, D, 32>(shared.key, args.key, head, first, args.head_dim, shared.keys, lane);
            gather_rows<B, D, 32>(shared.value, args.value, head, first, args.head_dim, shared.keys, lane);
            __syncwarp();
            if (elect_one()) barrier_arrive(&shared.keys_full);
            __syncwarp();
        });
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
};

}  // namespace sparseattn::cuda::hopper
