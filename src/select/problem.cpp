#include "sparseattn/select/detail/problem.hpp"

#include <numeric>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn::detail {
namespace {

template <class View>
void check_view(const char* name, const View& view, std::int64_t tokens, std::int64_t head_dim) {
    require(static_cast<std::int64_t>(view.extent(0)) == tokens, concat(name, ".extent(0)"), view.extent(0),
            concat(tokens, ", the tokens of the sequences"));
    require(view.extent(1) >= 1, concat(name, ".extent(1)"), view.extent(1), "at least 1 head");
    require(static_cast<std::int64_t>(view.extent(2)) == head_dim && head_dim >= 1, concat(name, ".extent(2)"),
            view.extent(2), concat(head_dim < 1 ? 1 : head_dim, ", the head dimension"));
    require(tokens == 0 || head_dim == 1 || view.stride(2) == 1, concat(name, ".stride(2)"), view.stride(2),
            "1: each head's vector is contiguous");
}

}  // namespace

template <class T, class Mem>
SelectionShape check_selection(const HeadsView<const T, Mem>& query, const HeadsView<const T, Mem>& key,
                               const Sequences<Mem>& sequences, bool causal) {
    const std::int64_t head_dim = query.extent(2);
    check_view("query", query, sequences.queries(), head_dim);
    check_view("key", key, sequences.keys(), head_dim);
    require(query.extent(1) % key.extent(1) == 0, "key.extent(1)", key.extent(1),
            concat("a divisor of the query heads, ", query.extent(1)));
    for (int s = 0; s < sequences.count(); ++s) {
        require(!causal || sequences.key_length(s) >= sequences.query_length(s), concat("key length of sequence ", s),
                sequences.key_length(s),
                concat("at least its query length, ", sequences.query_length(s), ", for causal selection"));
    }
    return {static_cast<int>(query.extent(1)), static_cast<int>(key.extent(1)), static_cast<int>(head_dim)};
}

template <class Mem>
std::vector<SequenceShape> sequence_shapes(const Sequences<Mem>& sequences, int block, bool causal) {
    std::vector<SequenceShape> shapes;
    std::int32_t row = 0;
    for (int s = 0; s < sequences.count(); ++s) {
        shapes.push_back({sequences.query_offsets()[s], sequences.query_length(s), sequences.key_offsets()[s],
                          sequences.key_length(s), row, block, causal});
        row += shapes.back().rows();
    }
    return shapes;
}

std::vector<std::int32_t> estimated_heads(const EstimatedHeads& estimate, int heads) {
    if (!estimate) {
        std::vector<std::int32_t> all(heads);
        std::iota(all.begin(), all.end(), 0);
        return all;
    }
    for (std::size_t e = 0; e < estimate->size(); ++e) {
        const std::int32_t head = (*estimate)[e], before = e == 0 ? -1 : (*estimate)[e - 1];
        require(head >= 0 && head < heads, concat("estimate[", e, "]"), head, concat("a query head, 0..", heads - 1));
        require(head > before, concat("estimate[", e, "]"), head, concat("above the head before it, ", before));
    }
    return *estimate;
}

#define SPARSEATTN_INSTANTIATE(MEM)                                                                                 \
    template SelectionShape check_selection(const HeadsView<const float, MEM>&, const HeadsView<const float, MEM>&, \
                                            const Sequences<MEM>&, bool);                                           \
    template SelectionShape check_selection(const HeadsView<const bf16, MEM>&, const HeadsView<const bf16, MEM>&,   \
                                            const Sequences<MEM>&, bool);                                           \
    template std::vector<SequenceShape> sequence_shapes(const Sequences<MEM>&, int, bool);
SPARSEATTN_FOR_EACH_MEMORY(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
