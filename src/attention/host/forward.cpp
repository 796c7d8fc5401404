// Forward pass, plain and gated. One task is one tile of 64 queries of one head; it walks the tiles of 64 keys that its
// row's list visits, with the keys transposed and values copied once for all tasks.
#include "kernels.hpp"
#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"
#include "tasks.hpp"

namespace sparseattn::detail {
namespace host {
namespace {

template <class Storage>
struct ForwardPlan {
    Grid grid;
    Inputs<Storage> inputs;
    float scale;  // with log2(e)
    Lists full, sparse;
    const float* gate = nullptr;  // null: plain, only `full` and its outputs
    Heads<Storage> gated_out;
    Outputs<Storage> full_outputs, sparse_outputs;

    const Kernels* kernels = nullptr;
    float* keys_transposed = nullptr;  // [key_heads, key_blocks, tiles_per_block, head_dim, tile]
    float* values = nullptr;           // [key_heads, key_blocks, tiles_per_block, tile, head_dim]

    [[nodiscard]] int tiles_per_head() const { return grid.key_blocks * grid.tiles_per_block(); }
    [[nodiscard]] std::int64_t tile_size() const { return static_cast<std::int64_t>(tile) * inputs.head_dim; }
    /// The list that decides a head's cost and, ungated, its result.
    [[nodiscard]] const Lists& leading(int head) const { return gate != nullptr && gate[head] == 0.0F ? sparse : full; }
};

// Temporary arrays of one worker.
struct Scratch {
    float* scores;          // [tile, tile]
    float* out;             // [tile, head_dim]
    float* sparse_out;      // likewise
    float* query;           // likewise
    float* key_transposed;  // gathered single keys
    float* value;
    float *maximum, *sum, *lse;  // [tile]
    std::uint64_t *mask, *done_mask;

    static std::int64_t floats(int head_dim) {
        return static_cast<std::int64_t>(tile) * tile + 5 * static_cast<std::int64_t>(tile) * head_dim + 7 * tile;
    }
    Scratch(float* memory, int head_dim) {
        const auto take = [&memory](std::int64_t count) {
            float* begin = memory;
            memory += count;
            return begin;
        };
        scores = take(tile * tile);
        for (float** array : {&out, &sparse_out, &query, &key_transposed, &value}) *array = take(tile * head_dim);
        for (float** array : {&maximum, &sum, &lse}) *array = take(tile);
        mask = reinterpret_cast<std::uint64_t*>(take(2 * tile));
        done_mask = reinterpret_cast<std::uint64_t*>(take(2 * tile));
    }
};

// One query tile of one head on its way over the keys.
template <class Storage>
class ForwardTask {
  public:
    ForwardTask(const ForwardPlan<Storage>& plan, const Scratch& scratch, int head, int row, const QueryTile& queries)
        : plan_(plan),
          scratch_(scratch),
          head_(head),
          row_(row),
          sequence_(plan.grid.row_sequence[row]),
          queries_(queries),
          token_(plan.grid.query_offsets[sequence_] + queries.begin),
          state_{scratch.out, scratch.maximum, scratch.sum, true} {
        const Inputs<Storage>& inputs = plan.inputs;
        visit_.queries = queries.count;
        visit_.head_dim = inputs.head_dim;
        visit_.scale = plan.scale;
        visit_.scores = scratch.scores;
        storage_kernels<Storage>(*plan.kernels)
            .prefetch(inputs.query.rows(token_, head, queries.count, inputs.head_dim));
        if constexpr (std::is_same_v<Storage, float>) {
            visit_.query = inputs.query.at(token_, head);
            visit_.query_stride = inputs.query.token_stride;
        } else {
            storage_kernels<Storage>(*plan.kernels)
                .load(inputs.query.rows(token_, head, queries.count, inputs.head_dim), scratch.query);
            visit_.query = scratch.query;
            visit_.query_stride = inputs.head_dim;
        }
    }

    void run() {
        if (plan_.gate == nullptr) {
            walk(list(plan_.full), nullptr);
            save(plan_.full_outputs, scratch_.out);
        } else {
            run_gated(plan_.gate[head_]);
        }
    }

  private:
    [[nodiscard]] RowList list(const Lists& lists) const { return lists.row(plan_.grid, head_, row_, sequence_); }

    void run_gated(float z) {
        // The sparse pairs first; their state, finished on a copy, is the sparse branch. The rest of the full pairs
        // then turns the same state into the full branch.
        const RowList sparse = list(plan_.sparse);
        if (z == 1.0F) {
            save_nothing(plan_.sparse_outputs);
        } else {
            walk(sparse, nullptr);
            save(plan_.sparse_outputs, scratch_.sparse_out);
        }
        if (z == 0.0F) {
            save_nothing(plan_.full_outputs);
            store(plan_.gated_out, scratch_.sparse_out);
            return;
        }
        walk(list(plan_.full), z == 1.0F ? nullptr : &sparse);
        save(plan_.full_outputs, scratch_.out);
        if (z != 1.0F) {
            plan_.kernels->blend(scratch_.out, z, scratch_.sparse_out, 1.0F - z,
                                 static_cast<std::int64_t>(queries_.count) * plan_.inputs.head_dim);
        }
        store(plan_.gated_out, scratch_.out);
    }

    // Visits the pairs of `list` that `done` does not have.
    void walk(const RowList& list, const RowList* done) {
        const int block = plan_.grid.block;
        for (const std::int32_t* column = list.columns; column != list.columns_end; ++column) {
            const std::int32_t end = std::min(list.rule.keys, (*column + 1) * block);
            for (std::int32_t begin = *column * block; begin < end; begin += tile) {
                visit_tile(list, done, begin, std::min(tile, end - begin));
            }
        }
        for (const std::int32_t* keys = list.keys; keys < list.keys_end; keys += tile) {
            visit_keys(list, done, keys, static_cast<int>(std::min<std::ptrdiff_t>(tile, list.keys_end - keys)));
        }
    }

    void visit_tile(const RowList& list, const RowList* done, std::int32_t begin, int count) {
        const int block = plan_.grid.block;
        const Cover cover = rule_cover(list.rule, queries_, begin, begin + count);
        const Cover covered = done != nullptr ? list_cover(*done, block, queries_, begin, begin + count) : Cover::none;
        if (cover == Cover::none || covered == Cover::all) return;
        visit_.mask = nullptr;
        if (cover == Cover::part || covered == Cover::part || count % 16 != 0) {
            rule_mask(list.rule, queries_, begin, count, scratch_.mask);
            if (covered == Cover::part) {
                list_mask(*done, block, queries_, begin, count, scratch_.done_mask);
                for (int i = 0; i < queries_.count; ++i) scratch_.mask[i] &= ~scratch_.done_mask[i];
            }
            visit_.mask = scratch_.mask;
        }
        const std::int64_t number =
            static_cast<std::int64_t>(head_ / plan_.inputs.group()) * plan_.tiles_per_head() +
            static_cast<std::int64_t>(plan_.grid.key_block_begin[sequence_]) * plan_.grid.tiles_per_block() +
            begin / tile;
        visit(plan_.keys_transposed + number * plan_.tile_size(), plan_.values + number * plan_.tile_size(), count);
    }

    void visit_keys(const RowList& list, const RowList* done, const std::int32_t* keys, int count) {
        rule_mask(list.rule, queries_, keys, count, scratch_.mask);
        if (done != nullptr) {
            list_mask(*done, plan_.grid.block, queries_, keys, count, scratch_.done_mask);
            for (int i = 0; i < queries_.count; ++i) scratch_.mask[i] &= ~scratch_.done_mask[i];
        }
        std::uint64_t any = 0;
        for (int i = 0; i < queries_.count; ++i) any |= scratch_.mask[i];
        if (any == 0) return;
        visit_.mask = scratch_.mask;
        const auto& kernels = storage_kernels<Storage>(*plan_.kernels);
        const Inputs<Storage>& inputs = plan_.inputs;
        const int key_head = head_ / inputs.group();
        const std::int64_t first = plan_.grid.key_offsets[sequence_];
        Rows<const Storage> rows = inputs.key.rows(first, key_head, count, inputs.head_dim);
        rows.index = keys;
        kernels.load_transposed(rows, scratch_.key_transposed);
        rows = inputs.value.rows(first, key_head, count, inputs.head_dim);
        rows.index = keys;
        kernels.load(rows, scratch_.value);
        visit(scratch_.key_transposed, scratch_.value, count);
    }

    void visit(const float* key_transposed, const float* value, int count) {
        visit_.key_transposed = key_transposed;
        visit_.value = value;
        visit_.keys = count;
        plan_.kernels->forward(visit_, state_);
    }

    void store(const Heads<Storage>& to, const float* out) const {
        storage_kernels<Storage>(*plan_.kernels)
            .store(to.rows(token_, head_, queries_.count, plan_.inputs.head_dim), out, plan_.inputs.head_dim);
    }
    // The state as a branch's result, left in `out` too.
    void save(const Outputs<Storage>& outputs, float* out) const {
        plan_.kernels->finish(state_, queries_.count, plan_.inputs.head_dim, out, scratch_.lse);
        store(outputs.out, out);
        for (int i = 0; i < queries_.count; ++i) outputs.lse.at(token_ + i, head_) = scratch_.lse[i];
    }
    void save_nothing(const Outputs<Storage>& outputs) const {
        for (int i = 0; i < queries_.count; ++i) {
            Storage* row = outputs.out.at(token_ + i, head_);
            std::fill(row, row + plan_.inputs.head_dim, Storage{0});
            outputs.lse.at(token_ + i, head_) = -std::numeric_limits<float>::infinity();
        }
    }

    const ForwardPlan<Storage>& plan_;
    const Scratch& scratch_;
    int head_, row_, sequence_;
    QueryTile queries_;
    std::int64_t token_;
    SoftmaxState state_;
    ForwardTile visit_{};
};

// One tile of one key head, transposed keys and copied values.
template <class Storage>
void pack_tile(const ForwardPlan<Storage>& plan, std::int64_t number) {
    const int per_block = plan.grid.tiles_per_block();
    const int key_head = static_cast<int>(number / plan.tiles_per_head());
    const int in_head = static_cast<int>(number % plan.tiles_per_head());
    const int s = plan.grid.key_block_sequence[in_head / per_block];
    const std::int32_t begin = (in_head - plan.grid.key_block_begin[s] * per_block) * tile;
    const int count = std::min(tile, plan.grid.keys(s) - begin);
    if (count <= 0) return;
    const Inputs<Storage>& inputs = plan.inputs;
    const std::int64_t token = plan.grid.key_offsets[s] + begin;
    const auto& kernels = storage_kernels<Storage>(*plan.kernels);
    kernels.prefetch(inputs.key.rows(token, key_head, count, inputs.head_dim));
    kernels.prefetch(inputs.value.rows(token, key_head, count, inputs.head_dim));
    kernels.load_transposed(inputs.key.rows(token, key_head, count, inputs.head_dim),
                            plan.keys_transposed + number * plan.tile_size());
    kernels.load(inputs.value.rows(token, key_head, count, inputs.head_dim), plan.values + number * plan.tile_size());
}

template <class Exec, class Storage>
void run_forward(const Exec& exec, ForwardPlan<Storage> plan, Workspace<HostMem>& workspace) {
    const Region region("SparseAttn::host_attention.forward");
    using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;
    plan.kernels = &kernels();
    const Grid& grid = plan.grid;
    const int workers = concurrency(exec);
    const std::int64_t heads_rows = static_cast<std::int64_t>(plan.inputs.query_heads) * grid.rows;
    const std::int64_t tiles = static_cast<std::int64_t>(plan.inputs.key_heads) * plan.tiles_per_head();
    const int per_block = grid.tiles_per_block();
    const std::int64_t cost_bound = grid.key_blocks + 2 + grid.key_offsets[grid.sequences] / tile;

    typename Workspace<HostMem>::Frame frame(workspace);
    plan.keys_transposed = frame.template take<float>(tiles * plan.tile_size()).data();
    plan.values = frame.template take<float>(tiles * plan.tile_size()).data();
    const std::int64_t scratch_size = Scratch::floats(plan.inputs.head_dim);
    float* scratch = frame.template take<float>(workers * scratch_size).data();
    std::int64_t* order = frame.template take<std::int64_t>(heads_rows).data();
    std::int64_t* ends = frame.template take<std::int64_t>(cost_bound + 1).data();
    std::int64_t* next = frame.template take<std::int64_t>(1).data();

    Kokkos::parallel_for("SparseAttn::host_attention.order", Policy(exec, 0, 1), [=](std::int64_t) {
        *next = 0;
        const auto cost = [&plan](std::int64_t head_row) {
            const int row = static_cast<int>(head_row % plan.grid.rows);
            const int head = static_cast<int>(head_row / plan.grid.rows);
            const RowList list = plan.leading(head).row(plan.grid, head, row, plan.grid.row_sequence[row]);
            return (list.columns_end - list.columns) + (list.keys_end - list.keys + tile - 1) / tile;
        };
        order_by_cost(heads_rows, cost_bound, cost, ends, order);
    });
    Kokkos::parallel_for("SparseAttn::host_attention.pack", Policy(exec, 0, tiles),
                         [=](std::int64_t number) { pack_tile(plan, number); });
    run_tasks(
        exec, "SparseAttn::host_attention.forward", workers, heads_rows * per_block, next,
        [=](int worker, std::int64_t task) {
            const std::int64_t head_row = order[task / per_block];
            const int row = static_cast<int>(head_row % plan.grid.rows);
            const int s = plan.grid.row_sequence[row];
            const std::int32_t begin =
                (row - plan.grid.row_begin[s]) * plan.grid.block + static_cast<std::int32_t>(task % per_block) * tile;
            const int count = std::min(tile, plan.grid.queries(s) - begin);
            if (count <= 0) return;
            const Scratch own(scratch + worker * scratch_size, plan.inputs.head_dim);
            ForwardTask<Storage>(plan, own, static_cast<int>(head_row / plan.grid.rows), row, {begin, count}).run();
        });
}

}  // namespace
}  // namespace host

template <class Exec, class T>
void host_attention(const Exec& exec, const ForwardArguments<T, typename Exec::memory_space>& a,
                    Workspace<typename Exec::memory_space>& workspace) {
    host::ForwardPlan<host::storage_t<T>> plan{};
    plan.grid = host::grid_of(a.sequences, a.layout.grid);
    plan.inputs = host::inputs_of<T>(a.inputs);
    plan.scale = a.scale * host::log2_e;
    plan.full = host::lists_of(a.layout);
    plan.full_outputs = host::outputs_of<T>(a.outputs);
    host::run_forward(exec, plan, workspace);
}

template <class Exec, class T>
void host_attention(const Exec& exec, const GatedForwardArguments<T, typename Exec::memory_space>& a,
                    Workspace<typename Exec::memory_space>& workspace) {
    host::ForwardPlan<host::storage_t<T>> plan{};
    plan.grid = host::grid_of(a.sequences, a.full.grid);
    plan.inputs = host::inputs_of<T>(a.inputs);
    plan.scale = a.scale * host::log2_e;
    plan.full = host::lists_of(a.full);
    plan.sparse = host::lists_of(a.sparse);
    plan.gate = a.gate.data();
    plan.gated_out = host::heads_of<T>(a.out);
    plan.full_outputs = host::outputs_of<T>(a.full_outputs);
    plan.sparse_outputs = host::outputs_of<T>(a.sparse_outputs);
    host::run_forward(exec, plan, workspace);
}

#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                                                       \
    template void host_attention(const EXEC&, const ForwardArguments<T, EXEC::memory_space>&,      \
                                 Workspace<EXEC::memory_space>&);                                  \
    template void host_attention(const EXEC&, const GatedForwardArguments<T, EXEC::memory_space>&, \
                                 Workspace<EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC) SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)
SPARSEATTN_FOR_EACH_HOST_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
