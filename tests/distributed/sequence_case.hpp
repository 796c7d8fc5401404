#pragma once
// One layer's attention on the ranks of a group and, as its yardstick, on one rank.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sparseattn/model/sequence_parallel.hpp"
#include "sparseattn/parallel/partition.hpp"
#include "support/arrays.hpp"

namespace sparseattn::test {

constexpr int case_head_dim = 32;
constexpr int case_heads = 8;

struct SequenceCase {
    std::vector<std::int32_t> offsets;
    int kv_heads = 8;
    LayerSelector selector;
    std::vector<float> gate;  // [query heads], or empty

    [[nodiscard]] int tokens() const { return offsets.back(); }
    [[nodiscard]] SequenceParallelTask task() const { return {{selector}, gate}; }
    [[nodiscard]] ModelConfig config() const {
        ModelConfig config;
        config.vocab_size = 10;
        config.hidden_size = 16;
        config.num_hidden_layers = 1;
        config.num_attention_heads = case_heads;
        config.num_key_value_heads = kv_heads;
        config.head_dim = case_head_dim;
        config.intermediate_size = 16;
        return config;
    }
};

// Documents of odd lengths, one of them a single token, that cross the borders of any shards.
inline std::vector<std::int32_t> odd_documents(int tokens) {
    return {0, tokens / 3 + 1, tokens / 3 + 2, tokens / 3 + 37, tokens};
}

// Everything a layer computes, for all tokens or those of one rank.
using LayerResults = std::map<std::string, std::vector<double>>;

template <class T>
struct LayerArrays {
    std::vector<T> query, key, value, dout;

    explicit LayerArrays(const SequenceCase& c)
        : query(random<T>(std::size_t(c.tokens()) * case_heads * case_head_dim, 1)),
          key(random<T>(std::size_t(c.tokens()) * c.kv_heads * case_head_dim, 2)),
          value(random<T>(std::size_t(c.tokens()) * c.kv_heads * case_head_dim, 3)),
          dout(random<T>(std::size_t(c.tokens()) * case_heads * case_head_dim, 4)) {}
};

// Drawn once for a shape.
template <class T>
const LayerArrays<T>& arrays_of(const SequenceCase& c) {
    static std::map<std::pair<int, int>, LayerArrays<T>> all;
    return all.try_emplace({c.tokens(), c.kv_heads}, c).first->second;
}

// Rows of an array of `tokens` tokens.
template <class T>
std::vector<T> rows_of(const std::vector<T>& values, int tokens, const IndexRange& rows) {
    const auto width = static_cast<std::int64_t>(values.size()) / tokens;
    return {values.begin() + rows.begin * width, values.begin() + rows.end * width};
}

inline std::vector<double> doubles(const auto& values) {
    return {values.begin(), values.end()};
}

// By the attention calls themselves.
template <class T>
LayerResults one_rank(const SequenceCase& c, HostLists* lists = nullptr) {
    const Exec exec;
    const Sequences<Mem> sequences(c.offsets);
    const LayerArrays<T>& arrays = arrays_of<T>(c);
    const auto n = static_cast<std::size_t>(c.tokens());
    const Device<T> query(arrays.query), key(arrays.key), value(arrays.value), dout(arrays.dout);
    const Device<T> dquery(arrays.query.size()), dkey(arrays.key.size()), dvalue(arrays.value.size());
    const Device<T> out(arrays.query.size()), full(arrays.query.size()), sparse(arrays.query.size());
    using A = accumulate_t<T>;
    const Device<A> lse(n * case_heads), sparse_lse(n * case_heads);
    const auto rows = [&](const Device<A>& scalars) {
        return RowsView<A, Mem>(scalars.array.data(), Kokkos::LayoutStride(n, case_heads, case_heads, 1));
    };
    const AttentionInputs<T, Mem> inputs{query.heads(n, case_heads), key.heads(n, c.kv_heads),
                                         value.heads(n, c.kv_heads)};
    const AttentionGradients<T, Mem> gradients{dquery.heads(n, case_heads), dkey.heads(n, c.kv_heads),
                                               dvalue.heads(n, c.kv_heads)};
    Workspace<Mem> workspace;
    BlockLayout<Mem> chosen;
    if constexpr (std::is_same_v<T, double>) {
        chosen = build_layout(exec, sequences, block_of(c.selector.method), true,
                              std::vector<HeadMode>(case_heads, scoreless_mode(c.selector.method).value()));
    } else {
        chosen =
            select<Exec, T>(exec, inputs.query, inputs.key, sequences, c.selector.method, workspace, c.selector.heads);
    }
    const auto chosen_transposed = transpose(exec, sequences, chosen);
    const LayoutPair<Mem> branch{chosen, chosen_transposed};
    if (lists) *lists = copy_lists(exec, chosen);
    LayerResults r;
    const HeadsView<const T, Mem> dout_view = dout.heads(n, case_heads);
    if (c.gate.empty()) {
        const AttentionOutputs<T, Mem> outputs{out.heads(n, case_heads), rows(lse)};
        attention_forward<Exec, T>(exec, inputs, sequences, chosen, {}, workspace, outputs);
        attention_backward<Exec, T>(exec, dout_view, inputs, outputs, sequences, branch, {}, workspace, gradients);
    } else {
        const auto dense = build_layout(exec, sequences, block_of(c.selector.method), true,
                                        std::vector<HeadMode>(case_heads, HeadMode::dense()));
        const auto dense_transposed = transpose(exec, sequences, dense);
        const Device<float> gate(c.gate), dgate(c.gate.size());
        const AttentionOutputs<T, Mem> full_outputs{full.heads(n, case_heads), rows(lse)};
        const AttentionOutputs<T, Mem> sparse_outputs{sparse.heads(n, case_heads), rows(sparse_lse)};
        gated_attention_forward<Exec, T>(exec, inputs, sequences, dense, chosen, gate.flat(), {}, workspace,
                                         out.heads(n, case_heads), full_outputs, sparse_outputs);
        gated_attention_backward<Exec, T>(exec, dout_view, inputs, full_outputs, sparse_outputs, sequences,
                                          {dense, dense_transposed}, branch, gate.flat(), {}, workspace, gradients,
                                          dgate.flat());
        r["dgate"] = doubles(dgate.host());
    }
    exec.fence();
    r["out"] = doubles(out.host());
    r["dquery"] = doubles(dquery.host());
    r["dkey"] = doubles(dkey.host());
    r["dvalue"] = doubles(dvalue.host());
    return r;
}

// This rank's tokens through an operator of the group. Outputs start as NaN. `around` calls the pass.
template <class T>
LayerResults one_of_ranks(SequenceParallelAttention<Exec, T>& attention, const Communicator& group,
                          const SequenceCase& c, const std::function<void(const std::function<void()>&)>& around = {}) {
    const Exec exec;
    attention.begin_pack(c.offsets, c.task());
    const IndexRange mine = partition(c.tokens(), group.rank(), group.size());
    const LayerArrays<T>& arrays = arrays_of<T>(c);
    const auto part = [&](const std::vector<T>& values) { return Device<T>(rows_of(values, c.tokens(), mine)); };
    const auto n = static_cast<std::size_t>(mine.count());
    const Device<T> query = part(arrays.query), key = part(arrays.key), value = part(arrays.value);
    const Device<T> dout = part(arrays.dout);
    const T nan(std::nanf(""));
    const Device<T> out(query.array.size(), nan), dquery(query.array.size(), nan), dkey(key.array.size(), nan),
        dvalue(key.array.size(), nan);
    const Sequences<Mem> shard(std::vector<std::int32_t>{0, static_cast<std::int32_t>(n)});
    const LayerInputs<Exec, T> inputs{
        0, shard, {query.heads(n, case_heads), key.heads(n, c.kv_heads), value.heads(n, c.kv_heads)}};
    const auto pass = [&] {
        attention.prepare(c.config(), {static_cast<std::int64_t>(n), true, false});
        attention.forward(exec, inputs, out.heads(n, case_heads));
        attention.backward(exec, inputs, out.heads(n, case_heads), dout.heads(n, case_heads),
                           {dquery.heads(n, case_heads), dkey.heads(n, c.kv_heads), dvalue.heads(n, c.kv_heads)});
        exec.fence();
    };
    around ? around(pass) : pass();
    LayerResults r{{"out", doubles(out.host())},
                   {"dquery", doubles(dquery.host())},
                   {"dkey", doubles(dkey.host())},
                   {"dvalue", doubles(dvalue.host())}};
    if (!c.gate.empty()) r["dgate"] = doubles(attention.gate_gradients());
    return r;
}

// Largest difference to this rank's part of `whole`, relative to the largest value of the whole; NaN counts as
// infinite.
inline double worst_error(const LayerResults& mine, const LayerResults& whole, int tokens, const IndexRange& range,
                          std::string* where = nullptr) {
    double worst = 0;
    for (const auto& [name, all] : whole) {
        const std::vector<double> wanted = name == "dgate" ? all : rows_of(all, tokens, range);
        const std::vector<double>& got = mine.at(name);
        if (got.size() != wanted.size()) return std::numeric_limits<double>::infinity();
        double size = 1e-30, error = 0;
        for (const double x : all) size = std::max(size, std::abs(x));
        for (std::size_t i = 0; i < got.size(); ++i) {
            const double difference = std::abs(got[i] - wanted[i]);
            error = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(error, difference);
        }
        if (error / size > worst) {
            worst = error / size;
            if (where) *where = name;
        }
    }
    return worst;
}

}  // namespace sparseattn::test
