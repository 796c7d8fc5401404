#pragma once
// Visited blocks as bits, the form in which selectors write them, and their conversion to a layout.

#include <cstdint>
#include <vector>

#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/select/detail/problem.hpp"

namespace sparseattn::detail {

// One bit per (list, row of the batch, key block of the row's sequence).
template <class Mem>
struct BlockMask {
    Span2<std::uint32_t, Mem> words;  // [lists * rows, words a row]
    std::int32_t rows = 0;

    KOKKOS_INLINE_FUNCTION std::uint32_t* row(std::int64_t list, std::int32_t row) const {
        return &words(list * rows + row, 0);
    }
    KOKKOS_INLINE_FUNCTION static bool test(const std::uint32_t* row, std::int32_t block) {
        return (row[block >> 5] >> (block & 31) & 1U) != 0;
    }
};

// Words of one row: enough for the longest sequence of keys.
template <class Mem>
std::int64_t mask_words(const Sequences<Mem>& sequences, int block) {
    std::int64_t longest = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        const std::int64_t blocks = (sequences.key_length(s) + block - 1) / block;
        longest = blocks > longest ? blocks : longest;
    }
    return (longest + 31) / 32 > 0 ? (longest + 31) / 32 : 1;
}

// Query blocks of all sequences.
template <class Mem>
std::int64_t mask_rows(const Sequences<Mem>& sequences, int block) {
    std::int64_t rows = 0;
    for (int s = 0; s < sequences.count(); ++s) rows += (sequences.query_length(s) + block - 1) / block;
    return rows;
}

// Sets the bits of one row to visit(J) for J in [0, end), and the rest to 0; a team works on the row.
template <class Team, class Visit>
KOKKOS_INLINE_FUNCTION void write_mask_row(const Team& team, std::uint32_t* words, std::int32_t word_count,
                                           std::int32_t end, const Visit& visit) {
    Kokkos::parallel_for(Kokkos::TeamVectorRange(team, word_count), [&](std::int32_t w) {
        std::uint32_t word = 0;
        const std::int32_t stop = end - w * 32 < 32 ? end - w * 32 : 32;
        for (std::int32_t bit = 0; bit < stop; ++bit) word |= visit(w * 32 + bit) ? 1U << bit : 0U;
        words[w] = word;
    });
}

// Every block that a query of the row sees, for the rows of one sequence.
template <class Exec>
void visit_every_block(const Exec& exec, const SequenceShape& shape, const BlockMask<typename Exec::memory_space>& mask,
                       std::int64_t list);

// Single key columns that heads keep beside their blocks: per (list, sequence) an ascending list of keys. A row takes
// those that its last query sees and that lie outside the row's blocks.
template <class Mem>
struct KeptColumns {
    Span2<const std::int32_t, Mem> columns;  // [lists * sequences, largest count]
    Span2<const std::int32_t, Mem> count;    // [lists, sequences]
};

// Query and key blocks that `lists` lists may visit at most, and single keys beside them when each row keeps `columns`.
template <class Mem>
std::int64_t most_blocks(const Sequences<Mem>& sequences, int block, bool causal, std::int64_t lists);
template <class Mem>
std::int64_t most_single_keys(const Sequences<Mem>& sequences, int block, std::int64_t lists, std::int64_t columns);

// The layout of a mask, causal or not, into one that may have been made before. `head_list` maps every head to a list;
// lists past those of the mask are empty. Windows hold every key. A device makes room for what the lists may hold at
// most and waits for nothing.
template <class Exec>
void layout_from_mask(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, int block, bool causal,
                      const BlockMask<typename Exec::memory_space>& mask, const std::vector<std::int32_t>& head_list,
                      const KeptColumns<typename Exec::memory_space>& kept,
                      BlockLayout<typename Exec::memory_space>& layout);

// Everything of such a layout but its lists.
template <class Exec>
void begin_selected_layout(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, int block,
                           bool causal, const std::vector<std::int32_t>& head_list,
                           BlockLayout<typename Exec::memory_space>& layout);

// head_list for a layout whose list e belongs to head estimate[e]; all other heads share one empty list behind them.
std::vector<std::int32_t> estimated_head_list(const std::vector<std::int32_t>& estimate, int heads);

}  // namespace sparseattn::detail
