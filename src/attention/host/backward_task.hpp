#pragma once
// One task of the backward pass; see backward.cpp for the order of the tasks and of their sums.
#include <thread>

#include "backward_plan.hpp"

namespace sparseattn::detail::host {

/// Temporary arrays of one worker.
struct BackwardScratch {
    float *key, *key_transposed, *value_transposed;  // the task's tile
    float *key_gradient, *value_gradient;
    float *some_key, *some_key_transposed, *some_value_transposed;  // gathered single keys
    float *some_key_gradient, *some_value_gradient;
    float *query, *dout;                       // copies of bf16 rows
    float *probabilities, *score_gradients;    // [tile, tile]
    std::uint64_t *mask, *sparse_mask, *rows;  // rows: a bit per row of a sequence

    static std::int64_t row_floats(int rows) { return (rows + 63) / 64 * std::int64_t{2}; }
    static std::int64_t floats(int head_dim, int rows) {
        const std::int64_t count = 12 * tile * head_dim + 2 * tile * tile + 4 * tile + row_floats(rows);
        return (count + 15) / 16 * 16;
    }
    BackwardScratch(float* memory, int head_dim, int row_count) {
        const auto take = [&memory](std::int64_t count) {
            float* begin = memory;
            memory += count;
            return begin;
        };
        for (float** array :
             {&key, &key_transposed, &value_transposed, &key_gradient, &value_gradient, &some_key, &some_key_transposed,
              &some_value_transposed, &some_key_gradient, &some_value_gradient, &query, &dout}) {
            *array = take(tile * head_dim);
        }
        probabilities = take(tile * tile);
        score_gradients = take(tile * tile);
        mask = reinterpret_cast<std::uint64_t*>(take(2 * tile));
        sparse_mask = reinterpret_cast<std::uint64_t*>(take(2 * tile));
        rows = reinterpret_cast<std::uint64_t*>(take(row_floats(row_count)));
    }
};

/// One tile of keys of one key head on its way over the queries.
template <class Storage>
class BackwardTask {
  public:
    BackwardTask(const BackwardPlan<Storage>& plan, const BackwardScratch& scratch, int key_head, int s,
                 std::int32_t number)
        : plan_(plan),
          kernels_(storage_kernels<Storage>(*plan.kernels)),
          scratch_(scratch),
          key_head_(key_head),
          sequence_(s),
          tile_(number),
          key_begin_(number * tile),
          key_count_(std::min(tile, plan.grid.keys(s) - key_begin_)),
          head_dim_(plan.inputs.head_dim) {}

    void run() {
        const std::int64_t token = plan_.grid.key_offsets[sequence_] + key_begin_;
        const auto key = plan_.inputs.key.rows(token, key_head_, key_count_, head_dim_);
        kernels_.load(key, scratch_.key);
        kernels_.load_transposed(key, scratch_.key_transposed);
        kernels_.load_transposed(plan_.inputs.value.rows(token, key_head_, key_count_, head_dim_),
                                 scratch_.value_transposed);
        std::fill(scratch_.key_gradient, scratch_.key_gradient + tile * head_dim_, 0.0F);
        std::fill(scratch_.value_gradient, scratch_.value_gradient + tile * head_dim_, 0.0F);
        const int group = plan_.inputs.group();
        for (int head = key_head_ * group; head < (key_head_ + 1) * group; ++head) walk(head);
        kernels_.store(plan_.dkey.rows(token, key_head_, key_count_, head_dim_), scratch_.key_gradient, head_dim_);
        kernels_.store(plan_.dvalue.rows(token, key_head_, key_count_, head_dim_), scratch_.value_gradient, head_dim_);
    }

  private:
    [[nodiscard]] int block() const { return plan_.grid.block; }

    // All rows of one query head, rising.
    void walk(int head) {
        const Grid& grid = plan_.grid;
        const int first = grid.row_begin[sequence_];
        const int words = static_cast<int>(BackwardScratch::row_floats(grid.row_begin[sequence_ + 1] - first) / 2);
        mark_rows(head, words);
        for (int word = 0; word < words; ++word) {
            for (std::uint64_t bits = scratch_.rows[word]; bits != 0; bits &= bits - 1) {
                visit_row(head, first + word * 64 + std::countr_zero(bits));
            }
        }
    }

    // scratch.rows = which rows visit the tile.
    void mark_rows(int head, int words) {
        std::fill(scratch_.rows, scratch_.rows + words, 0);
        const auto mark = [this](const std::int32_t* rows, std::int64_t begin, std::int64_t end) {
            for (std::int64_t e = begin; e < end; ++e) scratch_.rows[rows[e] / 64] |= std::uint64_t{1} << rows[e] % 64;
        };
        const Grid& grid = plan_.grid;
        const TransposedLists& lists = plan_.leading_transposed(head);
        const std::int64_t list = plan_.leading(head).head_list[head];
        const std::int64_t at =
            list * grid.key_blocks + grid.key_block_begin[sequence_] + tile_ / grid.tiles_per_block();
        mark(lists.rows, lists.offsets[at], lists.offsets[at + 1]);
        if (plan_.leading(head).key_offsets == nullptr) return;
        const std::int64_t key = list * grid.key_offsets[grid.sequences] + grid.key_offsets[sequence_] + key_begin_;
        mark(lists.key_rows, lists.key_offsets[key], lists.key_offsets[key + key_count_]);
    }

    void visit_row(int head, int row) {
        const Grid& grid = plan_.grid;
        const RowList list = plan_.leading(head).row(grid, head, row, sequence_);
        RowList sparse{};
        if (plan_.both(head)) sparse = plan_.sparse.row(grid, head, row, sequence_);
        const RowList* second = plan_.both(head) ? &sparse : nullptr;
        const bool whole = list.has_block(key_begin_ / block());
        const std::int32_t row_begin = (row - grid.row_begin[sequence_]) * block();
        const std::int32_t row_end = std::min(row_begin + block(), list.rule.queries);
        bool waited = false;
        for (std::int32_t begin = row_begin; begin < row_end; begin += tile) {
            const QueryTile queries{begin, std::min(tile, row_end - begin)};
            BackwardTile visit = whole ? tile_visit(list, second, queries) : keys_visit(list, second, queries);
            if (visit.queries == 0) continue;
            load_queries(head, queries, visit);
            plan_.kernels->backward_keys(visit);
            if (!whole) scatter(list, visit);
            if (!waited) wait(plan_.turn(head, row));
            waited = true;
            const std::int64_t token = grid.query_offsets[sequence_] + begin;
            plan_.kernels->backward_queries(visit, plan_.query_gradient.at(token, head),
                                            plan_.query_gradient.token_stride);
        }
        if (!waited) wait(plan_.turn(head, row));
        std::atomic_ref<std::int32_t>(plan_.turn(head, row))
            .store(next_tile(list, grid.tiles_per_block(), tile_), std::memory_order_release);
    }

    void wait(std::int32_t& turn) const {
        const std::atomic_ref<std::int32_t> now(turn);
        // Yields soon: with more threads than cores the one waited for may need this core.
        while (now.load(std::memory_order_acquire) != tile_) std::this_thread::yield();
    }

    // The whole tile against `queries`; no queries when it has no visible pair.
    BackwardTile tile_visit(const RowList& list, const RowList* sparse, const QueryTile& queries) {
        BackwardTile visit{};
        const std::int32_t key_end = key_begin_ + key_count_;
        const Cover cover = rule_cover(list.rule, queries, key_begin_, key_end);
        if (cover == Cover::none) return visit;
        visit.queries = queries.count;
        visit.keys = key_count_;
        visit.branches = 1;
        if (cover == Cover::part) {
            rule_mask(list.rule, queries, key_begin_, key_count_, scratch_.mask);
            visit.branch[0].mask = scratch_.mask;
        }
        const Cover second =
            sparse != nullptr ? list_cover(*sparse, block(), queries, key_begin_, key_end) : Cover::none;
        if (second != Cover::none) visit.branches = 2;
        if (second == Cover::part) {
            list_mask(*sparse, block(), queries, key_begin_, key_count_, scratch_.sparse_mask);
            visit.branch[1].mask = scratch_.sparse_mask;
        }
        visit.key = scratch_.key;
        visit.key_transposed = scratch_.key_transposed;
        visit.value_transposed = scratch_.value_transposed;
        visit.key_gradient = scratch_.key_gradient;
        visit.value_gradient = scratch_.value_gradient;
        return visit;
    }

