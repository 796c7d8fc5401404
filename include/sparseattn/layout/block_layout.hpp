#pragma once
/// \file
/// Which key blocks each query block visits: the one structure between selection and attention.

#include <cstdint>
#include <vector>

#include "sparseattn/core/types.hpp"
#include "sparseattn/layout/sequences.hpp"
#include "sparseattn/layout/token_rule.hpp"

namespace sparseattn {

/// How the tokens of a packed batch fall into blocks of `block` tokens; blocks never cross a sequence border, so the
/// last block of a sequence may be short. A "row" is a query block of the batch, numbered through all sequences. The
/// arrays of a grid that was made anew keep their room: they may be longer than said here.
template <class Mem>
struct BlockGrid {
    int block = 0;
    int rows = 0;                                   // query blocks of all sequences
    int key_blocks = 0;                             // key blocks of all sequences
    int sequences = 0;                              // of the batch
    std::uint64_t sequences_id = 0;                 // Sequences::id of those that it was made for
    Array1<std::int32_t, Mem> row_begin;            // [sequences + 1] first row of each sequence
    Array1<std::int32_t, Mem> row_sequence;         // [rows] sequence of each row
    Array1<std::int32_t, Mem> key_block_begin;      // [sequences + 1] first key block of each sequence
    Array1<std::int32_t, Mem> key_block_sequence;   // [key_blocks] sequence of each key block
    Array1<const std::int32_t, Mem> query_offsets;  // of the sequences that it was made for
    Array1<const std::int32_t, Mem> key_offsets;
};

/// Blocks of 64 or 128 tokens over the sequences of a batch.
template <class Exec>
BlockGrid<typename Exec::memory_space> make_block_grid(const Exec& exec,
                                                       const Sequences<typename Exec::memory_space>& sequences,
                                                       int block);

// What makes a grid, layout or transpose also exists as a call that writes into one made before (or a default one). It
// keeps the arrays that are large enough, so that repeated calls allocate nothing once the largest has been made, and a
// grid that was made for the same sequences. Copies of the old one share these arrays: they must not be in use any
// more.
template <class Exec>
void make_block_grid(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, int block,
                     BlockGrid<typename Exec::memory_space>& grid);

/// For every (list, row) the ascending key blocks that the row visits. Heads with equal lists share one list.
/// Inside a visited block the token rule of the head applies (sequence end, causality, window); see TokenRule.
/// Key block and key numbers count inside the row's sequence.
///
/// Arrays may be longer than they need to be: on a device `columns` and `keys` have room for the most that a selector
/// may list, so that nobody waits for the number it lists, and a layout written anew keeps the room it had. What lies
/// past the last offset means nothing.
template <class Mem>
struct LayoutArrays {
    BlockGrid<Mem> grid;
    bool causal = true;
    int heads = 0;                          // query heads
    int lists = 0;                          // distinct lists, 1..heads
    bool single_keys = false;               // whether key_offsets and keys count
    Array1<std::int32_t, Mem> head_list;    // [heads] list of each head
    Array1<Window, Mem> windows;            // [heads]
    Array1<std::int64_t, Mem> offsets;      // [lists * rows + 1] into columns
    Array1<std::int32_t, Mem> columns;      // key blocks, ascending in each (list, row)
    Array1<std::int64_t, Mem> key_offsets;  // [lists * rows + 1] into keys
    Array1<std::int32_t, Mem> keys;         // single key columns outside the listed blocks, ascending

    [[nodiscard]] bool has_single_keys() const { return single_keys; }
};

/// The arrays, and what a host that plans or launches by the layout would otherwise have to wait for.
template <class Mem>
struct BlockLayout : LayoutArrays<Mem> {
    std::vector<std::int32_t> host_head_list;  // [heads] as head_list
    std::vector<Window> host_windows;          // [heads] as windows
};

/// The most heads g such that heads [k g, (k + 1) g) have one list, for every k; a divisor of the heads.
template <class Mem>
[[nodiscard]] int heads_sharing(const BlockLayout<Mem>& layout);

/// The same layout seen from the keys: for every (list, key block) the ascending rows that visit it, and for every
/// (list, key) the ascending rows that visit it as a single column. Row numbers count inside the sequence. `rows` and
/// `key_rows` are as long as the layout's `columns` and `keys`, or longer; so are the offsets.
template <class Mem>
struct TransposedLayout {
    Array1<std::int64_t, Mem> offsets;  // [lists * key_blocks + 1] into rows
    Array1<std::int32_t, Mem> rows;
    Array1<std::int64_t, Mem> key_offsets;  // [lists * keys + 1] into key_rows, with single keys
    Array1<std::int32_t, Mem> key_rows;
};

/// Builds the transpose, in the same order for any number of threads.
template <class Exec>
TransposedLayout<typename Exec::memory_space> transpose(const Exec& exec,
                                                        const Sequences<typename Exec::memory_space>& sequences,
                                                        const BlockLayout<typename Exec::memory_space>& layout);

template <class Exec>
void transpose(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
               const BlockLayout<typename Exec::memory_space>& layout,
               TransposedLayout<typename Exec::memory_space>& result);

/// Throws InvalidArgument naming the first entry that breaks the contract: extents, ranges, order, duplicates, blocks
/// wholly above the diagonal, single keys inside listed blocks.
template <class Exec>
void validate(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
              const BlockLayout<typename Exec::memory_space>& layout);

/// What a layout keeps, counted exactly.
struct LayoutStatistics {
    std::int64_t visited_blocks = 0;   // (head, row, key block) triples
    std::int64_t single_keys = 0;      // (head, row, key) triples
    double kept_pairs = 0;             // (head, query, key) triples that take part
    double all_pairs = 0;              // those of dense attention with the same causality
    std::vector<double> head_density;  // kept / all of each head
    [[nodiscard]] double density() const { return all_pairs > 0 ? kept_pairs / all_pairs : 0.0; }
};
template <class Exec>
LayoutStatistics statistics(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
                            const BlockLayout<typename Exec::memory_space>& layout);

/// A layout's lists on the host, exactly as long as their last offsets say: to read results or to build a layout by
/// hand (tests, files).
struct HostLists {
    std::vector<std::int64_t> offsets;  // [lists * rows + 1]
    std::vector<std::int32_t> columns;
    std::vector<std::int64_t> key_offsets;  // [lists * rows + 1] or empty
    std::vector<std::int32_t> keys;
};
template <class Exec>
HostLists copy_lists(const Exec& exec, const BlockLayout<typename Exec::memory_space>& layout);

/// A layout from host lists; `head_list` maps each head to a list, `windows` has one entry per head. Validated.
template <class Exec>
BlockLayout<typename Exec::memory_space> layout_from_lists(const Exec& exec,
                                                           const Sequences<typename Exec::memory_space>& sequences,
                                                           int block, bool causal, const HostLists& lists,
                                                           const std::vector<std::int32_t>& head_list,
                                                           const std::vector<Window>& windows);

}  // namespace sparseattn
