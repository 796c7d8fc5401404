// The yardstick: softmax attention written down as its definition, in fp64. One work item is one query row (or one key
// row of one key/value head); it asks for every key whether it takes part. The backward pass reads no saved outputs but
// recomputes what it needs, so its gradients are those of the inputs alone.
//
// Plain attention is one branch of weight 1. Gated attention is two: full with weight z, sparse with weight 1 - z.
#include "sparseattn/attention/detail/reference.hpp"

#include "sparseattn/attention/detail/layout_view.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn::detail {
namespace reference {

template <class T, class Mem>
struct Branch {
    LayoutView<Mem> view;
    Span1<double, Mem> lse;    // [T_q * Hq]
    Span1<double, Mem> delta;  // [T_q * Hq] backward: sum over keys of P dP = dout . out
    Span2<double, Mem> sum;    // [T_q * Hq, d] forward: this branch's out
    AttentionOutputs<T, Mem> outputs;
};

/// a . b in fp64, as four partial sums that do not wait for each other.
template <class T>
KOKKOS_INLINE_FUNCTION double dot(const T* a, const T* b, int n) {
    double sum[4] = {};
    int c = 0;
    for (; c + 4 <= n; c += 4) {
        for (int k = 0; k < 4; ++k) sum[k] += static_cast<double>(a[c + k]) * static_cast<double>(b[c + k]);
    }
    for (; c < n; ++c) sum[0] += static_cast<double>(a[c]) * static_cast<double>(b[c]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/// Inputs and branches, and the scalar terms that all kernels share.
template <class T, class Mem>
struct Problem {
    AttentionInputs<T, Mem> inputs;
    HeadsView<const T, Mem> dout;
    Span1<const float, Mem> gate;
    double scale;
    int heads, group, head_dim;
    int branches;
    Branch<T, Mem> branch[2];

    KOKKOS_INLINE_FUNCTION double weight(int b, int h) const {
        if (branches == 1) return 1.0;
        const double z = gate(h);
        return b == 0 ? z : 1.0 - z;
    }
    KOKKOS_INLINE_FUNCTION double score(int h, int query, int key) const {
        return scale * dot(&inputs.query(query, h, 0), &inputs.key(key, h / group, 0), head_dim);
    }
    KOKKOS_INLINE_FUNCTION double dprobability(int h, int query, int key) const {
        return dot(&dout(query, h, 0), &inputs.value(key, h / group, 0), head_dim);
    }
    /// sum += factor * vector
    KOKKOS_INLINE_FUNCTION void add(double* sum, double factor, const T* vector) const {
        for (int c = 0; c < head_dim; ++c) sum[c] += factor * static_cast<double>(vector[c]);
    }
    /// Natural log of the sum of exponentials of the row's scores, -inf without any key.
    KOKKOS_INLINE_FUNCTION double log_sum(const LayoutView<Mem>& view, int h, const TokenBlock& rows, int i) const {
        const int s = rows.sequence, first_key = view.key_offsets(s), keys = view.key_offsets(s + 1) - first_key;
        const double none = -Kokkos::Experimental::infinity<double>::value;
        double largest = none;
        for (int j = 0; j < keys; ++j) {
            if (view.keeps(h, s, i, j)) largest = math::fmax(largest, score(h, rows.origin + i, first_key + j));
        }
        if (largest == none) return none;
        double sum = 0;
        for (int j = 0; j < keys; ++j) {
            if (view.keeps(h, s, i, j)) sum += math::exp(score(h, rows.origin + i, first_key + j) - largest);
        }
        return largest + math::log(sum);
    }
    [[nodiscard]] std::int64_t query_items() const {
        const auto& grid = branch[0].view.layout.grid;
        return static_cast<std::int64_t>(grid.rows) * grid.block * heads;
    }
    [[nodiscard]] std::int64_t key_items() const {
        const auto& grid = branch[0].view.layout.grid;
        return static_cast<std::int64_t>(grid.key_blocks) * grid.block * (heads / group);
    }
};

/// One query row of one head: out and lse of every branch, and their weighted sum.
template <class T, class Mem>
struct ForwardRow {
    Problem<T, Mem> problem;
    HeadsView<T, Mem> out;  // gated: the weighted sum

    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t item) const {
        const int h = static_cast<int>(item % problem.heads);
        const int block = problem.branch[0].view.layout.grid.block;
        const auto rows = problem.branch[0].view.query_block(static_cast<int>(item / problem.heads / block));
        const int i = rows.begin + static_cast<int>(item / problem.heads % block);
        if (i >= rows.end) return;
        for (int b = 0; b < problem.branches; ++b) run_branch(problem.branch[b], problem.weight(b, h), h, rows, i);
        if (problem.branches == 1) return;
        const std::int64_t at = static_cast<std::int64_t>(rows.origin + i) * problem.heads + h;
        for (int c = 0; c < problem.head_dim; ++c) {
            out(rows.origin + i, h, c) = T(problem.weight(0, h) * problem.branch[0].sum(at, c) +
                                           problem.weight(1, h) * problem.branch[1].sum(at, c));
        }
    }
    KOKKOS_INLINE_FUNCTION void run_branch(const Branch<T, Mem>& branch, double weight, int h, const TokenBlock& rows,
                                           int i) const {
        using Lse = accumulate_t<T>;
        const auto& view = branch.view;
        const int s = rows.sequence, first_key = view.key_offsets(s), query = rows.origin + i;
        const std::int64_t at = static_cast<std::int64_t>(query) * problem.heads + h;
        for (int c = 0; c < problem.head_dim; ++c) branch.sum(at, c) = 0;
        double lse = -Kokkos::Experimental::infinity<double>::value;
        if (weight != 0) {  // a branch without weight does not run
            lse = problem.log_sum(view, h, rows, i);
            for (int j = 0; first_key + j < view.key_offsets(s + 1); ++j) {
                if (!view.keeps(h, s, i, j)) continue;
                const double p = math::exp(problem.score(h, query, first_key + j) - lse);
                problem.add(&branch.sum(at, 0), p, &problem.inputs.value(first_key + j, h / problem.group, 0));
            }
        }
        branch.outputs.lse(query, h) = static_cast<Lse>(lse);
        for (int c = 0; c < problem.head_dim; ++c) branch.outputs.out(query, h, c) = T(branch.sum(at, c));
    }
};

/// One query row of one head: lse and delta of every branch, and the gradient of the query.
template <class T, class Mem>
struct BackwardRow {
    Problem<T, Mem> problem;
    Span2<double, Mem> sum;  // [T_q * Hq, d]
    HeadsView<T, Mem> dquery;

    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t item) const {
        const int h = static_cast<int>(item % problem.heads);
        const int block = problem.branch[0].view.layout.grid.block;
        const auto rows = problem.branch[0].view.query_block(static_cast<int>(item / problem.heads / block));
        const int i = rows.begin + static_cast<int>(item / problem.heads % block);
        if (i >= rows.end) return;
        const int query = rows.origin + i;
        const std::int64_t at = static_cast<std::int64_t>(query) * problem.heads + h;
        for (int c = 0; c < problem.head_dim; ++c) sum(at, c) = 0;
        for (int b = 0; b < problem.branches; ++b) {
            if (problem.weight(b, h) != 0) run_branch(problem.branch[b], problem.weight(b, h), h, rows, i);
        }
        for (int c = 0; c < problem.head_dim; ++c) dquery(query, h, c) = T(sum(at, c));
    }
    KOKKOS_INLINE_FUNCTION void run_branch(const Branch<T, Mem>& branch, double weight, int h, const TokenBlock& rows,
                                           int i) const {
        const auto& view = branch.view;
        const int s = rows.sequence, first_key = view.key_offsets(s), query = rows.origin + i;
        const int keys = view.key_offsets(s + 1) - first_key;
        const std::int64_t at = static_cast<std::int64_t>(query) * problem.heads + h;
        const double lse = problem.log_sum(view, h, rows, i);
        double delta = 0;
        for (int j = 0; j < keys; ++j) {
            if (!view.keeps(h, s, i, j)) continue;
            delta +=
                math::exp(problem.score(h, query, first_key + j) - lse) * problem.dprobability(h, query, first_key + j);
        }
        for (int j = 0; j < keys; ++j) {
            if (!view.keeps(h, s, i, j)) continue;
            const double p = weight * math::exp(problem.score(h, query, first_key + j) - lse);
            const double ds = problem.scale * p * (problem.dprobability(h, query, first_key + j) - delta);
            problem.add(&sum(at, 0), ds, &problem.inputs.key(first_key + j, h / problem.group, 0));
        }
        branch.lse(at) = lse;
        branch.delta(at) = delta;
    }
};

/// One key of one key/value head: its gradients, summed over the query heads of the group. Runs after BackwardRow.
template <class T, class Mem>
struct BackwardKey {
    Problem<T, Mem> problem;
    Span2<double, Mem> dkey_sum;    // [T_k * Hkv, d]
    Span2<double, Mem> dvalue_sum;  // [T_k * Hkv, d]
    AttentionGradients<T, Mem> gradients;

    KOKKOS_INLINE_FUNCTION void operator()(std::int64_t item) const {
        const int kv_heads = problem.heads / problem.group, kv = static_cast<int>(item % kv_heads);
        const int block = problem.branch[0].view.layout.grid.block;
        const auto keys = problem.branch[0].view.key_block(static_cast<int>(item / kv_heads / block));
        const int j = keys.begin + static_cast<int>(item / kv_heads % block);
        if (j >= keys.end) return;
        const int key = keys.origin + j;
        const std::int64_t at = static_cast<std::int64_t>(key) * kv_heads + kv;
        for (int c = 0; c < problem.head_dim; ++c) dkey_sum(at, c) = dvalue_sum(at, c) = 0;
        for (int h = kv * problem.group; h < (kv + 1) * problem.group; ++h) {
            for (int b = 0; b < problem.branches; ++b) {
                if (problem.weight(b, h) != 0)
                    run_branch(problem.branch[b], problem.weight(b, h), h, keys.sequence, j, at);
            }
        }
        for (int c = 0; c < problem.head_dim; ++c) {
            gradients.key(key, kv, c) = T(dkey_sum(at, c));
            gradients.value(key, kv, c) = T(dvalue_sum(at, c));
        }
    }
    KOKKOS_INLINE_FUNCTION void run_branch(const Branch<T, Mem>& branch, double weight, int h, int s, int j,
                                           std::int64_t at) const {
        const auto& view = branch.view;
        const int first_query = view.query_offsets(s), key = view.key_offsets(s) + j;
        for (int i = 0; first_query + i < view.query_offsets(s + 1); ++i) {
            if (!view.keeps(h, s, i, j)) continue;
            const int query = first_query + i;
            const std::int64_t row = static_cast<std::int64_t>(query) * problem.heads + h;
            const double p = weight * math::exp(problem.score(h, query, key) - branch.lse(row));
            const double ds = problem.scale * p * (problem.dprobability(h, query, key) - branch.delta(row));
            problem.add(&dvalue_sum(at, 0), p, &problem.dout(query, h, 0));
            problem.add(&dkey_sum(at, 0), ds, &problem.inputs.query(query, h, 0));
        }
    }
};

/// One head: dgate = sum over rows of dout . (full - sparse). A clamped gate passes no gradient.
template <class T, class Mem>
struct GateGradient {
    Problem<T, Mem> problem;
    int queries;
    Span1<float, Mem> dgate;

