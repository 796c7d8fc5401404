#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn {
namespace {

struct HostGrid {
    std::vector<std::int32_t> begin{0};  // [sequences + 1]
    std::vector<std::int32_t> owner;     // [blocks]
};

HostGrid cut(const std::vector<std::int32_t>& offsets, int block) {
    HostGrid grid;
    for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
        const int blocks = (offsets[s + 1] - offsets[s] + block - 1) / block;
        grid.owner.insert(grid.owner.end(), blocks, static_cast<std::int32_t>(s));
        grid.begin.push_back(grid.begin.back() + blocks);
    }
    return grid;
}

}  // namespace

template <class Exec>
BlockGrid<typename Exec::memory_space> make_block_grid(const Exec& exec,
                                                       const Sequences<typename Exec::memory_space>& sequences,
                                                       int block) {
    require(block == 64 || block == 128, "block", block, "64 or 128");
    const HostGrid rows = cut(sequences.query_offsets(), block);
    const HostGrid keys = cut(sequences.key_offsets(), block);
    BlockGrid<typename Exec::memory_space> grid;
    grid.block = block;
    grid.rows = rows.begin.back();
    grid.key_blocks = keys.begin.back();
    grid.row_begin = detail::to_device(exec, "SparseAttn::grid.row_begin", rows.begin);
    grid.row_sequence = detail::to_device(exec, "SparseAttn::grid.row_sequence", rows.owner);
    grid.key_block_begin = detail::to_device(exec, "SparseAttn::grid.key_block_begin", keys.begin);
    grid.key_block_sequence = detail::to_device(exec, "SparseAttn::grid.key_block_sequence", keys.owner);
    return grid;
}

#define SPARSEATTN_INSTANTIATE(EXEC) \
    template BlockGrid<EXEC::memory_space> make_block_grid(const EXEC&, const Sequences<EXEC::memory_space>&, int);
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn
