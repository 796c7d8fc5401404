#include "sparseattn/model/sequence_parallel.hpp"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/detail/sequence_buffers.hpp"
#include "sparseattn/parallel/packet_exchange.hpp"

namespace sparseattn {
namespace {

using namespace detail;

// Messages of exchanges that are under way together differ in their tag.
enum Tag { gather_tag = 1, return_tag = 3, halo_tag = 4, own_tag = 5 };

template <class T, class Mem>
Span2<T, Mem> rows_in(const Span1<T, Mem>& memory, const Span2<T, Mem>& like) {
    return Span2<T, Mem>(memory.data(), like.extent(0), like.extent(1));
}
template <class T, class Mem>
Span2<T, Mem> rows_in(const Span1<T, Mem>& memory, const Route<Mem>& route, int head_dim) {
    return Span2<T, Mem>(memory.data(), static_cast<std::size_t>(route.target_rows),
                         static_cast<std::size_t>(route.target_heads) * static_cast<std::size_t>(head_dim));
}

// Heads of one call in rows of queries, keys and values.
template <class V, class T, class Mem>
V inputs_of(const Span2<T, Mem>& rows, const HeadBatch& heads, int d) {
    const int queries = static_cast<int>(heads.queries.size()), kv = static_cast<int>(heads.kv.size());
    return {heads_of(rows, 0, queries, d), heads_of(rows, queries, kv, d), heads_of(rows, queries + kv, kv, d)};
}

}  // namespace

template <class Exec, class T>
struct SequenceParallelAttention<Exec, T>::State {
    using Exchange = PacketExchange<Exec, T>;

    State(const Exec& exec_, const Communicator& group_, const ModelConfig& config_,
          const SequenceParallelOptions& options_)
        : planner(exec_),
          group(group_),
          config(config_),
          options(options_),
          path(mpi_path<Exec>(options_.gpu_aware)),
          gather{{group, path, gather_tag}, {group, path, gather_tag + 1}},
          back(group, path, return_tag),
          halo(group, path, halo_tag),
          own(group, path, own_tag) {
        config.validate();
        require(options.pieces >= 1, "options.pieces", options.pieces, "at least 1");
    }

    Exec planner;  // where packs are planned; passes run where the decoder does
    Communicator group;
    ModelConfig config;
    SequenceParallelOptions options;
    MpiPath path;

    std::unique_ptr<const SequencePlan<Exec>> plan;
    PassShape pass;
    Array1<std::byte, Mem> memory;
    SequenceBuffers<T, Mem> buffers;
    Array1<float, Mem> gate, dgate;                       // of this rank's heads, as plan->gate_heads()
    std::vector<std::vector<WholeLayout<Mem>>> selected;  // [layer, or one for all][piece], of selected heads
    std::vector<double> visited;                          // blocks by selected heads of this rank
    Workspace<Mem> workspace;                             // of selectors and attention calls, one after the other
    Exchange gather[2], back, halo, own;

    // ---- calls of attention ----

    // The layouts and gates of a call; `chosen` holds a selected layout.
    struct Layouts {
        LayoutPair<Mem> branch, full;
        LayerPlan<Mem> plan;
        Layouts(const State& s, const HeadsPlan<Mem>& heads, const WholeLayout<Mem>* chosen)
            : branch(pair(heads.known ? *heads.known : *chosen)),
              full(heads.dense ? pair(*heads.dense) : branch),
              plan{full, heads.dense ? &branch : nullptr, s.gates_of(s.gate, heads), s.gates_of(s.dgate, heads),
                   s.options.attention} {}
        Layouts(const Layouts&) = delete;
        Layouts& operator=(const Layouts&) = delete;
        static LayoutPair<Mem> pair(const WholeLayout<Mem>& layout) { return {layout.lists, layout.transposed}; }
    };
    [[nodiscard]] Span1<float, Mem> gates_of(const Array1<float, Mem>& all, const HeadsPlan<Mem>& heads) const {
        if (heads.gate_begin < 0) return {};
        return Span1<float, Mem>(all.data() + heads.gate_begin, heads.heads.queries.size());
    }

    void select_layout(const Exec& exec, int layer, const HeadsPlan<Mem>& heads, const AttentionInputs<T, Mem>& inputs,
                       WholeLayout<Mem>& chosen) {
        if constexpr (std::is_same_v<T, double>) {
            require(false, "task.layers[].method", selector_name(heads.selector.method),
                    "full or streaming in double: other methods select in float");
        } else {
            chosen.lists = select<Exec, T>(exec, inputs.query, inputs.key, plan->sequences(), heads.selector.method,
                                           workspace, heads.selector.heads);
            if (pass.training) chosen.transposed = transpose(exec, plan->sequences(), chosen.lists);
            const auto offsets = to_host(exec, chosen.lists.offsets);
            const auto head_list = to_host(exec, chosen.lists.head_list);
            for (std::size_t i = 0; i < head_list.size(); ++i) {
                const std::int64_t row = static_cast<std::int64_t>(head_list[i]) * chosen.lists.grid.rows;
                const auto at = static_cast<std::size_t>(row), end = at + chosen.lists.grid.rows;
                visited[static_cast<std::size_t>(layer * config.num_attention_heads + heads.heads.queries[i])] =
                    static_cast<double>(offsets[end] - offsets[at]);
            }
        }
    }

    [[nodiscard]] std::size_t kept_set(int layer) const {
        return selected.size() == 1 ? 0 : static_cast<std::size_t>(layer);
    }
    [[nodiscard]] const WholeLayout<Mem>& chosen_layout(int layer, std::size_t piece) const {
        return selected[kept_set(layer)][piece];
    }

    void compute_piece(const Exec& exec, int layer, std::size_t i, const Span2<T, Mem>& out) {
        const HeadsPlan<Mem>& heads = plan->layer(layer).pieces[i].heads;
        if (heads.heads.empty()) return;
        const SavedPiece<T, Mem>& saved = buffers.layers[static_cast<std::size_t>(layer)].pieces[i];
        const int d = config.head_dim, queries = static_cast<int>(heads.heads.queries.size());
        const auto inputs = inputs_of<AttentionInputs<T, Mem>>(saved.inputs, heads.heads, d);
        if (!heads.known) select_layout(exec, layer, heads, inputs, selected[kept_set(layer)][i]);
        const Layouts layouts(*this, heads, &chosen_layout(layer, i));
        forward_call<Exec, T>({exec, inputs, plan->sequences(), layouts.plan, saved.branches, workspace},
                              heads_of(out, 0, queries, d));
    }

    void differentiate_piece(const Exec& exec, int layer, std::size_t i, const Span2<T, Mem>& dout,
                             const Span2<T, Mem>& dinputs) {
        const HeadsPlan<Mem>& heads = plan->layer(layer).pieces[i].heads;
        if (heads.heads.empty()) return;
        const SavedPiece<T, Mem>& saved = buffers.layers[static_cast<std::size_t>(layer)].pieces[i];
        const int d = config.head_dim, queries = static_cast<int>(heads.heads.queries.size());
        const Layouts layouts(*this, heads, &chosen_layout(layer, i));
        const Span1<float, Mem> scratch(buffers.scratch.dgate.data(), plan->gated() ? heads.heads.queries.size() : 0);
        backward_call<Exec, T>({exec, inputs_of<AttentionInputs<T, Mem>>(saved.inputs, heads.heads, d),
                                plan->sequences(), layouts.plan, saved.branches, workspace},
                               heads_of(saved.out, 0, plan->gated() ? 0 : queries, d), heads_of(dout, 0, queries, d),
                               inputs_of<AttentionGradients<T, Mem>>(dinputs, heads.heads, d), scratch);
    }

    // use(call, its own queries' first number, inputs of it in rows of queries and of keys)
    template <class V, class Use>
    void for_each_halo_call(const HaloHeads<Mem>& heads, const Span2<T, Mem>& queries, const Span2<T, Mem>& keys,
                            const Use& use) {
        const int d = config.head_dim, all_kv = static_cast<int>(heads.kv.size());
        int query = 0, kv = 0;
        for (std::size_t i = 0; i < heads.calls.size(); ++i) {
            const HeadBatch& batch = heads.calls[i].heads;
            const int query_count = static_cast<int>(batch.queries.size()),
                      kv_count = static_cast<int>(batch.kv.size());
            use(i, query, query_count,
                V{heads_of(queries, query, query_count, d), heads_of(keys, kv, kv_count, d),
                  heads_of(keys, all_kv + kv, kv_count, d)});
            query += query_count;
            kv += kv_count;
        }
    }

    void compute_halo(const Exec& exec, int layer) {
        const HaloHeads<Mem>& heads = plan->layer(layer).halo;
        const SavedHalo<T, Mem>& saved = buffers.layers[static_cast<std::size_t>(layer)].halo;
        for_each_halo_call<AttentionInputs<T, Mem>>(
            heads, saved.queries, saved.keys, [&](std::size_t i, int first, int count, const auto& inputs) {
                const Layouts layouts(*this, heads.calls[i], nullptr);
                forward_call<Exec, T>({exec, inputs, *heads.sequences, layouts.plan, saved.branches[i], workspace},
                                      heads_of(saved.out, first, count, config.head_dim));
            });
    }

