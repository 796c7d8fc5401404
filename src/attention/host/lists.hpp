#pragma once
// A layout's lists as the host kernels walk them: raw pointers, rows of one head, tiles of 64 keys, masks.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "kernels.hpp"
#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn::detail::host {

using HostMem = Kokkos::HostSpace;

/// One head's list at one row (query block): what it visits and which pairs it keeps there.
struct RowList {
    TokenRule rule;
    const std::int32_t* columns = nullptr;  // key blocks
    const std::int32_t* columns_end = nullptr;
    const std::int32_t* keys = nullptr;  // single keys
    const std::int32_t* keys_end = nullptr;

    [[nodiscard]] bool has_block(std::int32_t block) const { return std::binary_search(columns, columns_end, block); }
    [[nodiscard]] bool has_key(std::int32_t key) const { return std::binary_search(keys, keys_end, key); }
    [[nodiscard]] bool has_key_in(std::int32_t begin, std::int32_t end) const {
        const std::int32_t* at = std::lower_bound(keys, keys_end, begin);
        return at != keys_end && *at < end;
    }
};

/// The batch's grid; blocks of 64 or 128 tokens are one or two tiles.
struct Grid {
    int block, rows, key_blocks, sequences;
    const std::int32_t *row_begin, *row_sequence, *key_block_begin, *key_block_sequence;
    const std::int32_t *query_offsets, *key_offsets;

    [[nodiscard]] int tiles_per_block() const { return block / tile; }
    [[nodiscard]] std::int32_t queries(int s) const { return query_offsets[s + 1] - query_offsets[s]; }
    [[nodiscard]] std::int32_t keys(int s) const { return key_offsets[s + 1] - key_offsets[s]; }
};

inline Grid grid_of(const Sequences<HostMem>& sequences, const BlockGrid<HostMem>& grid) {
    return {grid.block,
            grid.rows,
            grid.key_blocks,
            sequences.count(),
            grid.row_begin.data(),
            grid.row_sequence.data(),
            grid.key_block_begin.data(),
            grid.key_block_sequence.data(),
            sequences.device_query_offsets().data(),
            sequences.device_key_offsets().data()};
}

/// A layout without its grid.
struct Lists {
    const std::int32_t* head_list = nullptr;
    const Window* windows = nullptr;
    const std::int64_t* offsets = nullptr;
    const std::int32_t* columns = nullptr;
    const std::int64_t* key_offsets = nullptr;  // null: no single keys
    const std::int32_t* keys = nullptr;
    bool causal = true;

    /// Head's list at row `row` of the batch, which lies in sequence `s`.
    [[nodiscard]] RowList row(const Grid& grid, int head, int row, int s) const {
        RowList list{{grid.queries(s), grid.keys(s), causal, windows[head]}};
        const std::int64_t at = static_cast<std::int64_t>(head_list[head]) * grid.rows + row;
        list.columns = columns + offsets[at];
        list.columns_end = columns + offsets[at + 1];
        if (key_offsets != nullptr) {
            list.keys = keys + key_offsets[at];
            list.keys_end = keys + key_offsets[at + 1];
        }
        return list;
    }
};

inline Lists lists_of(const BlockLayout<HostMem>& layout) {
    Lists lists{layout.head_list.data(), layout.windows.data(), layout.offsets.data(), layout.columns.data()};
    if (layout.has_single_keys()) {
        lists.key_offsets = layout.key_offsets.data();
        lists.keys = layout.keys.data();
    }
    lists.causal = layout.causal;
    return lists;
}

/// The same from the keys.
struct TransposedLists {
    const std::int64_t* offsets = nullptr;
    const std::int32_t* rows = nullptr;
    const std::int64_t* key_offsets = nullptr;
    const std::int32_t* key_rows = nullptr;
};

inline TransposedLists lists_of(const TransposedLayout<HostMem>& transposed) {
    return {transposed.offsets.data(), transposed.rows.data(), transposed.key_offsets.data(),
            transposed.key_rows.data()};
}

/// Queries [begin, begin + count) of a sequence, at most a tile.
struct QueryTile {
    std::int32_t begin;
    int count;
};

/// How much of a tile a list keeps.
enum class Cover { none, part, all };

inline Cover rule_cover(const TokenRule& rule, const QueryTile& q, std::int32_t key_begin, std::int32_t key_end) {
    const std::int32_t q_end = q.begin + q.count;
    if (rule.none_visible(q.begin, q_end, key_begin, key_end)) return Cover::none;
    return rule.all_visible(q.begin, q_end, key_begin, key_end) ? Cover::all : Cover::part;
}

/// Cover of keys [key_begin, key_end), which lie in one block, by blocks and single keys of the list.
inline Cover list_cover(const RowList& list, int block, const QueryTile& q, std::int32_t key_begin,
                        std::int32_t key_end) {
    if (list.has_block(key_begin / block)) return rule_cover(list.rule, q, key_begin, key_end);
    return list.has_key_in(key_begin, key_end) ? Cover::part : Cover::none;
}

/// Bits 0..n-1.
inline std::uint64_t first_bits(std::int32_t n) {
    return n <= 0 ? 0 : n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

/// mask[i] = which of the `count` keys from key_begin query i of the tile sees under the rule.
inline void rule_mask(const TokenRule& rule, const QueryTile& q, std::int32_t key_begin, int count,
                      std::uint64_t* mask) {
    const std::uint64_t sink = first_bits(std::min(rule.window.sink - key_begin, count));
    for (int i = 0; i < q.count; ++i) {
        const std::uint64_t end = first_bits(std::min(rule.key_end(q.begin + i) - key_begin, count));
        const std::uint64_t hidden = first_bits(rule.local_begin(q.begin + i) - key_begin);
        mask[i] = end & (sink | ~hidden);
    }
}

/// As rule_mask for arbitrary keys.
inline void rule_mask(const TokenRule& rule, const QueryTile& q, const std::int32_t* keys, int count,
                      std::uint64_t* mask) {
    for (int i = 0; i < q.count; ++i) {
        mask[i] = 0;
        for (int j = 0; j < count; ++j) {
            mask[i] |= static_cast<std::uint64_t>(rule.visible(q.begin + i, keys[j])) << j;
        }
    }
}

/// mask[i] = which of the keys the list's query i keeps, through blocks or single keys.
inline void list_mask(const RowList& list, int block, const QueryTile& q, std::int32_t key_begin, int count,
                      std::uint64_t* mask) {
    rule_mask(list.rule, q, key_begin, count, mask);
    if (list.has_block(key_begin / block)) return;
    std::uint64_t singles = 0;
    for (const std::int32_t* key = std::lower_bound(list.keys, list.keys_end, key_begin);
         key != list.keys_end && *key < key_begin + count; ++key) {
        singles |= std::uint64_t{1} << (*key - key_begin);
    }
    for (int i = 0; i < q.count; ++i) mask[i] &= singles;
}
inline void list_mask(const RowList& list, int block, const QueryTile& q, const std::int32_t* keys, int count,
                      std::uint64_t* mask) {
    rule_mask(list.rule, q, keys, count, mask);
    std::uint64_t listed = 0;
    for (int j = 0; j < count; ++j) {
        listed |= static_cast<std::uint64_t>(list.has_block(keys[j] / block) || list.has_key(keys[j])) << j;
    }
    for (int i = 0; i < q.count; ++i) mask[i] &= listed;
}

}  // namespace sparseattn::detail::host
