#pragma once
/// \file
/// The key pass and single keys: the shares of a piece, and the warp that finds the rows that visit keys of a tile each
/// by itself. Device code for sm_90a only.

#include "cuda/hopper/backward_lists.cuh"
#include "cuda/hopper/ptx.cuh"
#include "cuda/token_rule.cuh"

namespace sparseattn::cuda::hopper {

// The producer and the looking warp have few registers: what they know of a piece they keep in shared memory.

/// A piece, written by the producer.
struct PieceNote {
    Piece piece;
    KeyItem item;
    SequenceSpan span;
    int part;       // of the block, where it is worked on in parts
    int row_begin;  // number of the sequence's first row
    int j0, j1;     // the keys lie between these
};

/// What a piece takes of one head in one branch.
struct Share {
    int branch, head;
    const std::int32_t* entries;  // rows that visit all keys of the item
    int count;
    int first_row, end_row;  // rows that are looked at
    TokenRule rule;
    int first, left, member;  // of the piece: where the next share begins, what is left, its number

    // Shares are gone through by branches, and in each by the heads of the group. Called by a whole warp, whose own the
    // share is.
    __device__ __forceinline__ void start(const PieceNote& note) {
        if (elect_one()) first = note.piece.first, left = note.piece.count, member = 0;
        __syncwarp();
    }
    __device__ __forceinline__ bool next(const BackwardArgs& args, const PieceNote& note) {
        const int group = args.group;
        if (left <= 0 || member >= args.branches * group) return false;
        __syncwarp();
        if (elect_one()) {
            branch = member / group;
            head = note.item.head * group + member % group;
            ++member;
            rule = {note.span.queries, note.span.keys, args.branch[branch].causal, args.branch[branch].windows[head]};
            const ListSpan list = rows_of(args, branch, head, note.item.block);
            entries = list.entries + first;
            count = take(note.item.lines ? 0 : list.count);
            first_row = note.item.first_row(args, note.span, branch) + first;
            end_row = first_row + take(note.item.looked_rows(args, note.span, branch, head));
        }
        __syncwarp();
        return true;
    }

  private:
    __device__ __forceinline__ int take(int all) {
        const int taken = max(0, min(left, all - first));
        left -= taken;
        first = max(0, first - all);
        return taken;
    }
};

/// What the looking warp and the producer share, and what the producer tells the consumers. With `Stages` 0: nothing.
///
/// The looking warp gets each piece that has rows to look at. For 32 rows at a time it writes a word for each key of
/// the tile (of which there are `Keys`), bit r: row r visits it. There are two buffers of words.
template <int Keys, int Stages>
struct LookShared {
    std::uint32_t words[2][Keys];
    std::uint32_t key_bits[Stages][4];  // of a tile that is masked: the keys that its rows visit
    const std::int32_t* next[2][Keys];  // what is left of each key's lists: single, and by block
    int left[2][Keys];
    Share share;  // of the looking warp
    int turn;     // of the producer
    bool done;
    NamedBarriers<4, 1, 64> ordered;
    NamedBarriers<5, 4, 64> words_passed;  // by buffer, full and empty

    static __device__ __forceinline__ int full(int buffer) { return buffer == 0 ? 0 : 1; }
    static __device__ __forceinline__ int empty(int buffer) { return buffer == 0 ? 2 : 3; }

    __device__ __forceinline__ void init() {  // by one thread
        turn = 0;
        ordered.init();
        words_passed.init();
    }

    // --- Producer ---------------------------------------------------------------------------------------------------

