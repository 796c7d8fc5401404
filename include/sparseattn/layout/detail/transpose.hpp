#pragma once
// Two ways to transpose lists, with the same result.

#include <string>

#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn::detail {

// For every (list, row) ascending columns of the row's sequence.
template <class Mem>
struct CsrRows {
    std::int32_t sequences;
    std::int32_t lists, rows, columns;             // rows and columns of the batch
    Array1<const std::int32_t, Mem> row_begin;     // [sequences + 1]
    Array1<const std::int32_t, Mem> row_sequence;  // [rows]
    Array1<const std::int32_t, Mem> column_begin;  // [sequences + 1]
    Array1<const std::int64_t, Mem> offsets;       // [lists * rows + 1]
    Array1<const std::int32_t, Mem> entries;
};
// For every (list, column) ascending rows, counted in the sequence.
template <class Mem>
struct CsrTranspose {
    Array1<std::int64_t, Mem> offsets;  // [lists * columns + 1] or more
    Array1<std::int32_t, Mem> rows;     // room for all entries
};

// One work item walks the rows of a (list, sequence) in order: the way of a few threads.
template <class Exec>
void transpose_in_order(const Exec& exec, const std::string& label, const CsrRows<typename Exec::memory_space>& from,
                        const CsrTranspose<typename Exec::memory_space>& to);
// All rows at once, in any order; then each segment is put in order. `longest`: rows of a sequence at most.
template <class Exec>
void transpose_by_bits(const Exec& exec, const std::string& label, std::int32_t longest,
                       const CsrRows<typename Exec::memory_space>& from,
                       const CsrTranspose<typename Exec::memory_space>& to);

}  // namespace sparseattn::detail
