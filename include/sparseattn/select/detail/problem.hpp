#pragma once
// What every selector asks of its inputs, and how a sequence falls into rows and key blocks.

#include <cstdint>
#include <vector>

#include "sparseattn/core/types.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/select/estimated_heads.hpp"

namespace sparseattn::detail {

// The key blocks that matter to one query block.
struct RowSpan {
    std::int32_t end;        // blocks [0, end) hold a key that some query of the row sees
    std::int32_t own_begin;  // blocks [own_begin, own_end) hold the own positions of the row's queries: one block, or
    std::int32_t own_end;    // two when queries and keys differ in length by no multiple of the block
};

// One sequence of the batch. Plain data, copied into kernels.
struct SequenceShape {
    std::int32_t query_begin, queries;
    std::int32_t key_begin, keys;
    std::int32_t row_begin;  // first row of the sequence in the batch
    std::int32_t block;
    bool causal;

    KOKKOS_INLINE_FUNCTION std::int32_t shift() const { return keys - queries; }
    KOKKOS_INLINE_FUNCTION std::int32_t rows() const { return (queries + block - 1) / block; }
    KOKKOS_INLINE_FUNCTION std::int32_t key_blocks() const { return (keys + block - 1) / block; }
    // One past the last query of a row.
    KOKKOS_INLINE_FUNCTION std::int32_t row_end(std::int32_t row) const {
        const std::int32_t end = (row + 1) * block;
        return end < queries ? end : queries;
    }
    KOKKOS_INLINE_FUNCTION RowSpan span(std::int32_t row) const {
        const std::int32_t blocks = key_blocks(), last = row_end(row) - 1 + shift();
        RowSpan span{};
        span.end = causal ? last / block + 1 : blocks;
        const std::int32_t first = row * block + shift();
        span.own_begin = first < 0 ? 0 : first / block;
        span.own_end = last < 0 ? 0 : last / block + 1;
        if (span.end > blocks) span.end = blocks;
        if (span.own_end > blocks) span.own_end = blocks;
        return span;
    }
};

struct SelectionShape {
    int heads, kv_heads, head_dim;
    [[nodiscard]] int group() const { return heads / kv_heads; }
};

// Throws InvalidArgument naming query, key or the sequence that does not fit. Causal selection needs at least as many
// keys as queries in every sequence.
template <class T, class Mem>
SelectionShape check_selection(const HeadsView<const T, Mem>& query, const HeadsView<const T, Mem>& key,
                               const Sequences<Mem>& sequences, bool causal);

// The sequences' shapes; empty ones have no rows.
template <class Mem>
std::vector<SequenceShape> sequence_shapes(const Sequences<Mem>& sequences, int block, bool causal);

// The heads of `estimate`, or all. Throws InvalidArgument unless they ascend and lie in 0..heads-1.
std::vector<std::int32_t> estimated_heads(const EstimatedHeads& estimate, int heads);

}  // namespace sparseattn::detail