    /// The piece has been noted, or there are no more.
    __device__ __forceinline__ void order(bool last) {
        if (elect_one()) done = last;
        __syncwarp();
        ordered.sync();
    }
    /// Waits until the looking warp needs nothing more of the piece.
    __device__ __forceinline__ void finish() { ordered.sync(); }
    /// Waits for the words of the next 32 rows; bit r: row r visits any key.
    __device__ __forceinline__ std::uint32_t take(int lane) {
        words_passed.sync(full(turn));
        std::uint32_t any = 0;
#pragma unroll
        for (int key = fresh(lane); key < Keys; key += 32) any |= words[turn][key];
        return __reduce_or_sync(0xffffffffu, any);
    }
    __device__ __forceinline__ void give_back() {
        words_passed.arrive(empty(turn));
        __syncwarp();
        if (elect_one()) turn ^= 1;
        __syncwarp();
    }
    /// Whether row `bit` visits all keys of which results are written.
    __device__ __forceinline__ bool all_keys(const int* keys, int bit, int lane) const {
        bool all = true;
#pragma unroll
        for (int key = fresh(lane); key < Keys; key += 32) {
            all = all && ((words[turn][key] >> bit & 1) != 0 || keys[key] == no_key);
        }
        return __all_sync(0xffffffffu, all);
    }
    __device__ __forceinline__ void write_bits(int stage, int bit, int lane) {
#pragma unroll 1
        for (int run = 0; run < Keys / 32; ++run) {
            const bool visits = bit < 0 || (words[turn][run * 32 + fresh(lane)] >> bit & 1) != 0;
            const std::uint32_t bits = __ballot_sync(0xffffffffu, visits);
            if (lane == run) key_bits[stage][run] = bits;
        }
        __syncwarp();
    }

    // --- The looking warp -------------------------------------------------------------------------------------------

    /// The part of a list from row `row` on.
    __device__ __forceinline__ void start_list(int which, int key, const std::int32_t* list, const std::int64_t* at,
                                               int row) {
        int count = static_cast<int>(at[1] - at[0]);
        list += at[0];
        if (count > 0 && *list < row) {  // the piece begins inside the list
            int low = 0, high = count;
            while (low < high) {
                const int middle = (low + high) / 2;
                if (list[middle] < row)
                    low = middle + 1;
                else
                    high = middle;
            }
            list += low;
            count -= low;
        }
        next[which][key] = list;
        left[which][key] = count;
    }
    /// The lists of all keys of the tile.
    __device__ __forceinline__ void start_lists(const BackwardArgs& args, const PieceNote& note, const int* keys,
                                                int lane) {
        const Branch& lists = args.branch[share.branch];
#pragma unroll 1
        for (int i = fresh(lane); i < Keys; i += 32) {
            const int key = keys[i];
            left[0][i] = left[1][i] = 0;
            if (key == no_key) continue;
            const std::int64_t list = lists.head_list[share.head];
            if (lists.single_row_offsets != nullptr) {
                start_list(0, i, lists.single_rows,
                           lists.single_row_offsets + list * args.batch.keys + note.span.key_begin + key,
                           share.first_row);
            }
            if (note.item.lines) {
                const int block = args.layout.key_block_begin[note.item.sequence] + key / args.layout.block;
                start_list(1, i, lists.rows, lists.row_offsets + list * args.layout.key_blocks + block,
                           share.first_row);
            }
        }
    }
    /// Bits of the rows from `row` on, and moves on past them.
    __device__ __forceinline__ std::uint32_t take_rows(int which, int key, int row) {
        std::uint32_t word = 0;
        int count = left[which][key];
        if (count == 0) return 0;
        const std::int32_t* at = next[which][key];
        for (; count > 0 && *at < row + 32; ++at, --count) word |= 1u << (*at - row);
        next[which][key] = at;
        left[which][key] = count;
        return word;
    }

    /// Until the producer has no more pieces. `gather` loads the keys and values of a tile of lines.
    template <class Gather>
    __device__ __forceinline__ void run(const BackwardArgs& args, const PieceNote& note, const int* keys, int lane,
                                        const Gather& gather) {
        int buffer = 0;
        bool used = false;  // both buffers have been
        for (;;) {
            ordered.sync();
            if (done) break;
            if (note.item.lines) gather();
            for (share.start(note); share.next(args, note);) {
                if (share.first_row >= share.end_row) continue;
                start_lists(args, note, keys, lane);
                for (int row = share.first_row; row < share.end_row; row += 32) {
                    if (used) words_passed.sync(empty(buffer));
                    const int left = share.end_row - row;
                    const std::uint32_t mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
#pragma unroll 1
                    for (int i = fresh(lane); i < Keys; i += 32) {
                        words[buffer][i] = (take_rows(0, i, row) | take_rows(1, i, row)) & mask;
                    }
                    words_passed.arrive(full(buffer));
                    if (buffer == 1) used = true;
                    buffer ^= 1;
                }
            }
            ordered.sync();
        }
    }
};
template <int Keys>
struct LookShared<Keys, 0> {};

}  // namespace sparseattn::cuda::hopper
