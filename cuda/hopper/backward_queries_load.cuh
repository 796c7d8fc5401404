#pragma once
/// \file
/// The query pass: what a thread block keeps in shared memory and the warps that fill it. Device code for sm_90a only.

#include "cuda/hopper/backward_parts.cuh"

namespace sparseattn::cuda::hopper {

/// Rows that are to be gathered: keys or values of single keys.
struct GatherOrder {
    int stage;  // of the ring; -1: no more
    int list;   // stage of the ring of keys that says which
    int head;   // of keys
    int token;  // first key of the sequence in the packed batch
};

/// Head dimension, block, whether there are single keys: calls without them have kernels of their own, which what
/// single keys need would slow down.
template <int D, int B, bool Singles>
struct QueryPassLoad {
    static_assert((D == 64 || D == 128 || D == 256) && (B == 64 || B == 128));
    static constexpr int tile_keys = D == 256 ? 64 : B;  // of a block that are worked on at once
    static constexpr int query_bytes = B * D * 2, key_bytes = tile_keys * D * 2;
    static constexpr int query_panel = B * swizzle_row, key_panel = tile_keys * swizzle_row;
    static constexpr int key_stages = D == 256 ? (B == 64 ? 3 : 2) : (B == 64 ? 6 - D / 64 : (D == 64 ? 4 : 3));
    static constexpr int value_stages = D == 256 ? key_stages - 1 : (B == 64 || D == 64 ? key_stages : 2);
    static constexpr bool split_queries = B == 128;
    static constexpr int readers = split_queries ? 8 : 4;
    static constexpr int tile_step = split_queries ? 1 : 2;
    static constexpr int scores = tile_keys / 2;  // registers of a thread
    /// Warps that gather, and those that write what a full barrier announces.
    static constexpr int gatherers = 3, writers = Singles ? 1 + gatherers : 1;

    struct Shared {
        alignas(1024) unsigned char query[query_bytes];
        alignas(1024) unsigned char dout[query_bytes];
        alignas(1024) unsigned char key[key_stages][key_bytes];
        alignas(1024) unsigned char value[value_stages][key_bytes];
        TileNote notes[key_stages];
        int table[key_stages][Singles ? tile_keys : 1];  // the keys of a tile that is masked
        GatherOrder orders[2];                           // of keys, of values
        ItemNote item, next_item;
        Barrier queries_full, queries_empty, ragged;
        Barrier key_full[key_stages], key_empty[key_stages];
        Barrier value_full[value_stages], value_empty[value_stages];
        NamedBarriers<1, 1, 256> both;  // warpgroups that sum
        NamedBarriers<2, 1, 128> ordered;
        NamedBarriers<3, 1, 32 * gatherers> gathered;
    };

    // --- Producer ---------------------------------------------------------------------------------------------------

    struct Producer {
        const BackwardArgs& args;
        const QueryPassMaps& maps;
        Shared& shared;
        int lane;
        RaggedLoader ragged;
        Ring<key_stages> keys;
        Ring<value_stages> values;
        std::uint32_t phase = 0;  // of the queries
        bool due = false;         // Q and dO of the item are to be loaded

        /// Loads a key block's keys or values, of which `valid` are of its sequence; nothing when `begin` < 0.
        __device__ __forceinline__ void load(unsigned char* stage, const CUtensorMap* map, Barrier* full, int begin,
                                             int token, int head, int valid) {
            const bool whole = begin >= 0 && valid >= tile_keys;
            if (begin >= 0 && !whole) ragged.template load<tile_keys, D>(stage, map, token, head, valid);
            const bool chosen = elect_one();
            if (chosen) {
                if (whole) {
                    barrier_expect(full, key_bytes);
                    load_tile<tile_keys, D>(stage, map, full, token, head);
                } else {
                    barrier_arrive(full);
                }
            }
            announce_all<writers>(full, chosen);
            __syncwarp();
        }

        /// Sends one key block, or the end mark of a branch (note.begin < 0), which takes a turn in both rings.
        __device__ __forceinline__ void send(const TileNote& note, int token, int head, int valid) {
            barrier_wait(&shared.key_empty[keys.stage], keys.phase ^ 1);
            if (elect_one()) shared.notes[keys.stage] = note;
            if constexpr (Singles) {
                if (note.masked != 0) {
#pragma unroll 1
                    for (int i = fresh(lane); i < tile_keys; i += 32) shared.table[keys.stage][i] = note.begin + i;
                }
            }
            __syncwarp();
            load(shared.key[keys.stage], &maps.key, &shared.key_full[keys.stage], note.begin, token, head, valid);
            keys.next();
            if (due) take_queries();
            barrier_wait(&shared.value_empty[values.stage], values.phase ^ 1);
            load(shared.value[values.stage], &maps.value, &shared.value_full[values.stage], note.begin, token, head,
                 valid);
            values.next();
        }

        /// Orders keys (0) or values (1) in turn. They are gathered once the order before is done.
        __device__ __forceinline__ void give(int which, const GatherOrder& order) {
            if (elect_one()) shared.orders[which] = order;
            if (order.stage >= 0) announce_all(full_of(shared, which, order.stage), false);  // the gatherers arrive
            __syncwarp();
            shared.ordered.sync();
        }
        /// The single keys of a list, as tiles.
        __device__ __forceinline__ void send_singles(const ListSpan& list, int branch, int key_head, int key_token) {
            for (int first = 0; first < list.count; first += tile_keys) {
                if (due) take_queries();
                barrier_wait(&shared.key_empty[keys.stage], keys.phase ^ 1);
#pragma unroll 1
                for (int i = fresh(lane); i < tile_keys; i += 32) {
                    shared.table[keys.stage][i] = first + i < list.count ? list.entries[first + i] : no_key;
                }
                if (elect_one()) shared.notes[keys.stage] = {0, 1 + branch, 0, 0};
                give(0, {keys.stage, keys.stage, key_head, key_token});
                barrier_wait(&shared.value_empty[values.stage], values.phase ^ 1);
                give(1, {values.stage, keys.stage, key_head, key_token});
                keys.next();
                values.next();
            }
        }

        /// The key blocks that queries [i0, i1) of a row visit, the single keys, and the end marks of the branch.
        __device__ __forceinline__ void send_branch(int branch, int next, int head, int row, int i0, int i1,
                                                    const SequenceSpan& span) {
            const Branch& lists = args.branch[branch];
            const TokenRule rule{span.queries, span.keys, lists.causal, lists.windows[head]};
            const int key_head = head / args.group;
            const ListSpan list = columns_of(args, branch, head, row);
            ListWalk columns(list.entries, list.count, lane);
            for (int index = 0; index < list.count; ++index) {
                const int begin = columns.entry(index) * B;
#pragma unroll
                for (int j0 = begin; j0 < begin + B; j0 += tile_keys) {
                    const int j1 = j0 + tile_keys;
                    if (rule.none_visible(i0, i1, j0, j1)) continue;
                    send({j0, rule.all_visible(i0, i1, j0, j1) ? 0 : 1 + branch, 0, 0}, span.key_begin + j0, key_head,
                         span.keys - j0);
                }
            }
            if constexpr (Singles) send_singles(singles_of(args, branch, head, row), branch, key_head, span.key_begin);
            for (int mark = 0; mark < tile_step; ++mark) send({-1, 0, next, 0}, 0, 0, 0);
        }

        /// Q and dO of the item noted, once the consumers are done with those before.
        __device__ __forceinline__ void take_queries() {
            barrier_wait(&shared.queries_empty, phase ^ 1);
            if (elect_one()) {
                const ItemNote item = shared.next_item;
                shared.item = item;
                barrier_expect(&shared.queries_full, 2 * query_bytes);
                load_tile<B, D>(shared.query, &maps.query, &shared.queries_full, item.token, item.head);
                load_tile<B, D>(shared.dout, &maps.dout, &shared.queries_full, item.token, item.head);
            }
            __syncwarp();
            due = false;
        }
        /// One item: its branches that have weight. The first keys are sent before the consumers are done with the item
        /// before.
        __device__ __forceinline__ void send_item(int item) {
            const int head = item / args.layout.rows;
            const int row = args.layout.rows - 1 - item % args.layout.rows;
            const int sequence = args.layout.row_sequence[row];
            const SequenceSpan span(args.batch, sequence);
            const int i0 = (row - args.layout.row_begin[sequence]) * B;
            const int i1 = min(i0 + B, span.queries);
            const int first = branch_weight(args, 0, head) != 0 ? 0 : 1;
            const int last = args.branches == 2 && branch_weight(args, 1, head) != 0 ? 1 : 0;
            if (elect_one()) {
                shared.next_item = {head,         span.query_begin + i0,
                                    i0,           head * args.tiles + row * (B / query_tile),
                                    span.queries, span.keys,
                                    -1,           first};
            }
            __syncwarp();
            due = true;
            for (int branch = first; branch <= last; ++branch) {
                send_branch(branch, branch < last ? branch + 1 : -1, head, row, i0, i1, span);
            }
        }