    KOKKOS_INLINE_FUNCTION void operator()(int h) const {
        double sum = 0;
        if (problem.weight(0, h) != 0 && problem.weight(1, h) != 0) {
            for (int query = 0; query < queries; ++query) {
                const std::int64_t at = static_cast<std::int64_t>(query) * problem.heads + h;
                sum += problem.branch[0].delta(at) - problem.branch[1].delta(at);
            }
        }
        dgate(h) = static_cast<float>(sum);
    }
};

template <class Arguments, class T, class Mem>
Problem<T, Mem> make_problem(const Arguments& arguments, const AttentionInputs<T, Mem>& inputs) {
    Problem<T, Mem> problem;
    problem.inputs = inputs;
    problem.scale = static_cast<double>(arguments.scale);
    problem.heads = static_cast<int>(inputs.query.extent(1));
    problem.group = problem.heads / static_cast<int>(inputs.key.extent(1));
    problem.head_dim = static_cast<int>(inputs.query.extent(2));
    problem.branches = 0;
    return problem;
}

template <class Exec>
using Policy = Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>;

template <class Exec, class T, class Mem>
void forward(const Exec& exec, Problem<T, Mem> problem, typename Workspace<Mem>::Frame& frame,
             const HeadsView<T, Mem>& out) {
    const std::size_t rows = problem.inputs.query.extent(0) * problem.heads;
    for (int b = 0; b < problem.branches; ++b)
        problem.branch[b].sum = frame.template take<double>(rows, problem.head_dim);
    Kokkos::parallel_for("SparseAttn::reference_forward", Policy<Exec>(exec, 0, problem.query_items()),
                         ForwardRow<T, Mem>{problem, out});
}

template <class Exec, class T, class Mem>
void backward(const Exec& exec, Problem<T, Mem> problem, typename Workspace<Mem>::Frame& frame,
              const AttentionGradients<T, Mem>& gradients, const Span1<float, Mem>& dgate) {
    const std::size_t rows = problem.inputs.query.extent(0) * problem.heads;
    const std::size_t key_rows = problem.inputs.key.extent(0) * problem.inputs.key.extent(1);
    for (int b = 0; b < problem.branches; ++b) {
        problem.branch[b].lse = frame.template take<double>(rows);
        problem.branch[b].delta = frame.template take<double>(rows);
    }
    Kokkos::parallel_for(
        "SparseAttn::reference_backward_rows", Policy<Exec>(exec, 0, problem.query_items()),
        BackwardRow<T, Mem>{problem, frame.template take<double>(rows, problem.head_dim), gradients.query});
    Kokkos::parallel_for("SparseAttn::reference_backward_keys", Policy<Exec>(exec, 0, problem.key_items()),
                         BackwardKey<T, Mem>{problem, frame.template take<double>(key_rows, problem.head_dim),
                                             frame.template take<double>(key_rows, problem.head_dim), gradients});
    if (problem.branches == 2) {
        Kokkos::parallel_for("SparseAttn::reference_gate_gradient", Kokkos::RangePolicy<Exec>(exec, 0, problem.heads),
                             GateGradient<T, Mem>{problem, static_cast<int>(problem.inputs.query.extent(0)), dgate});
    }
}

}  // namespace reference

