#pragma once
// What the backward pass works on, and what is ready before its tasks start.
#include <cmath>

#include "tasks.hpp"

namespace sparseattn::detail::host {

constexpr std::int32_t no_tile = std::numeric_limits<std::int32_t>::max();

/// Everything the backward pass reads and writes; gated when `gate` is set.
template <class Storage>
struct BackwardPlan {
    Grid grid;
    Inputs<Storage> inputs;
    float scale;
    Lists full, sparse;
    TransposedLists full_transposed, sparse_transposed;
    const float* gate = nullptr;  // null: plain, only `full`
    Heads<const Storage> dout;
    Outputs<const Storage> full_outputs, sparse_outputs;
    Heads<Storage> dquery, dkey, dvalue;
    float* dgate = nullptr;

    const Kernels* kernels = nullptr;
    int queries = 0;                // of the batch
    Heads<float> query_gradient;    // where dq is summed: dquery itself when it is float
    float* lse = nullptr;           // [2, query_heads, queries] log2(sum of exponentials / weight), +inf: no key
    float* delta = nullptr;         // [2, query_heads, queries] scale * sum(dout * out)
    float* gate_part = nullptr;     // [query_heads, rows] sum of dout * (full - sparse)
    std::int32_t* turns = nullptr;  // [query_heads, rows] tile whose turn it is

    [[nodiscard]] bool both(int head) const { return gate != nullptr && gate[head] != 0.0F && gate[head] != 1.0F; }
    /// The list whose pairs hold all others of the head.
    [[nodiscard]] bool sparse_leads(int head) const { return gate != nullptr && gate[head] == 0.0F; }
    [[nodiscard]] const Lists& leading(int head) const { return sparse_leads(head) ? sparse : full; }
    [[nodiscard]] const TransposedLists& leading_transposed(int head) const {
        return sparse_leads(head) ? sparse_transposed : full_transposed;
    }
    [[nodiscard]] const Outputs<const Storage>& leading_outputs(int head) const {
        return sparse_leads(head) ? sparse_outputs : full_outputs;
    }
    [[nodiscard]] std::int64_t scalar(int branch, int head, std::int64_t token) const {
        return (static_cast<std::int64_t>(branch) * inputs.query_heads + head) * queries + token;
    }
    [[nodiscard]] std::int32_t& turn(int head, int row) const {
        return turns[static_cast<std::int64_t>(head) * grid.rows + row];
    }
};

/// The first tile after `after` that the list visits, through a block or single keys.
inline std::int32_t next_tile(const RowList& list, int tiles_per_block, std::int32_t after) {
    const std::int32_t first = after + 1;
    std::int32_t next = no_tile;
    const std::int32_t* column = std::lower_bound(list.columns, list.columns_end, first / tiles_per_block);
    if (column != list.columns_end) {
        const std::int32_t candidate = std::max(first, *column * tiles_per_block);
        // A last short block may end before its second tile, and no block follows it.
        if (candidate * tile < list.rule.keys) next = candidate;
    }
    const std::int32_t* key = std::lower_bound(list.keys, list.keys_end, first * tile);
    if (key != list.keys_end) next = std::min(next, *key / tile);
    return next;
}

/// Before the tasks, for one row of one head: lse and delta of its branches, first turn, zero query gradients.
template <class Storage>
void prepare_row(const BackwardPlan<Storage>& plan, int head, int row) {
    const Grid& grid = plan.grid;
    const int s = grid.row_sequence[row];
    const std::int32_t begin = (row - grid.row_begin[s]) * grid.block;
    const int count = std::min(grid.block, grid.queries(s) - begin);
    const std::int64_t token = grid.query_offsets[s] + begin;
    const int head_dim = plan.inputs.head_dim;
    plan.turn(head, row) = next_tile(plan.leading(head).row(grid, head, row, s), grid.tiles_per_block(), -1);
    for (int i = 0; i < count; ++i) {
        float* gradient = plan.query_gradient.at(token + i, head);
        std::fill(gradient, gradient + head_dim, 0.0F);
    }
    const auto& kernels = storage_kernels<Storage>(*plan.kernels);
    const auto prepare = [&](int branch, const Outputs<const Storage>& outputs, float weight) {
        float* delta = plan.delta + plan.scalar(branch, head, token);
        float* lse = plan.lse + plan.scalar(branch, head, token);
        kernels.dots(plan.dout.rows(token, head, count, head_dim), outputs.out.rows(token, head, count, head_dim), 1.0F,
                     delta);
        const float log2_weight = std::log2(weight);
        float sum = 0;
        for (int i = 0; i < count; ++i) {
            const float natural = outputs.lse.at(token + i, head);
            const bool no_key = natural == -std::numeric_limits<float>::infinity();
            lse[i] = no_key ? std::numeric_limits<float>::infinity() : natural * log2_e - log2_weight;
            sum += delta[i];
            delta[i] *= plan.scale;
        }
        return sum;
    };
    if (!plan.both(head)) {
        prepare(0, plan.leading_outputs(head), 1.0F);
        return;
    }
    const float z = plan.gate[head];
    const float full = prepare(0, plan.full_outputs, z);
    const float sparse = prepare(1, plan.sparse_outputs, 1.0F - z);
    plan.gate_part[static_cast<std::int64_t>(head) * grid.rows + row] = full - sparse;
}

}  // namespace sparseattn::detail::host
