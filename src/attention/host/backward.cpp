// Backward pass, plain and gated. One task is one tile of 64 keys of one key head: it holds their gradients, walks the
// query tiles that visit them, over the query heads of the group, and adds to the query gradients on its way.
//
// Order of the sums. Key and value gradients: one task, fixed walk. Query gradients: the tasks of a row take turns in
// rising order of their tiles; `turns` names the tile whose turn it is. Tasks are started in an order that puts the
// tiles of one head and sequence in rising order, so whoever waits, waits for a task that has been started before, and
// the first of all unfinished tasks never waits: no deadlock with any number of threads. Heads alternate in that order,
// so that threads rarely meet on one row. The result does not depend on the number of threads.
#include "backward_task.hpp"
#include "sparseattn/attention/detail/host.hpp"
#include "sparseattn/core/instantiate.hpp"
#include "sparseattn/core/profiling.hpp"

namespace sparseattn::detail {
namespace host {
namespace {

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
    const std::int64_t scratch_size = BackwardScratch::floats(plan.inputs.head_dim, grid.rows);
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
        const BackwardScratch own(scratch + worker * scratch_size, plan.inputs.head_dim, plan.grid.rows);
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
