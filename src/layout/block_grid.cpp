#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn {
namespace {

std::int32_t count_blocks(const std::vector<std::int32_t>& offsets, int block) {
    std::int32_t blocks = 0;
    for (std::size_t s = 0; s + 1 < offsets.size(); ++s) blocks += (offsets[s + 1] - offsets[s] + block - 1) / block;
    return blocks;
}

// Where the blocks of each sequence begin, and the sequence of each block.
template <class Exec>
void cut(const Exec& exec, const std::string& label,
         const Array1<const std::int32_t, typename Exec::memory_space>& offsets, int block, std::int32_t blocks,
         Array1<std::int32_t, typename Exec::memory_space>& begin,
         Array1<std::int32_t, typename Exec::memory_space>& owner) {
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int32_t>>;
    const auto sequences = static_cast<std::int32_t>(offsets.extent(0)) - 1;
    detail::make_room(exec, label + "_begin", sequences + 1, begin);
    detail::make_room(exec, label + "_sequence", blocks, owner);
    const auto first = begin;
    const auto sequence = owner;
    Kokkos::parallel_scan(
        label + "_begin.scan", Policy(exec, 0, sequences + 1),
        KOKKOS_LAMBDA(std::int32_t s, std::int32_t & sum, bool last) {
            if (last) first(s) = sum;
            if (s < sequences) sum += (offsets(s + 1) - offsets(s) + block - 1) / block;
        });
    Kokkos::parallel_for(
        label + "_sequence.find", Policy(exec, 0, blocks), KOKKOS_LAMBDA(std::int32_t at) {
            std::int32_t low = 0, high = sequences;  // the last sequence that begins at or before the block
            while (high - low > 1) {
                const std::int32_t middle = low + (high - low) / 2;
                (first(middle) <= at ? low : high) = middle;
            }
            sequence(at) = low;
        });
}

}  // namespace

template <class Exec>
void make_block_grid(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences, int block,
                     BlockGrid<typename Exec::memory_space>& grid) {
    require(block == 64 || block == 128, "block", block, "64 or 128");
    const auto query_offsets = sequences.device_query_offsets(), key_offsets = sequences.device_key_offsets();
    if (grid.block == block && grid.sequences_id == sequences.id()) return;
    grid.block = block;
    grid.sequences = sequences.count();
    grid.sequences_id = sequences.id();
    grid.rows = count_blocks(sequences.query_offsets(), block);
    grid.key_blocks = count_blocks(sequences.key_offsets(), block);
    grid.query_offsets = query_offsets;
    grid.key_offsets = key_offsets;
    cut(exec, "SparseAttn::grid.row", query_offsets, block, grid.rows, grid.row_begin, grid.row_sequence);
    cut(exec, "SparseAttn::grid.key_block", key_offsets, block, grid.key_blocks, grid.key_block_begin,
        grid.key_block_sequence);
}

template <class Exec>
BlockGrid<typename Exec::memory_space> make_block_grid(const Exec& exec,
                                                       const Sequences<typename Exec::memory_space>& sequences,
                                                       int block) {
    BlockGrid<typename Exec::memory_space> grid;
    make_block_grid(exec, sequences, block, grid);
    return grid;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                      \
    template void make_block_grid(const EXEC&, const Sequences<EXEC::memory_space>&, int, \
                                  BlockGrid<EXEC::memory_space>&);                        \
    template BlockGrid<EXEC::memory_space> make_block_grid(const EXEC&, const Sequences<EXEC::memory_space>&, int);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
