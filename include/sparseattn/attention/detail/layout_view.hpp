#pragma once
// A block layout and its sequences as kernels read them: plain views and the questions that attention asks.

#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn::detail {

/// Part of a CSR's entries.
struct EntryRange {
    std::int64_t begin, end;
};

/// A block of tokens of one sequence. Positions count inside the sequence, `origin` is the packed index of its first.
struct TokenBlock {
    std::int32_t sequence;
    std::int32_t number;  // block of the sequence
    std::int32_t origin;
    std::int32_t begin, end;
};

/// First entry of [begin, end) of an ascending list that is not below `value`.
template <class Entries>
KOKKOS_INLINE_FUNCTION std::int64_t lower_bound(const Entries& entries, EntryRange range, std::int32_t value) {
    while (range.begin < range.end) {
        const std::int64_t middle = range.begin + (range.end - range.begin) / 2;
        if (entries(middle) < value) {
            range.begin = middle + 1;
        } else {
            range.end = middle;
        }
    }
    return range.begin;
}
template <class Entries>
KOKKOS_INLINE_FUNCTION bool contains(const Entries& entries, EntryRange range, std::int32_t value) {
    const std::int64_t at = lower_bound(entries, range, value);
    return at < range.end && entries(at) == value;
}

template <class Mem>
struct LayoutView {
    LayoutArrays<Mem> layout;
    Array1<const std::int32_t, Mem> query_offsets;
    Array1<const std::int32_t, Mem> key_offsets;
    bool singles = false;

    LayoutView() = default;
    LayoutView(const BlockLayout<Mem>& blocks, const Sequences<Mem>& sequences)
        : layout(blocks),
          query_offsets(sequences.device_query_offsets()),
          key_offsets(sequences.device_key_offsets()),
          singles(blocks.has_single_keys()) {}

    /// Query block `row` of the batch.
    KOKKOS_INLINE_FUNCTION TokenBlock query_block(std::int32_t row) const {
        const std::int32_t s = layout.grid.row_sequence(row);
        return block(s, row - layout.grid.row_begin(s), query_offsets(s), query_offsets(s + 1));
    }
    /// Key block `number` of the batch.
    KOKKOS_INLINE_FUNCTION TokenBlock key_block(std::int32_t number) const {
        const std::int32_t s = layout.grid.key_block_sequence(number);
        return block(s, number - layout.grid.key_block_begin(s), key_offsets(s), key_offsets(s + 1));
    }
    /// Token visibility for one head inside one sequence.
    KOKKOS_INLINE_FUNCTION TokenRule rule(std::int32_t head, std::int32_t s) const {
        return {query_offsets(s + 1) - query_offsets(s), key_offsets(s + 1) - key_offsets(s), layout.causal,
                layout.windows(head)};
    }
    /// Entries of `layout.columns`: the key blocks that block `number` of sequence `s` visits.
    KOKKOS_INLINE_FUNCTION EntryRange columns(std::int32_t head, std::int32_t s, std::int32_t number) const {
        const std::int64_t at = list_row(head, s, number);
        return {layout.offsets(at), layout.offsets(at + 1)};
    }
    /// Entries of `layout.keys`: its single keys.
    KOKKOS_INLINE_FUNCTION EntryRange keys(std::int32_t head, std::int32_t s, std::int32_t number) const {
        if (!singles) return {0, 0};
        const std::int64_t at = list_row(head, s, number);
        return {layout.key_offsets(at), layout.key_offsets(at + 1)};
    }
    /// Whether key j takes part in query i (positions in sequence `s`).
    KOKKOS_INLINE_FUNCTION bool keeps(std::int32_t head, std::int32_t s, std::int32_t i, std::int32_t j) const {
        if (!rule(head, s).visible(i, j)) return false;
        const std::int32_t number = i / layout.grid.block;
        return contains(layout.columns, columns(head, s, number), j / layout.grid.block) ||
               contains(layout.keys, keys(head, s, number), j);
    }

  private:
    KOKKOS_INLINE_FUNCTION TokenBlock block(std::int32_t s, std::int32_t number, std::int32_t origin,
                                            std::int32_t past) const {
        const std::int32_t begin = number * layout.grid.block, end = begin + layout.grid.block;
        return {s, number, origin, begin, end < past - origin ? end : past - origin};
    }
    KOKKOS_INLINE_FUNCTION std::int64_t list_row(std::int32_t head, std::int32_t s, std::int32_t number) const {
        return static_cast<std::int64_t>(layout.head_list(head)) * layout.grid.rows + layout.grid.row_begin(s) + number;
    }
};

}  // namespace sparseattn::detail