    void differentiate_halo(const Exec& exec, int layer, const Span2<T, Mem>& dout, const Span2<T, Mem>& dqueries,
                            const Span2<T, Mem>& dkeys) {
        const HaloHeads<Mem>& heads = plan->layer(layer).halo;
        const SavedHalo<T, Mem>& saved = buffers.layers[static_cast<std::size_t>(layer)].halo;
        std::vector<AttentionGradients<T, Mem>> gradients;
        for_each_halo_call<AttentionGradients<T, Mem>>(
            heads, dqueries, dkeys, [&](std::size_t, int, int, const auto& views) { gradients.push_back(views); });
        for_each_halo_call<AttentionInputs<T, Mem>>(
            heads, saved.queries, saved.keys, [&](std::size_t i, int first, int count, const auto& inputs) {
                const Layouts layouts(*this, heads.calls[i], nullptr);
                backward_call<Exec, T>({exec, inputs, *heads.sequences, layouts.plan, saved.branches[i], workspace},
                                       heads_of(saved.out, first, count, config.head_dim),
                                       heads_of(dout, first, count, config.head_dim), gradients[i], {});
            });
    }

    // ---- passes of a layer ----

    void forward(const Exec& exec, int layer, const HeadSet<const T, Mem>& inputs, const HeadSet<T, Mem>& results) {
        const LayerExchange<Mem>& exchange = plan->layer(layer);
        const SavedExchange<T, Mem>& saved = buffers.layers[static_cast<std::size_t>(layer)];
        const std::size_t pieces = exchange.pieces.size();
        const auto start = [&](std::size_t i) {
            if (i < pieces) gather[i % 2].start(exec, exchange.pieces[i].inputs, inputs, saved.pieces[i].inputs);
        };
        const bool has_halo = !exchange.halo.calls.empty();
        if (has_halo) {
            halo.start(exec, exchange.halo.keys, inputs, saved.halo.keys);
            own.start(exec, exchange.halo.own, inputs, saved.halo.queries);
        }
        start(0);
        if (has_halo) {
            halo.finish(exec);
            own.finish(exec);
            compute_halo(exec, layer);
            own.start_return(exec, exchange.halo.results, saved.halo.out, results);
            own.finish_return(exec);
        }
        for (std::size_t i = 0; i < pieces; ++i) {
            start(i + 1);
            gather[i % 2].finish(exec);
            const Route<Mem>& route = exchange.pieces[i].results;
            const Span2<T, Mem> out =
                plan->gated() ? rows_in(buffers.scratch.results[i % 2], route, config.head_dim) : saved.pieces[i].out;
            compute_piece(exec, layer, i, out);
            if (i > 0) back.finish_return(exec);
            back.start_return(exec, route, out, results);
        }
        if (pieces > 0) back.finish_return(exec);
    }

    void backward(const Exec& exec, int layer, const HeadSet<const T, Mem>& dresults, const HeadSet<T, Mem>& dinputs) {
        const LayerExchange<Mem>& exchange = plan->layer(layer);
        const SavedExchange<T, Mem>& saved = buffers.layers[static_cast<std::size_t>(layer)];
        const auto& scratch = buffers.scratch;
        const std::size_t pieces = exchange.pieces.size();
        const auto dout = [&](std::size_t i) {
            return rows_in(scratch.results[i % 2], exchange.pieces[i].results, config.head_dim);
        };
        const auto start = [&](std::size_t i) {
            if (i < pieces) gather[i % 2].start(exec, exchange.pieces[i].results, dresults, dout(i));
        };
        start(0);
        const bool has_halo = !exchange.halo.calls.empty();
        const Span2<T, Mem> dkeys = rows_in(scratch.halo_dkeys, saved.halo.keys);
        if (has_halo) {
            const Span2<T, Mem> dqueries = rows_in(scratch.halo_dqueries, saved.halo.queries);
            const Span2<T, Mem> halo_dout = rows_in(scratch.halo_dout, saved.halo.out);
            own.start(exec, exchange.halo.results, dresults, halo_dout);
            own.finish(exec);
            differentiate_halo(exec, layer, halo_dout, dqueries, dkeys);
            own.start_return(exec, exchange.halo.own, dqueries, dinputs);
            own.finish_return(exec);
            halo.start_return(exec, exchange.halo.keys, dkeys, dinputs);
        }
        for (std::size_t i = 0; i < pieces; ++i) {
            start(i + 1);
            gather[i % 2].finish(exec);
            const Span2<T, Mem> gradients = rows_in(scratch.inputs[i % 2], saved.pieces[i].inputs);
            differentiate_piece(exec, layer, i, dout(i), gradients);
            if (i > 0) back.finish_return(exec);
            back.start_return(exec, exchange.pieces[i].inputs, gradients, dinputs);
        }
        if (pieces > 0) back.finish_return(exec);
        // Last, because keys and values that are exchanged as well have been put down by now.
        if (has_halo) halo.finish_return(exec);
    }
};

template <class Exec, class T>
SequenceParallelAttention<Exec, T>::SequenceParallelAttention(const Exec& exec, const Communicator& group,
                                                              const ModelConfig& config,
                                                              const SequenceParallelOptions& options)
    : state_(std::make_unique<State>(exec, group, config, options)) {}
template <class Exec, class T>
SequenceParallelAttention<Exec, T>::~SequenceParallelAttention() = default;

template <class Exec, class T>
void SequenceParallelAttention<Exec, T>::begin_pack(const std::vector<std::int32_t>& offsets,
                                                    const SequenceParallelTask& task) {
    const Region region("SparseAttn::sequence_parallel.begin_pack");
    State& s = *state_;
    require(!offsets.empty(), "offsets", "empty", "the borders of the documents");
    s.plan = nullptr;
    s.plan = std::make_unique<const SequencePlan<Exec>>(
        s.planner, s.config, TokenShards{offsets.back(), s.group.size()}, s.group.rank(), offsets, task, s.options);
    std::vector<float> gate;
    for (const int i : s.plan->gate_heads()) gate.push_back(task.gate[static_cast<std::size_t>(i)]);
    s.gate = to_device(s.planner, "SparseAttn::gate", gate);
    s.dgate = zeros<float>(s.planner, "SparseAttn::dgate", static_cast<std::int64_t>(gate.size()));
    fence(s.planner, "SparseAttn::begin_pack");
    s.visited.assign(
        static_cast<std::size_t>(s.config.num_hidden_layers) * static_cast<std::size_t>(s.config.num_attention_heads),
        0.0);
}

template <class Exec, class T>
void SequenceParallelAttention<Exec, T>::prepare(const ModelConfig& config, const PassShape& pass) {
    State& s = *state_;
    require(config == s.config, "config", "another model's", "the operator's");
    require(s.plan != nullptr, "pack", "not set", "set by begin_pack before a pass");
    const std::int64_t mine = s.plan->shards().of(s.group.rank()).count();
    require(pass.tokens == mine, "pass.tokens", pass.tokens, concat("this rank's share of the pack, ", mine));
    s.pass = pass;
    const std::size_t bytes = cut_sequence_buffers<Exec, T>(*s.plan, config, pass, nullptr).bytes;
    if (bytes > s.memory.extent(0)) {
        s.memory = {};  // give the old block back first
        s.memory = Array1<std::byte, Mem>(
            Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::sequence_parallel"), bytes);
    }
    s.buffers = cut_sequence_buffers<Exec, T>(*s.plan, config, pass, s.memory.data());
    std::size_t pieces = 0;
    for (int l = 0; l < config.num_hidden_layers; ++l) pieces = std::max(pieces, s.plan->layer(l).pieces.size());
    s.selected.resize(pass.training && !pass.recompute ? static_cast<std::size_t>(config.num_hidden_layers) : 1);
    for (auto& layer : s.selected) layer.resize(pieces);
}

template <class Exec, class T>
void SequenceParallelAttention<Exec, T>::forward(const Exec& exec, const LayerInputs<Exec, T>& inputs,
                                                 const HeadsView<T, Mem>& out) {
    const Region region("SparseAttn::sequence_parallel.forward");
    state_->forward(exec, inputs.layer, {{inputs.heads.query, inputs.heads.key, inputs.heads.value}}, {{out, {}, {}}});
}

template <class Exec, class T>
void SequenceParallelAttention<Exec, T>::backward(const Exec& exec, const LayerInputs<Exec, T>& inputs,
                                                  const HeadsView<const T, Mem>&, const HeadsView<const T, Mem>& dout,
                                                  const AttentionGradients<T, Mem>& gradients) {
    const Region region("SparseAttn::sequence_parallel.backward");
    state_->backward(exec, inputs.layer, {{dout, {}, {}}}, {{gradients.query, gradients.key, gradients.value}});
}

template <class Exec, class T>
AttentionBytes SequenceParallelAttention<Exec, T>::bytes(const ModelConfig& config, const PassShape& pass) const {
    const State& s = *state_;
    require(s.plan != nullptr, "pack", "not set", "set by begin_pack");
    return sequence_bytes<Exec, T>(*s.plan, config, pass);
}

template <class Exec, class T>
AttentionBytes SequenceParallelAttention<Exec, T>::bytes_of(const Exec& exec, const ModelConfig& config,
                                                            const PassShape& pass, int ranks,
                                                            const SequenceParallelTask& task,
                                                            const SequenceParallelOptions& options) {
    const std::int64_t tokens = pass.tokens * ranks;
    const std::vector<std::int32_t> offsets{0, static_cast<std::int32_t>(tokens)};
    const SequencePlan<Exec> plan(exec, config, {tokens, ranks}, 0, offsets, task, options);
    return sequence_bytes<Exec, T>(plan, config, pass);
}

template <class Exec, class T>
std::int64_t SequenceParallelAttention<Exec, T>::allocated() const {
    const State& s = *state_;
    std::int64_t sum = static_cast<std::int64_t>(s.memory.extent(0) + s.workspace.capacity());
    for (const auto* exchange : {&s.gather[0], &s.gather[1], &s.back, &s.halo, &s.own}) sum += exchange->allocated();
    return sum;
}

template <class Exec, class T>
std::vector<float> SequenceParallelAttention<Exec, T>::gate_gradients() {
    State& s = *state_;
    require(s.plan != nullptr && s.plan->gated(), "pack", "not gated", "set by begin_pack with gates");
    const auto mine = to_host(s.planner, s.dgate);
    std::vector<float> all(
        static_cast<std::size_t>(s.config.num_hidden_layers) * static_cast<std::size_t>(s.config.num_attention_heads),
        0.0F);
    const std::vector<int>& heads = s.plan->gate_heads();
    for (std::size_t i = 0; i < heads.size(); ++i) all[static_cast<std::size_t>(heads[i])] = mine[i];
    // One rank has a number, the others 0: no rounding.
    s.group.all_reduce_sum(all.data(), static_cast<std::int64_t>(all.size()));
    return all;
}

template <class Exec, class T>
std::vector<double> SequenceParallelAttention<Exec, T>::visited_blocks() const {
    require(state_->plan != nullptr, "pack", "not set", "set by begin_pack");
    std::vector<double> all = state_->visited;
    state_->group.all_reduce_sum(all.data(), static_cast<std::int64_t>(all.size()));  // one rank has each number
    return all;
}

template <class Exec, class T>
std::vector<std::vector<int>> SequenceParallelAttention<Exec, T>::placement(int layer) const {
    require(state_->plan != nullptr, "pack", "not set", "set by begin_pack");
    return state_->plan->layer(layer).placement;
}

template <class Exec, class T>
std::vector<int> SequenceParallelAttention<Exec, T>::halo_heads(int layer) const {
    require(state_->plan != nullptr, "pack", "not set", "set by begin_pack");
    return state_->plan->layer(layer).halo.queries;
}

template <class Exec, class T>
std::vector<PieceLayout> SequenceParallelAttention<Exec, T>::layouts(int layer) const {
    const State& s = *state_;
    require(s.plan != nullptr, "pack", "not set", "set by begin_pack");
    std::vector<PieceLayout> layouts;
    const auto& pieces = s.plan->layer(layer).pieces;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        const HeadsPlan<Mem>& heads = pieces[i].heads;
        if (heads.heads.empty()) continue;
        const BlockLayout<Mem>& lists = (heads.known ? *heads.known : s.chosen_layout(layer, i)).lists;
        layouts.push_back({heads.heads.queries, to_host(s.planner, lists.head_list), copy_lists(s.planner, lists)});
    }
    return layouts;
}

template <class Exec, class T>
ExchangedBytes SequenceParallelAttention<Exec, T>::exchanged() const {
    const State& s = *state_;
    return {s.gather[0].bytes_sent() + s.gather[1].bytes_sent() + s.back.bytes_sent(), s.halo.bytes_sent()};
}

template <class Exec, class T>
std::string SequenceParallelAttention<Exec, T>::describe() const {
    return describe_mpi_path<Exec>(state_->options.gpu_aware);
}

template class SequenceParallelAttention<Kokkos::DefaultExecutionSpace, float>;
template class SequenceParallelAttention<Kokkos::DefaultExecutionSpace, bf16>;
template class SequenceParallelAttention<Kokkos::DefaultExecutionSpace, double>;

}  // namespace sparseattn