template <class Exec, class T>
void reference_attention(const Exec& exec, const ForwardArguments<T, typename Exec::memory_space>& arguments,
                         Workspace<typename Exec::memory_space>& workspace) {
    using Mem = typename Exec::memory_space;
    typename Workspace<Mem>::Frame frame(workspace);
    auto problem = reference::make_problem(arguments, arguments.inputs);
    problem.branches = 1;
    problem.branch[0].view = {arguments.layout, arguments.sequences};
    problem.branch[0].outputs = arguments.outputs;
    reference::forward(exec, problem, frame, arguments.outputs.out);
}

template <class Exec, class T>
void reference_attention(const Exec& exec, const BackwardArguments<T, typename Exec::memory_space>& arguments,
                         Workspace<typename Exec::memory_space>& workspace) {
    using Mem = typename Exec::memory_space;
    typename Workspace<Mem>::Frame frame(workspace);
    auto problem = reference::make_problem(arguments, arguments.inputs);
    problem.dout = arguments.dout;
    problem.branches = 1;
    problem.branch[0].view = {arguments.layout.layout, arguments.sequences};
    reference::backward(exec, problem, frame, arguments.gradients, Span1<float, Mem>());
}

template <class Exec, class T>
void reference_attention(const Exec& exec, const GatedForwardArguments<T, typename Exec::memory_space>& arguments,
                         Workspace<typename Exec::memory_space>& workspace) {
    using Mem = typename Exec::memory_space;
    typename Workspace<Mem>::Frame frame(workspace);
    auto problem = reference::make_problem(arguments, arguments.inputs);
    problem.gate = arguments.gate;
    problem.branches = 2;
    problem.branch[0].view = {arguments.full, arguments.sequences};
    problem.branch[0].outputs = arguments.full_outputs;
    problem.branch[1].view = {arguments.sparse, arguments.sequences};
    problem.branch[1].outputs = arguments.sparse_outputs;
    reference::forward(exec, problem, frame, arguments.out);
}

template <class Exec, class T>
void reference_attention(const Exec& exec, const GatedBackwardArguments<T, typename Exec::memory_space>& arguments,
                         Workspace<typename Exec::memory_space>& workspace) {
    using Mem = typename Exec::memory_space;
    typename Workspace<Mem>::Frame frame(workspace);
    auto problem = reference::make_problem(arguments, arguments.inputs);
    problem.dout = arguments.dout;
    problem.gate = arguments.gate;
    problem.branches = 2;
    problem.branch[0].view = {arguments.full.layout, arguments.sequences};
    problem.branch[1].view = {arguments.sparse.layout, arguments.sequences};
    reference::backward(exec, problem, frame, arguments.gradients, arguments.dgate);
}

#define SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, ARGUMENTS, T)                                \
    template void reference_attention(const EXEC&, const ARGUMENTS<T, EXEC::memory_space>&, \
                                      Workspace<EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE_TYPE(EXEC, T)                         \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, ForwardArguments, T)      \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, BackwardArguments, T)     \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, GatedForwardArguments, T) \
    SPARSEATTN_INSTANTIATE_ARGUMENTS(EXEC, GatedBackwardArguments, T)
#define SPARSEATTN_INSTANTIATE(EXEC)         \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, float) \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, bf16)  \
    SPARSEATTN_INSTANTIATE_TYPE(EXEC, double)
SPARSEATTN_FOR_EACH_EXEC(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail
