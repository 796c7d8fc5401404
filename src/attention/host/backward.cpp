// Backward pass, plain and gated. One task is one tile of 64 keys of one key head: it holds their gradients, walks the
// query tiles that visit them, over the query heads of the group, and adds to the query gradients on its way.
//
// Order of the sums. Key and value gradients: one task, fixed walk. Query gradients: the tasks of a row take turns in
// rising order of their tiles; `turns` names the tile whose turn it is. Tasks are started in an order that puts the
// tiles of one head and sequence in rising order, so whoever waits, waits for a task that has been started before, and
// the first of all unfinished tasks never waits: no deadlock with any number of threads. Heads alternate in that order,
// so that threads rarely meet on one row. The result does not depend on the number of threads.
#include <thread>

#include "kernels.hpp"
#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "tasks.hpp"

namespace sparseattn::detail {
namespace host {
namespace {

constexpr std::int32_t no_tile = std::numeric_limits<std::int32_t>::max();

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

// The first tile after `tile` that the list visits, through a block or single keys.
std::int32_t next_tile(const RowList& list, int tiles_per_block, std::int32_t after) {
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

// Before the tasks, for one row of one head: lse and delta of its branches, first turn, zero query gradients.
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

// Temporary arrays of one worker.
struct Scratch {
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
    Scratch(float* memory, int head_dim, int row_count) {
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

// One tile of keys of one key head on its way over the queries.
template <class Storage>
class BackwardTask {
  public:
    BackwardTask(const BackwardPlan<Storage>& plan, const Scratch& scratch, int key_head, int s, std::int32_t number)
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
        const int words = static_cast<int>(Scratch::row_floats(grid.row_begin[sequence_ + 1] - first) / 2);
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
    const Scratch& scratch_;
    int key_head_, sequence_;
    std::int32_t tile_, key_begin_;
    int key_count_, head_dim_;
};

// Task numbers key_head + key_heads * tile of the batch, by falling distance of the tile from its sequence's end.
template <class Storage>
void order_tasks(const BackwardPlan<Storage>& plan, std::int64_t tasks, std::int64_t* ends, std::int64_t* order) {
    const int per_block = plan.grid.tiles_per_block();
    const int key_heads = plan.inputs.key_heads;
    const auto distance = [&plan, per_block, key_heads](std::int64_t task) -> std::int64_t {
        const auto number = static_cast<std::int32_t>(task / key_heads);
        const int s = plan.grid.key_block_sequence[number / per_block];
        return plan.grid.key_block_begin[s + 1] * per_block - number;
    };
    order_by_cost(tasks, static_cast<std::int64_t>(plan.grid.key_blocks) * per_block, distance, ends, order);
}

template <class Exec, class Storage>
void finish_backward(const Exec& exec, const BackwardPlan<Storage>& plan) {
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
    if constexpr (!std::is_same_v<Storage, float>) {
        Kokkos::parallel_for("SparseAttn::host_attention.store_dquery", Policy(exec, 0, plan.queries),
                             [=](std::int64_t token) {
                                 // One token's heads, as rows of the float array.
                                 const auto& kernels = storage_kernels<Storage>(*plan.kernels);
                                 const Rows<Storage> rows{plan.dquery.at(token, 0), plan.dquery.head_stride,
                                                          plan.inputs.query_heads, plan.inputs.head_dim};
                                 kernels.store(rows, plan.query_gradient.at(token, 0), plan.query_gradient.head_stride);
                             });
    }
    if (plan.gate == nullptr) return;
    Kokkos::parallel_for("SparseAttn::host_attention.dgate", Policy(exec, 0, plan.inputs.query_heads),
                         [=](std::int64_t head) {
                             double sum = 0;
                             if (plan.both(static_cast<int>(head))) {
                                 for (int row = 0; row < plan.grid.rows; ++row) {
                                     sum += plan.gate_part[head * plan.grid.rows + row];
                                 }
                             }
                             plan.dgate[head] = static_cast<float>(sum);
                         });
}

template <class Exec, class Storage>
void run_backward(const Exec& exec, BackwardPlan<Storage> plan, Workspace<HostMem>& workspace) {
    const Region region("SparseAttn::host_attention.backward");
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
    plan.kernels = &kernels();
    const Grid& grid = plan.grid;
    const int workers = concurrency(exec);
    const int heads = plan.inputs.query_heads;
    const int per_block = grid.tiles_per_block();
    const std::int64_t heads_rows = static_cast<std::int64_t>(heads) * grid.rows;
    const std::int64_t tiles = static_cast<std::int64_t>(grid.key_blocks) * per_block;
    const std::int64_t tasks = tiles * plan.inputs.key_heads;
    plan.queries = grid.query_offsets[grid.sequences];

    typename Workspace<HostMem>::Frame frame(workspace);
    const std::int64_t scalars = 2 * static_cast<std::int64_t>(heads) * plan.queries;
    plan.lse = frame.template take<float>(scalars).data();
    plan.delta = frame.template take<float>(scalars).data();
    plan.gate_part = frame.template take<float>(plan.gate != nullptr ? heads_rows : 0).data();
    plan.turns = frame.template take<std::int32_t>(heads_rows).data();
    if constexpr (std::is_same_v<Storage, float>) {
        plan.query_gradient = plan.dquery;
    } else {
        const std::int64_t token = static_cast<std::int64_t>(heads) * plan.inputs.head_dim;
        plan.query_gradient = {frame.template take<float>(plan.queries * token).data(), token, plan.inputs.head_dim};
    }
    const std::int64_t scratch_size = Scratch::floats(plan.inputs.head_dim, grid.rows);
    float* scratch = frame.template take<float>(workers * scratch_size).data();
    std::int64_t* order = frame.template take<std::int64_t>(tasks).data();
    std::int64_t* ends = frame.template take<std::int64_t>(tiles + 1).data();
    std::int64_t* next = frame.template take<std::int64_t>(1).data();

    Kokkos::parallel_for("SparseAttn::host_attention.order", Policy(exec, 0, 1), [=](std::int64_t) {
        *next = 0;
        order_tasks(plan, tasks, ends, order);
    });
    Kokkos::parallel_for("SparseAttn::host_attention.prepare", Policy(exec, 0, heads_rows), [=](std::int64_t i) {
        prepare_row(plan, static_cast<int>(i / plan.grid.rows), static_cast<int>(i % plan.grid.rows));
    });
    run_tasks(exec, "SparseAttn::host_attention.backward", workers, tasks, next, [=](int worker, std::int64_t task) {
        const auto number = static_cast<std::int32_t>(order[task] / plan.inputs.key_heads);
        const int key_head = static_cast<int>(order[task] % plan.inputs.key_heads);
        const int s = plan.grid.key_block_sequence[number / per_block];
        const std::int32_t in_sequence = number - plan.grid.key_block_begin[s] * per_block;
        if (in_sequence * tile >= plan.grid.keys(s)) return;
        const Scratch own(scratch + worker * scratch_size, plan.inputs.head_dim, plan.grid.rows);
        BackwardTask<Storage>(plan, own, key_head, s, in_sequence).run();
    });
    finish_backward(exec, plan);
}

}  // namespace
}  // namespace host

template <class Exec, class T>
void host_attention(const Exec& exec, const BackwardArguments<T, typename Exec::memory_space>& a,
                    Workspace<typename Exec::memory_space>& workspace) {
    host::BackwardPlan<host::storage_t<T>> plan{};
    plan.grid = host::grid_of(a.sequences, a.layout.layout.grid);
    plan.inputs = host::inputs_of<T>(a.inputs);
    plan.scale = a.scale;
    plan.full = host::lists_of(a.layout.layout);
    plan.full_transposed = host::lists_of(a.layout.transposed);
    plan.dout = host::heads_of<const T>(a.dout);
    plan.full_outputs = host::outputs_of<const T>(a.outputs);
    plan.dquery = host::heads_of<T>(a.gradients.query);
    plan.dkey = host::heads_of<T>(a.gradients.key);
    plan.dvalue = host::heads_of<T>(a.gradients.value);
    host::run_backward(exec, plan, workspace);
}

template <class Exec, class T>
void host_attention(const Exec& exec, const GatedBackwardArguments<T, typename Exec::memory_space>& a,
                    Workspace<typename Exec::memory_space>& workspace) {
    host::BackwardPlan<host::storage_t<T>> plan{};
    plan.grid = host::grid_of(a.sequences, a.full.layout.grid);
    plan.inputs = host::inputs_of<T>(a.inputs);
    plan.scale = a.scale;
    plan.full = host::lists_of(a.full.layout);
    plan.full_transposed = host::lists_of(a.full.transposed);
    plan.sparse = host::lists_of(a.sparse.layout);
    plan.sparse_transposed = host::lists_of(a.sparse.transposed);
    plan.gate = a.gate.data();
    plan.dout = host::heads_of<const T>(a.dout);
    plan.full_outputs = host::outputs_of<const T>(a.full_outputs);
    plan.sparse_outputs = host::outputs_of<const T>(a.sparse_outputs);
    plan.dquery = host::heads_of<T>(a.gradients.query);
    plan.dkey = host::heads_of<T>(a.gradients.key);
    plan.dvalue = host::heads_of<T>(a.gradients.value);
    plan.dgate = a.dgate.data();
    host::run_backward(exec, plan, workspace);
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                        \
    template void host_attention(const EXEC&, const BackwardArguments<T, EXEC::memory_space>&,      \
                                 Workspace<EXEC::memory_space>&);                                   \
    template void host_attention(const EXEC&, const GatedBackwardArguments<T, EXEC::memory_space>&, \
                                 Workspace<EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC) SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
SPARSEATTN_FOR_EACH_HOST_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
