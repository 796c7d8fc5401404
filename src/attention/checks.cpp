#include "sparseattn/attention/detail/checks.hpp"

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn::detail {
namespace {

// Blocks of a packed batch: no block crosses a sequence border.
std::int64_t count_blocks(const std::vector<std::int32_t>& offsets, int block) {
    std::int64_t blocks = 0;
    for (std::size_t s = 0; s + 1 < offsets.size(); ++s) blocks += (offsets[s + 1] - offsets[s] + block - 1) / block;
    return blocks;
}

// `argument`.`member` has the one value that fits. Messages are put together only when they are needed.
void expect(std::string_view argument, std::string_view member, std::int64_t was, std::int64_t must,
            std::string_view what) {
    if (was != must) require(false, concat(argument, ".", member), was, concat(must, ", ", what));
}

void expect_room(std::string_view argument, std::string_view member, std::int64_t was, std::int64_t least,
                 std::string_view what) {
    if (was < least) require(false, concat(argument, ".", member), was, concat("at least ", least, ", ", what));
}

}  // namespace

void check_extent(std::string_view argument, std::int64_t was, std::int64_t must, std::string_view what) {
    expect(argument, "extent(0)", was, must, what);
}

void check_heads(std::string_view name, const HeadsExtents& was, std::int64_t tokens, std::int64_t heads,
                 std::int64_t head_dim) {
    expect(name, "extent(0)", was.extents[0], tokens, "the tokens of the sequences");
    expect(name, "extent(1)", was.extents[1], heads, "the number of heads");
    expect(name, "extent(2)", was.extents[2], head_dim, "the head dimension");
    if (tokens * heads > 0) expect(name, "stride(2)", was.last_stride, 1, "each head's vector is contiguous");
}

AttentionShape check_inputs(const HeadsExtents& query, const HeadsExtents& key, const HeadsExtents& value,
                            std::int64_t sequence_queries, std::int64_t sequence_keys) {
    const AttentionShape shape{sequence_queries, sequence_keys, query.extents[1], key.extents[1], query.extents[2]};
    require(shape.heads >= 1, "inputs.query.extent(1)", shape.heads, "at least 1 head");
    require(shape.head_dim >= 1, "inputs.query.extent(2)", shape.head_dim, "at least 1, the head dimension");
    if (shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0) {
        require(false, "inputs.key.extent(1)", shape.kv_heads, concat("a divisor of the query heads, ", shape.heads));
    }
    check_heads("inputs.query", query, shape.queries, shape.heads, shape.head_dim);
    check_heads("inputs.key", key, shape.keys, shape.kv_heads, shape.head_dim);
    check_heads("inputs.value", value, shape.keys, shape.kv_heads, shape.head_dim);
    return shape;
}

template <class T, class Mem>
void check_outputs(std::string_view name, const AttentionOutputs<T, Mem>& outputs, const AttentionShape& shape) {
    check_heads(concat(name, ".out"), extents_of(outputs.out), shape.queries, shape.heads, shape.head_dim);
    expect(name, "lse.extent(0)", outputs.lse.extent(0), shape.queries, "the tokens of the sequences");
    expect(name, "lse.extent(1)", outputs.lse.extent(1), shape.heads, "the number of heads");
}

template <class Mem>
void check_layout(std::string_view name, const BlockLayout<Mem>& layout, const Sequences<Mem>& sequences,
                  const AttentionShape& shape) {
    const BlockGrid<Mem>& grid = layout.grid;
    if (grid.block != 64 && grid.block != 128) require(false, concat(name, ".grid.block"), grid.block, "64 or 128");
    expect(name, "heads", layout.heads, shape.heads, "the number of query heads");
    expect(name, "grid.rows", grid.rows, count_blocks(sequences.query_offsets(), grid.block),
           "the query blocks of the sequences");
    expect(name, "grid.key_blocks", grid.key_blocks, count_blocks(sequences.key_offsets(), grid.block),
           "the key blocks of the sequences");
    expect_room(name, "grid.row_begin.extent(0)", grid.row_begin.extent(0), sequences.count() + 1,
                "the number of sequences + 1");
    expect_room(name, "grid.key_block_begin.extent(0)", grid.key_block_begin.extent(0), sequences.count() + 1,
                "the number of sequences + 1");
    expect_room(name, "grid.row_sequence.extent(0)", grid.row_sequence.extent(0), grid.rows,
                "the number of query blocks");
    expect_room(name, "grid.key_block_sequence.extent(0)", grid.key_block_sequence.extent(0), grid.key_blocks,
                "the number of key blocks");
    if (layout.lists < 1 || layout.lists > layout.heads) {
        require(false, concat(name, ".lists"), layout.lists,
                concat("1..", layout.heads, ", at most one for each head"));
    }
    const std::int64_t list_rows = static_cast<std::int64_t>(layout.lists) * grid.rows;
    expect_room(name, "head_list.extent(0)", layout.head_list.extent(0), shape.heads, "the number of query heads");
    expect_room(name, "windows.extent(0)", layout.windows.extent(0), shape.heads, "the number of query heads");
    expect_room(name, "offsets.extent(0)", layout.offsets.extent(0), list_rows + 1, "lists * rows + 1");
    if (layout.has_single_keys()) {
        expect_room(name, "key_offsets.extent(0)", layout.key_offsets.extent(0), list_rows + 1, "lists * rows + 1");
    }
}

template <class Mem>
void check_transposed(std::string_view name, const LayoutPair<Mem>& pair, const Sequences<Mem>& sequences) {
    const BlockLayout<Mem>& layout = pair.layout;
    const TransposedLayout<Mem>& transposed = pair.transposed;
    const std::int64_t lists = layout.lists;
    expect_room(name, "offsets.extent(0)", transposed.offsets.extent(0), lists * layout.grid.key_blocks + 1,
                "lists * key blocks + 1");
    expect_room(name, "rows.extent(0)", transposed.rows.extent(0), layout.columns.extent(0),
                "that of the layout's columns");
    if (layout.has_single_keys()) {
        expect_room(name, "key_offsets.extent(0)", transposed.key_offsets.extent(0), lists * sequences.keys() + 1,
                    "lists * keys + 1");
        expect_room(name, "key_rows.extent(0)", transposed.key_rows.extent(0), layout.keys.extent(0),
                    "that of the layout's single keys");
    }
}

#define SPARSEATTN_INSTANTIATE_TYPE(MEM, T)                                                                \
    template void check_outputs(std::string_view, const AttentionOutputs<T, MEM>&, const AttentionShape&); \
    template void check_outputs(std::string_view, const AttentionOutputs<const T, MEM>&, const AttentionShape&);
#define SPARSEATTN_INSTANTIATE(MEM)                                                                  \
    template void check_layout(std::string_view, const BlockLayout<MEM>&, const Sequences<MEM>&,     \
                               const AttentionShape&);                                               \
    template void check_transposed(std::string_view, const LayoutPair<MEM>&, const Sequences<MEM>&); \
    SPARSEATTN_INSTANTIATE_TYPE(MEM, float)                                                          \
    SPARSEATTN_INSTANTIATE_TYPE(MEM, bf16)                                                           \
    SPARSEATTN_INSTANTIATE_TYPE(MEM, double)
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
