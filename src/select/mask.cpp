#include "sparseattn/select/detail/mask.hpp"

#include <algorithm>

#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/layout/detail/csr.hpp"
#include "sparseattn/layout/detail/heads.hpp"

namespace sparseattn::detail {
namespace {

template <class Mem>
struct MaskRows {
    BlockMask<Mem> mask;
    std::int32_t lists;  // of the mask
    BlockGrid<Mem> grid;
    Array1<const std::int32_t, Mem> query_offsets, key_offsets;
    bool causal;
    KeptColumns<Mem> kept;

    // Calls visit(J) for the key blocks of a (list, row), ascending.
    template <class Visit>
    KOKKOS_INLINE_FUNCTION void blocks(std::int64_t list_row, const Visit& visit) const {
        const std::int64_t list = list_row / grid.rows;
        if (list >= lists) return;
        const std::uint32_t* words = mask.row(list, static_cast<std::int32_t>(list_row % grid.rows));
        for (std::int32_t w = 0; w < static_cast<std::int32_t>(mask.words.extent(1)); ++w) {
            for (std::uint32_t word = words[w], bit = 0; word != 0; word >>= 1, ++bit) {
                if ((word & 1U) != 0) visit(w * 32 + static_cast<std::int32_t>(bit));
            }
        }
    }
    // Calls visit(key) for the single keys of a (list, row), ascending.
    template <class Visit>
    KOKKOS_INLINE_FUNCTION void single_keys(std::int64_t list_row, const Visit& visit) const {
        const std::int64_t list = list_row / grid.rows;
        if (list >= lists) return;
        const std::int32_t row = static_cast<std::int32_t>(list_row % grid.rows), s = grid.row_sequence(row);
        const std::int32_t queries = query_offsets(s + 1) - query_offsets(s);
        const std::int32_t keys = key_offsets(s + 1) - key_offsets(s);
        std::int32_t last = (row - grid.row_begin(s) + 1) * grid.block;
        last = (last < queries ? last : queries) - 1;
        const std::int32_t end = causal ? last + keys - queries + 1 : keys;
        const std::uint32_t* words = mask.row(list, row);
        for (std::int32_t i = 0; i < kept.count(list, s); ++i) {
            const std::int32_t key = kept.columns(list * kept.count.extent(1) + s, i);
            if (key >= end) break;
            if (!mask.test(words, key / grid.block)) visit(key);
        }
    }
};

template <class Mem>
struct Blocks {
    MaskRows<Mem> rows;
    template <class Visit>
    KOKKOS_INLINE_FUNCTION void each(std::int64_t list_row, const Visit& visit) const {
        rows.blocks(list_row, visit);
    }
};
template <class Mem>
struct SingleKeys {
    MaskRows<Mem> rows;
    template <class Visit>
    KOKKOS_INLINE_FUNCTION void each(std::int64_t list_row, const Visit& visit) const {
        rows.single_keys(list_row, visit);
    }
};

template <class Mem>
struct EveryBlock {
    SequenceShape shape;
    BlockMask<Mem> mask;
    std::int64_t list;
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        const std::int32_t row = team.league_rank();
        write_mask_row(team, mask.row(list, shape.row_begin + row), static_cast<std::int32_t>(mask.words.extent(1)),
                       shape.span(row).end, [](std::int32_t) { return true; });
    }
};

}  // namespace

template <class Exec>
void visit_every_block(const Exec& exec, const SequenceShape& shape, const BlockMask<typename Exec::memory_space>& mask,
                       std::int64_t list) {
    Kokkos::parallel_for("SparseAttn::visit_every_block", Kokkos::TeamPolicy<Exec>(exec, shape.rows(), Kokkos::AUTO),
                         EveryBlock<typename Exec::memory_space>{shape, mask, list});
}

template <class Mem>
std::int64_t most_blocks(const Sequences<Mem>& sequences, int block, bool causal, std::int64_t lists) {
    std::int64_t blocks = 0;
    for (const SequenceShape& shape : sequence_shapes(sequences, block, causal)) {
        for (int row = 0; row < shape.rows(); ++row) blocks += std::max(shape.span(row).end, 0);
    }
    return blocks * lists;
}

template <class Mem>
std::int64_t most_single_keys(const Sequences<Mem>& sequences, int block, std::int64_t lists, std::int64_t columns) {
    std::int64_t keys = 0;
    for (const SequenceShape& shape : sequence_shapes(sequences, block, true)) {
        for (int row = 0; row < shape.rows(); ++row) {
            keys += std::min<std::int64_t>(columns, shape.row_end(row) + shape.shift());
        }
    }
    return keys * lists;
}

template <class Exec>
void begin_selected_layout(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, int block,
                           bool causal, const std::vector<std::int32_t>& head_list,
                           BlockLayout<typename Exec::memory_space>& layout) {
    make_block_grid(exec, sequences, block, layout.grid);
    layout.causal = causal;
    layout.single_keys = false;
    set_heads(exec, head_list, std::vector<Window>(head_list.size()), layout);
}

template <class Exec>
void layout_from_mask(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, int block, bool causal,
                      const BlockMask<typename Exec::memory_space>& mask, const std::vector<std::int32_t>& head_list,
                      const KeptColumns<typename Exec::memory_space>& kept,
                      BlockLayout<typename Exec::memory_space>& layout) {
    using Mem = typename Exec::memory_space;
    begin_selected_layout(exec, sequences, block, causal, head_list, layout);
    const std::int64_t list_rows = static_cast<std::int64_t>(layout.lists) * layout.grid.rows;
    const std::int32_t mask_lists = mask.rows == 0 ? 0 : static_cast<std::int32_t>(mask.words.extent(0) / mask.rows);
    const MaskRows<Mem> rows{
        mask, mask_lists, layout.grid, sequences.device_query_offsets(), sequences.device_key_offsets(), causal, kept};
    build_csr(exec, "SparseAttn::layout.columns", list_rows, Blocks<Mem>{rows},
              most_blocks(sequences, block, causal, mask_lists), layout.offsets, layout.columns);
    if (kept.count.extent(0) > 0) {
        build_csr(exec, "SparseAttn::layout.keys", list_rows, SingleKeys<Mem>{rows},
                  most_single_keys(sequences, block, mask_lists, static_cast<std::int64_t>(kept.columns.extent(1))),
                  layout.key_offsets, layout.keys);
        layout.single_keys = layout.keys.extent(0) > 0;
    }
}

std::vector<std::int32_t> estimated_head_list(const std::vector<std::int32_t>& estimate, int heads) {
    std::vector<std::int32_t> head_list(heads, static_cast<std::int32_t>(estimate.size()));
    for (std::size_t e = 0; e < estimate.size(); ++e) head_list[estimate[e]] = static_cast<std::int32_t>(e);
    return head_list;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                         \
    template void visit_every_block(const EXEC&, const SequenceShape&, const BlockMask<EXEC::memory_space>&, \
                                    std::int64_t);                                                           \
    template void begin_selected_layout(const EXEC&, const Sequences<EXEC::memory_space>&, int, bool,        \
                                        const std::vector<std::int32_t>&, BlockLayout<EXEC::memory_space>&); \
    template void layout_from_mask(const EXEC&, const Sequences<EXEC::memory_space>&, int, bool,             \
                                   const BlockMask<EXEC::memory_space>&, const std::vector<std::int32_t>&,   \
                                   const KeptColumns<EXEC::memory_space>&, BlockLayout<EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE_MEMORY(MEM)                                             \
    template std::int64_t most_blocks(const Sequences<MEM>&, int, bool, std::int64_t); \
    template std::int64_t most_single_keys(const Sequences<MEM>&, int, std::int64_t, std::int64_t);
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE_MEMORY)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