        __device__ __forceinline__ void run() {
            PieceQueue<true> queue(args.plan.next + 1, args.plan.query_pieces, args.plan.count[1], lane);
            for (Piece piece = queue.take(); piece.item >= 0; piece = queue.take(), phase ^= 1) {
                send_item(piece.item);
            }
            barrier_wait(&shared.queries_empty, phase ^ 1);
            if (elect_one()) {
                shared.item.head = -1;
                barrier_arrive(&shared.queries_full);
            }
            if constexpr (Singles) {
                if (args.lines.taken != nullptr) give(0, {-1, 0, 0, 0});
            }
        }
    };

    // --- Gatherers --------------------------------------------------------------------------------------------------

    /// What the gatherers of keys (0) or values (1) announce them on.
    static __device__ __forceinline__ Barrier* full_of(Shared& shared, int which, int stage) {
        return which == 0 ? &shared.key_full[stage] : &shared.value_full[stage];
    }
    /// The other warps of the producer's warpgroup.
    static __device__ __forceinline__ void gather(const BackwardArgs& args, Shared& shared) {
        const int thread = static_cast<int>(threadIdx.x) - 32;
        for (int which = 0;; which ^= 1) {
            shared.ordered.sync();
            const GatherOrder order = shared.orders[which];
            if (order.stage < 0) break;
            gather_rows<tile_keys, D, 32 * gatherers>(which == 0 ? shared.key[order.stage] : shared.value[order.stage],
                                                      which == 0 ? args.key : args.value, order.head, order.token,
                                                      args.head_dim, shared.table[order.list], thread);
            shared.gathered.sync();
            if (thread == 0) barrier_arrive(full_of(shared, which, order.stage));
            announce_all(full_of(shared, which, order.stage), thread == 0);
        }
    }

    // --- The kernel's beginning -------------------------------------------------------------------------------------

    static __device__ __forceinline__ void open(Shared& shared) {
        if (shared_address(&shared) % 1024 != 0) __trap();  // the swizzle counts on it
        if (threadIdx.x == 0) {
            barrier_init(&shared.queries_full, 1);
            barrier_init(&shared.ragged, 1);
            barrier_init(&shared.queries_empty, 256);  // every reader of the item's note
            for (int stage = 0; stage < key_stages; ++stage) {
                barrier_init(&shared.key_full[stage], announcements<writers>);
                barrier_init(&shared.key_empty[stage], readers * releasing_lanes);
            }
            for (int stage = 0; stage < value_stages; ++stage) {
                barrier_init(&shared.value_full[stage], announcements<writers>);
                barrier_init(&shared.value_empty[stage], readers * releasing_lanes);
            }
            shared.both.init();
            shared.ordered.init();
            shared.gathered.init();
            barrier_init_fence();
        }
        __syncthreads();
    }
    /// The warps of the first warpgroup.
    static __device__ __forceinline__ void load(const BackwardArgs& args, const QueryPassMaps& maps, Shared& shared) {
        const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // uniform, as the compiler must know
        if (warp == 0) {
            const int lane = static_cast<int>(threadIdx.x);
            Producer producer{args, maps, shared, lane, {&shared.ragged, lane}, {}, {}};
            producer.run();
            wait_for_previous_kernel();  // so that whatever follows this kernel follows the key pass too
        } else if constexpr (Singles) {
            if (args.lines.taken != nullptr) gather(args, shared);
        }
    }
};

}  // namespace sparseattn::cuda::hopper
