#pragma once
/// \file
/// The key pass: what a thread block keeps in shared memory, the warp that fills it and the warps that empty it. Device
/// code for sm_90a only.

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
        /// mark (note.begin < 0).
        __device__ __forceinline__ void send(const TileNote& note, int token, int valid, int record) {
            constexpr int value_bytes = 2 * query_tile * 4;
            unsigned char *query = shared.query[ring.stage], *dout = shared.dout[ring.stage];
            Barrier* full = &shared.full[ring.stage];
            barrier_wait(&shared.empty[ring.stage], ring.phase ^ 1);
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

        /// `count` entries of one list, as tiles that see keys [j0, j0 + B) of a sequence.
        __device__ __forceinline__ void send_rows(int branch, int head, const std::int32_t* list, int count,
                                                  int row_begin, const SequenceSpan& span, int j0) {
            const Branch& lists = args.branch[branch];
            const TokenRule rule{span.queries, span.keys, lists.causal, lists.windows[head]};
            ListWalk rows(list, count, lane);
            for (int index = 0; index < count; ++index) {
                const int row = rows.entry(index);
#pragma unroll
                for (int part = 0; part < B / query_tile; ++part) {
                    const int i0 = row * B + part * query_tile;
                    const int i1 = min(i0 + query_tile, span.queries);
                    if (i0 >= i1 || rule.none_visible(i0, i1, j0, j0 + B)) continue;
                    const int tile = head * args.tiles + (row_begin + row) * (B / query_tile) + part;
                    send({i0, rule.all_visible(i0, i1, j0, j0 + B) ? 0 : 1 + branch, head, tile}, span.query_begin + i0,
                         span.queries - i0, branch * args.query_heads * args.tiles + tile);
                }
            }
        }

        /// K and V of a piece's key block, then its share of the lists of the group's heads.
        __device__ __forceinline__ void send_piece(const Piece& piece, std::uint32_t phase) {
            const int key_head = piece.item / args.layout.key_blocks;
            const int key_block = piece.item % args.layout.key_blocks;
            const int sequence = args.layout.key_block_sequence[key_block];
            const SequenceSpan span(args.batch, sequence);
            const int j0 = (key_block - args.layout.key_block_begin[sequence]) * B;
            const int row_begin = args.layout.row_begin[sequence];
            const int token = span.key_begin + j0, valid = span.keys - j0;
            barrier_wait(&shared.keys_empty, phase ^ 1);
            if (valid < B) {
                ragged.template load<B, D>(shared.key, &maps.key, token, key_head, valid);
                ragged.template load<B, D>(shared.value, &maps.value, token, key_head, valid);
            }
            if (elect_one()) {
                shared.item = {key_head, token, j0, 0, span.queries, span.keys, piece.slot, 0};
                if (valid < B) {
                    barrier_arrive(&shared.keys_full);
                } else {
                    barrier_expect(&shared.keys_full, 2 * key_bytes);
                    load_tile<B, D>(shared.key, &maps.key, &shared.keys_full, token, key_head);
                    load_tile<B, D>(shared.value, &maps.value, &shared.keys_full, token, key_head);
                }
            }
            __syncwarp();
            const int group = args.query_heads / args.key_heads;
            int first = piece.first, left = piece.count;
            for (int member = 0; left > 0 && member < args.branches * group; ++member) {
                const int branch = member / group, head = key_head * group + member % group;
                const ListSpan list = rows_of(args, branch, head, key_block);
                const int count = min(left, list.count - first);
                if (count > 0) {
                    send_rows(branch, head, list.entries + first, count, row_begin, span, j0);
                    left -= count;
                }
                first = max(0, first - list.count);
            }
            for (int mark = 0; mark < tile_step; ++mark) send({-1, 0, 0, 0}, 0, query_tile, 0);
        }

        __device__ __forceinline__ void run() {
            PieceQueue<false> queue(args.plan.next, args.plan.key_pieces, args.plan.count[0], lane);
            std::uint32_t phase = 0;
            for (Piece piece = queue.take(); piece.item >= 0; piece = queue.take(), phase ^= 1) {
                send_piece(piece, phase);
            }
            barrier_wait(&shared.keys_empty, phase ^ 1);
            if (elect_one()) {
                shared.item.head = -1;
                barrier_arrive(&shared.keys_full);
            }
        }
    };

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
