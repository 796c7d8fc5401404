#pragma once
/// \file
/// The walks over the lists, as every warp makes them for itself: from a tile of queries over keys, and from a tile of
/// keys over queries. Both go through one or two branches (layouts on one grid) in a fixed order.

#include "cuda/ampere/backward_args.hpp"
#include "cuda/ampere/tile.cuh"
#include "cuda/token_rule.cuh"

namespace sparseattn::cuda::ampere {

/// A list that is read one entry ahead of use.
class List {
  public:
    List() = default;
    __device__ __forceinline__ List(const std::int32_t* entries, std::int64_t begin, std::int64_t end)
        : next_(entries + begin), left_(static_cast<int>(end - begin)) {
        fetch();
    }
    __device__ __forceinline__ bool take(int& entry) {
        if (left_ <= 0) return false;
        entry = ahead_;
        ++next_;
        --left_;
        fetch();
        return true;
    }
    /// The entry that take() would give; `none` at the end.
    __device__ __forceinline__ int peek(int none) const { return left_ > 0 ? ahead_ : none; }

  private:
    __device__ __forceinline__ void fetch() {
        if (left_ > 0) ahead_ = __ldg(next_);
    }
    const std::int32_t* next_ = nullptr;
    int left_ = 0, ahead_ = 0;
};

/// Some keys for a tile of queries.
struct KeyTile {
    int count;                    // columns that hold a key; 0: the walk is over
    int begin;                    // first key in its sequence, or
    const std::int32_t* singles;  // the single keys of the tile, when not null
    int branch;

    /// The key of a column, in its sequence.
    __device__ __forceinline__ int key(int column) const {
        if (column >= count) return Window::everything;
        return singles != nullptr ? __ldg(singles + column) : begin + column;
    }
};

/// Copies the rows of a tile of keys, or their values, to shared memory.
template <int D, int Rows, int Threads>
__device__ __forceinline__ void load_keys(std::uint32_t to, const Heads& array, const KeyTile& tile, int key_begin,
                                          int key_head) {
    if (tile.singles == nullptr) {
        load_tile<D, Rows, Threads>(to, array, key_head, static_cast<std::int64_t>(key_begin) + tile.begin, tile.count);
    } else {
        gather_tile<D, Rows, Threads>(to, array, key_head, key_begin, tile.singles, tile.count);
    }
}

/// Walks the keys of queries [first, last) of one row and head: blocks, then single keys, of each open branch.
template <int Keys>
class KeyWalk {
  public:
    /// Branch b takes part when bit b of `open` is set.
    __device__ __forceinline__ KeyWalk(const Branch* branches, unsigned open, const SequenceSpan& span, int head,
                                       int row, int first, int last)
        : branches_(branches), open_(open), head_(head), row_(row), first_(first), last_(last) {
        rule_.queries = span.queries;
        rule_.keys = span.keys;
    }

    /// Of the branch that the last tile was of.
    __device__ __forceinline__ const TokenRule& rule() const { return rule_; }

    __device__ __forceinline__ KeyTile next() {
        for (;;) {
            if (begin_ < end_) {
                const int begin = begin_, count = min(Keys, rule_.keys - begin);
                begin_ += Keys;
                if (!rule_.none_visible(first_, last_, begin, begin + count)) {
                    return {count, begin, nullptr, branch_};
                }
                continue;
            }
            int column;
            if (columns_.take(column)) {
                begin_ = column * block_;
                end_ = min(begin_ + block_, rule_.keys);
                continue;
            }
            if (singles_left_ > 0) {
                const KeyTile tile{min(Keys, singles_left_), 0, singles_, branch_};
                singles_ += Keys;
                singles_left_ -= Keys;
                return tile;
            }
            if (!open_next()) return {0, 0, nullptr, 0};
        }
    }

  private:
    __device__ __forceinline__ bool open_next() {
        if (open_ == 0) return false;
        branch_ = __ffs(open_) - 1;
        open_ &= open_ - 1;
        const Layout& layout = branches_[branch_].layout;
        const std::int64_t entry = static_cast<std::int64_t>(layout.head_list[head_]) * layout.rows + row_;
        block_ = layout.block;
        rule_.causal = layout.causal;
        rule_.window = layout.windows[head_];
        columns_ = List(layout.columns, layout.offsets[entry], layout.offsets[entry + 1]);
        if (layout.key_offsets != nullptr) {
            const std::int64_t begin = layout.key_offsets[entry];
            singles_ = layout.keys + begin;
            singles_left_ = static_cast<int>(layout.key_offsets[entry + 1] - begin);
        }
        return true;
    }

    const Branch* branches_;
    unsigned open_;
    int head_, row_, first_, last_;
    int branch_ = 0, block_ = 0;
    int begin_ = 0, end_ = 0;  // what is left of the block
    TokenRule rule_{};
    List columns_;
    const std::int32_t* singles_ = nullptr;
    int singles_left_ = 0;
};

/// Some queries for a tile of keys.
struct QueryTile {
    static constexpr unsigned all_keys = 7;
    int begin;  // first query in its sequence; -1: the walk is over
    int head;   // query head
    int branch;
    unsigned keys;  // all_keys, or single ones: bit 0 of the thread's first key, bit 1 of its second, 8 further on
};

/// Walks the queries of a tile of 64 keys and one key head: for each open branch and head of the group the rows that
/// list the key block, then those that list single keys of the tile, each ascending.
template <int Queries>
class QueryWalk {
  public:
    /// `block`: the key block; [begin, end): the tile's keys in their sequence.
    __device__ __forceinline__ QueryWalk(const BackwardArgs& args, const SequenceSpan& span, int key_head, int block,
                                         int begin, int end)
        : args_(args),
          head_(key_head * args.group - 1),
          last_head_((key_head + 1) * args.group),
          block_(block),
          key_begin_(begin),
          key_end_(end),
          key_token_(span.key_begin) {
        rule_.queries = span.queries;
        rule_.keys = span.keys;
    }

    __device__ __forceinline__ QueryTile next() {
        for (;;) {
            if (begin_ < end_) {
                const int begin = begin_;
                begin_ += Queries;
                if (!rule_.none_visible(begin, min(begin + Queries, end_), key_begin_, key_end_)) {
                    return {begin, head_, branch_, keys_};
                }
                continue;
            }
            int row;
            if (rows_.take(row) || merge_singles(row)) {
                const int size = args_.branch[0].layout.block;
                begin_ = row * size;
                end_ = min(begin_ + size, rule_.queries);
                continue;
            }
            if (!open_next()) return {-1, 0, 0, 0};
        }
    }

  private:
    static constexpr int none = 0x7fffffff;

    /// The next row in the merged lists of the tile's keys: a lane keeps those of keys `lane` and `lane` + 32.
    __device__ __forceinline__ bool merge_singles(int& row) {
        if (args_.branch[branch_].transposed.key_offsets == nullptr) return false;
        const int a = lists_[0].peek(none), b = lists_[1].peek(none);
        row = __reduce_min_sync(all_lanes, min(a, b));
        if (row == none) return false;
        const unsigned low = __ballot_sync(all_lanes, a == row), high = __ballot_sync(all_lanes, b == row);
        const int own = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
        const unsigned bits = (own < 32 ? low : high) >> own % 32;
        keys_ = (bits & 1) | (bits >> 7 & 2);
        int taken;
        if (a == row) lists_[0].take(taken);
        if (b == row) lists_[1].take(taken);
        return true;
    }
    __device__ __forceinline__ bool open_next() {
        do {
            if (++head_ == last_head_) {
                if (++branch_ == args_.branches) {
                    --head_, --branch_;  // stays at the end
                    return false;
                }
                head_ -= args_.group;
            }
        } while (args_.gate != nullptr && args_.gate[head_] == (branch_ == 0 ? 0.0f : 1.0f));
        const Layout& layout = args_.branch[branch_].layout;
        const Transposed& transposed = args_.branch[branch_].transposed;
        const std::int64_t list = layout.head_list[head_], entry = list * layout.key_blocks + block_;
        rule_.causal = layout.causal;
        rule_.window = layout.windows[head_];
        keys_ = QueryTile::all_keys;
        rows_ = List(transposed.rows, transposed.offsets[entry], transposed.offsets[entry + 1]);
        if (transposed.key_offsets != nullptr) {
            const int lane = static_cast<int>(threadIdx.x) % 32;
            const std::int64_t* at = transposed.key_offsets + list * args_.batch.keys + key_token_;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int key = key_begin_ + lane + 32 * i;
                lists_[i] = key < key_end_ ? List(transposed.key_rows, at[key], at[key + 1]) : List();
            }
        }
        return true;
    }

    const BackwardArgs& args_;
    int head_, last_head_;
    int block_, key_begin_, key_end_, key_token_;
    int branch_ = 0;
    int begin_ = 0, end_ = 0;  // what is left of the row
    TokenRule rule_{};
    List rows_, lists_[2];
    unsigned keys_ = 0;
};

}  // namespace sparseattn::cuda::ampere
