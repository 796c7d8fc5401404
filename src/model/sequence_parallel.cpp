#include "sparseattn/model/sequence_parallel.hpp"

#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/model/detail/sequence_calls.hpp"
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
          path(message_path<Exec>(options_.messages)),
          link(path == MessagePath::linked ? link_devices(group_, exec_) : nullptr),
          calls(config, options.attention),
          gather{{group, path, gather_tag, link}, {group, path, gather_tag + 1, link}},
          back(group, path, return_tag, link),
          halo(group, path, halo_tag, link),
          own(group, path, own_tag, link) {
        config.validate();
        require(options.pieces >= 1, "options.pieces", options.pieces, "at least 1");
    }

    Exec planner;  // where packs are planned; passes run where the decoder does
    Communicator group;
    ModelConfig config;
    SequenceParallelOptions options;
    MessagePath path;
    std::shared_ptr<DeviceLink> link;  // of all exchanges

    SequenceCalls<Exec, T> calls;
    Exchange gather[2], back, halo, own;

    // The pack's, which must have been set.
    [[nodiscard]] const SequencePlan<Exec>& plan() const {
        require(calls.plan() != nullptr, "pack", "not set", "set by begin_pack");
        return *calls.plan();
    }

    // ---- passes of a layer ----

    void forward(const Exec& exec, int layer, const HeadSet<const T, Mem>& inputs, const HeadSet<T, Mem>& results) {
        const LayerExchange<Mem>& exchange = plan().layer(layer);
        const SavedExchange<T, Mem>& saved = calls.saved(layer);
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
            calls.halo_forward(exec, layer);
            own.start_return(exec, exchange.halo.results, saved.halo.out, results);
            own.finish_return(exec);
        }
        for (std::size_t i = 0; i < pieces; ++i) {
            start(i + 1);
            gather[i % 2].finish(exec);
            const Route<Mem>& route = exchange.pieces[i].results;
            const Span2<T, Mem> out =
                plan().gated() ? rows_in(calls.scratch().results[i % 2], route, config.head_dim) : saved.pieces[i].out;
            calls.forward(exec, layer, i, out);
            if (i > 0) back.finish_return(exec);
            back.start_return(exec, route, out, results);
        }
        if (pieces > 0) back.finish_return(exec);
    }

    void backward(const Exec& exec, int layer, const HeadSet<const T, Mem>& dresults, const HeadSet<T, Mem>& dinputs) {
        const LayerExchange<Mem>& exchange = plan().layer(layer);
        const SavedExchange<T, Mem>& saved = calls.saved(layer);
        const auto& scratch = calls.scratch();
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
            calls.halo_backward(exec, layer, halo_dout, dqueries, dkeys);
            own.start_return(exec, exchange.halo.own, dqueries, dinputs);
            own.finish_return(exec);
            halo.start_return(exec, exchange.halo.keys, dkeys, dinputs);
        }
        for (std::size_t i = 0; i < pieces; ++i) {
            start(i + 1);
            gather[i % 2].finish(exec);
            const Span2<T, Mem> gradients = rows_in(scratch.inputs[i % 2], saved.pieces[i].inputs);
            calls.backward(exec, layer, i, dout(i), gradients);
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
    s.calls.end_pack();
    auto plan = std::make_unique<const SequencePlan<Exec>>(
        s.planner, s.config, TokenShards{offsets.back(), s.group.size()}, s.group.rank(), offsets, task, s.options);
    s.calls.begin_pack(s.planner, std::move(plan), task.gate);
    fence(s.planner, "SparseAttn::begin_pack");
}

template <class Exec, class T>
void SequenceParallelAttention<Exec, T>::prepare(const ModelConfig& config, const PassShape& pass) {
    State& s = *state_;
    require(config == s.config, "config", "another model's", "the operator's");
    const std::int64_t mine = s.plan().shards().of(s.group.rank()).count();
    require(pass.tokens == mine, "pass.tokens", pass.tokens, concat("this rank's share of the pack, ", mine));
    s.calls.prepare(pass);
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
    return sequence_bytes<Exec, T>(s.plan(), config, pass);
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
    std::int64_t sum = s.calls.allocated();
    for (const auto* exchange : {&s.gather[0], &s.gather[1], &s.back, &s.halo, &s.own}) sum += exchange->allocated();
    return sum;
}

template <class Exec, class T>
std::vector<float> SequenceParallelAttention<Exec, T>::gate_gradients() {
    State& s = *state_;
    require(s.calls.plan() != nullptr && s.plan().gated(), "pack", "not gated", "set by begin_pack with gates");
    const std::vector<float> mine = s.calls.gate_gradients(s.planner);
    std::vector<float> all(
        static_cast<std::size_t>(s.config.num_hidden_layers) * static_cast<std::size_t>(s.config.num_attention_heads),
        0.0F);
    const std::vector<int>& heads = s.plan().gate_heads();
    for (std::size_t i = 0; i < heads.size(); ++i) all[static_cast<std::size_t>(heads[i])] = mine[i];
    // One rank has a number, the others 0: no rounding.
    s.group.all_reduce_sum(all.data(), static_cast<std::int64_t>(all.size()));
    return all;
}

template <class Exec, class T>
std::vector<double> SequenceParallelAttention<Exec, T>::visited_blocks() const {
    const State& s = *state_;
    (void)s.plan();
    std::vector<double> all = s.calls.visited_blocks(s.planner);
    s.group.all_reduce_sum(all.data(), static_cast<std::int64_t>(all.size()));  // one rank has each number
    return all;
}

template <class Exec, class T>
std::vector<std::vector<int>> SequenceParallelAttention<Exec, T>::placement(int layer) const {
    return state_->plan().layer(layer).placement;
}

template <class Exec, class T>
std::vector<int> SequenceParallelAttention<Exec, T>::halo_heads(int layer) const {
    return state_->plan().layer(layer).halo.queries;
}

template <class Exec, class T>
std::vector<PieceLayout> SequenceParallelAttention<Exec, T>::layouts(int layer) const {
    const State& s = *state_;
    std::vector<PieceLayout> layouts;
    const auto& pieces = s.plan().layer(layer).pieces;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        const HeadsPlan<Mem>& heads = pieces[i].heads;
        if (heads.heads.empty()) continue;
        const BlockLayout<Mem>& lists = s.calls.layout(layer, i);
        layouts.push_back({heads.heads.queries, lists.host_head_list, copy_lists(s.planner, lists)});
    }
    return layouts;
}

template <class Exec, class T>
ExchangedBytes SequenceParallelAttention<Exec, T>::exchanged() const {
    const State& s = *state_;
    return {s.gather[0].bytes_sent() + s.gather[1].bytes_sent() + s.back.bytes_sent(), s.halo.bytes_sent()};
}

template class SequenceParallelAttention<Kokkos::DefaultExecutionSpace, float>;
template class SequenceParallelAttention<Kokkos::DefaultExecutionSpace, bf16>;
template class SequenceParallelAttention<Kokkos::DefaultExecutionSpace, double>;

}  // namespace sparseattn