    // The row's single keys in this tile, gathered.
    BackwardTile keys_visit(const RowList& list, const RowList* sparse, const QueryTile& queries) {
        BackwardTile visit{};
        const std::int32_t* keys = std::lower_bound(list.keys, list.keys_end, key_begin_);
        const std::int32_t* end = std::lower_bound(keys, list.keys_end, key_begin_ + key_count_);
        const int count = static_cast<int>(end - keys);
        visit.queries = queries.count;
        visit.keys = count;
        visit.branches = 1;
        rule_mask(list.rule, queries, keys, count, scratch_.mask);
        visit.branch[0].mask = scratch_.mask;
        if (sparse != nullptr) {
            list_mask(*sparse, block(), queries, keys, count, scratch_.sparse_mask);
            visit.branch[1].mask = scratch_.sparse_mask;
            visit.branches = 2;
        }
        const std::int64_t first = plan_.grid.key_offsets[sequence_];
        auto rows = plan_.inputs.key.rows(first, key_head_, count, head_dim_);
        rows.index = keys;
        kernels_.load(rows, scratch_.some_key);
        kernels_.load_transposed(rows, scratch_.some_key_transposed);
        rows = plan_.inputs.value.rows(first, key_head_, count, head_dim_);
        rows.index = keys;
        kernels_.load_transposed(rows, scratch_.some_value_transposed);
        std::fill(scratch_.some_key_gradient, scratch_.some_key_gradient + count * head_dim_, 0.0F);
        std::fill(scratch_.some_value_gradient, scratch_.some_value_gradient + count * head_dim_, 0.0F);
        visit.key = scratch_.some_key;
        visit.key_transposed = scratch_.some_key_transposed;
        visit.value_transposed = scratch_.some_value_transposed;
        visit.key_gradient = scratch_.some_key_gradient;
        visit.value_gradient = scratch_.some_value_gradient;
        return visit;
    }
    // Adds the gradients of gathered keys to the tile's.
    void scatter(const RowList& list, const BackwardTile& visit) {
        const std::int32_t* keys = std::lower_bound(list.keys, list.keys_end, key_begin_);
        for (int j = 0; j < visit.keys; ++j) {
            const std::int64_t to = static_cast<std::int64_t>(keys[j] - key_begin_) * head_dim_;
            const std::int64_t from = static_cast<std::int64_t>(j) * head_dim_;
            plan_.kernels->blend(scratch_.key_gradient + to, 1.0F, visit.key_gradient + from, 1.0F, head_dim_);
            plan_.kernels->blend(scratch_.value_gradient + to, 1.0F, visit.value_gradient + from, 1.0F, head_dim_);
        }
    }

    void load_queries(int head, const QueryTile& queries, BackwardTile& visit) {
        const std::int64_t token = plan_.grid.query_offsets[sequence_] + queries.begin;
        visit.head_dim = head_dim_;
        visit.score_scale = plan_.scale * log2_e;
        visit.gradient_scale = plan_.scale;
        visit.probabilities = scratch_.probabilities;
        visit.score_gradients = scratch_.score_gradients;
        for (int branch = 0; branch < visit.branches; ++branch) {
            visit.branch[branch].lse = plan_.lse + plan_.scalar(branch, head, token);
            visit.branch[branch].delta = plan_.delta + plan_.scalar(branch, head, token);
        }
        if constexpr (std::is_same_v<Storage, float>) {
            visit.query = plan_.inputs.query.at(token, head);
            visit.query_stride = plan_.inputs.query.token_stride;
            visit.dout = plan_.dout.at(token, head);
            visit.dout_stride = plan_.dout.token_stride;
        } else {
            kernels_.load(plan_.inputs.query.rows(token, head, queries.count, head_dim_), scratch_.query);
            kernels_.load(plan_.dout.rows(token, head, queries.count, head_dim_), scratch_.dout);
            visit.query = scratch_.query;
            visit.dout = scratch_.dout;
            visit.query_stride = visit.dout_stride = head_dim_;
        }
    }

    const BackwardPlan<Storage>& plan_;
    const StorageKernels<Storage>& kernels_;
    const BackwardScratch& scratch_;
    int key_head_, sequence_;
    std::int32_t tile_, key_begin_;
    int key_count_, head_dim_;
};

}  // namespace sparseattn::detail::host
