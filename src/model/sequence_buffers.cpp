#include "sparseattn/model/detail/sequence_buffers.hpp"

#include <algorithm>
#include <type_traits>

#include "sparseattn/model/block_attention.hpp"

namespace sparseattn::detail {
namespace {

template <class T, class Mem>
SavedExchange<T, Mem> cut_exchange(Cutter<Mem>& cut, const LayerExchange<Mem>& layer, std::int64_t d, bool gated) {
    SavedExchange<T, Mem> saved;
    for (const ExchangedHeads<Mem>& piece : layer.pieces) {
        const std::int64_t tokens = piece.inputs.target_rows, queries = piece.results.target_heads;
        saved.pieces.emplace_back();
        SavedPiece<T, Mem>& kept = saved.pieces.back();
        kept.inputs = cut.template take<T>(tokens, piece.inputs.target_heads * d);
        if (!gated) kept.out = cut.template take<T>(tokens, queries * d);
        kept.branches = cut_branches<T, Mem>(cut, tokens, queries, d, gated);
    }
    const HaloHeads<Mem>& halo = layer.halo;
    saved.halo.queries = cut.template take<T>(halo.own.target_rows, halo.own.target_heads * d);
    saved.halo.keys = cut.template take<T>(halo.keys.target_rows, halo.keys.target_heads * d);
    saved.halo.out = cut.template take<T>(halo.own.target_rows, halo.own.target_heads * d);
    for (const HeadsPlan<Mem>& call : halo.calls) {
        saved.halo.branches.push_back(cut_branches<T, Mem>(
            cut, halo.own.target_rows, static_cast<std::int64_t>(call.heads.queries.size()), d, false));
    }
    return saved;
}

// Largest arrays of any layer.
template <class Exec, class T, class Mem = typename Exec::memory_space>
ExchangeScratch<T, Mem> cut_exchange_scratch(Cutter<Mem>& cut, const SequencePlan<Exec>& plan, std::int64_t layers,
                                             std::int64_t d, bool training) {
    std::int64_t results = 0, inputs = 0, halo_queries = 0, halo_keys = 0, queries = 0;
    for (int l = 0; l < layers; ++l) {
        const LayerExchange<Mem>& layer = plan.layer(l);
        for (const ExchangedHeads<Mem>& piece : layer.pieces) {
            results = std::max(results, piece.results.target_rows * piece.results.target_heads * d);
            inputs = std::max(inputs, piece.inputs.target_rows * piece.inputs.target_heads * d);
            queries = std::max<std::int64_t>(queries, piece.results.target_heads);
        }
        halo_queries = std::max(halo_queries, layer.halo.own.target_rows * layer.halo.own.target_heads * d);
        halo_keys = std::max(halo_keys, layer.halo.keys.target_rows * layer.halo.keys.target_heads * d);
    }
    ExchangeScratch<T, Mem> scratch;
    for (int i = 0; i < 2; ++i) {
        if (training || plan.gated()) scratch.results[i] = cut.template take<T>(results);
        if (training) scratch.inputs[i] = cut.template take<T>(inputs);
    }
    if (!training) return scratch;
    scratch.halo_dout = cut.template take<T>(halo_queries);
    scratch.halo_dqueries = cut.template take<T>(halo_queries);
    scratch.halo_dkeys = cut.template take<T>(halo_keys);
    if (plan.gated()) scratch.dgate = cut.template take<float>(queries);
    return scratch;
}

// Bytes of the exchanges' own buffers: what leaves, or what arrives on the way back.
template <class Exec, class T>
std::int64_t message_bytes(const SequencePlan<Exec>& plan, const ModelConfig& config) {
    std::int64_t there[2] = {0, 0}, returned = 0, halo = 0;
    const auto leaving = [&](const auto& route) { return route.bytes_out(config.head_dim, sizeof(T)); };
    for (int l = 0; l < config.num_hidden_layers; ++l) {
        const auto& layer = plan.layer(l);
        for (std::size_t i = 0; i < layer.pieces.size(); ++i) {
            const auto& piece = layer.pieces[i];
            there[i % 2] = std::max({there[i % 2], leaving(piece.inputs), leaving(piece.results)});
            returned = std::max({returned, leaving(piece.inputs), leaving(piece.results)});
        }
        halo = std::max(halo, leaving(layer.halo.keys));
    }
    return there[0] + there[1] + returned + halo;
}

// Layouts of selected heads.
template <class Exec>
std::int64_t layout_bytes(const SequencePlan<Exec>& plan, const ModelConfig& config, const PassShape& pass) {
    std::int64_t all = 0, most = 0;
    for (int l = 0; l < config.num_hidden_layers; ++l) {
        std::int64_t bytes = 0;
        for (const auto& piece : plan.layer(l).pieces) {
            if (piece.heads.known || piece.heads.heads.empty()) continue;
            bytes += selected_layout_bytes(plan.sequences(), static_cast<int>(piece.heads.heads.queries.size()),
                                           piece.heads.selector.method, pass.training);
        }
        all += bytes;
        most = std::max(most, bytes);
    }
    return pass.training && !pass.recompute ? all : most;
}

// Workspace of the largest call, of attention or of a selector.
template <class Exec, class T>
std::int64_t call_bytes(const SequencePlan<Exec>& plan, const ModelConfig& config, const PassShape& pass) {
    std::int64_t most = 0;
    const auto add = [&](const HeadBatch& heads, std::int64_t tokens, bool gated) {
        if (heads.empty()) return;
        ModelConfig part = config;
        part.num_attention_heads = static_cast<int>(heads.queries.size());
        part.num_key_value_heads = static_cast<int>(heads.kv.size());
        const PassShape call{tokens, pass.training, pass.recompute};
        most = std::max(most, BlockAttention<Exec, T>::bytes(part, call, gated).workspace);
    };
    for (int l = 0; l < config.num_hidden_layers; ++l) {
        const auto& layer = plan.layer(l);
        for (const auto& piece : layer.pieces) {
            const HeadBatch& heads = piece.heads.heads;
            add(heads, plan.shards().tokens, plan.gated());
            if constexpr (!std::is_same_v<T, double>) {  // in which nothing is selected
                if (piece.heads.known || heads.empty()) continue;
                most = std::max(most,
                                static_cast<std::int64_t>(selection_bytes<Exec, T>(
                                    plan.sequences(), static_cast<int>(heads.queries.size()),
                                    static_cast<int>(heads.kv.size()), config.head_dim, piece.heads.selector.method)));
            }
        }
        for (const auto& call : layer.halo.calls) add(call.heads, layer.halo.keys.target_rows, false);
    }
    return most;
}

}  // namespace

template <class Exec, class T>
SequenceBuffers<T, typename Exec::memory_space> cut_sequence_buffers(const SequencePlan<Exec>& plan,
                                                                     const ModelConfig& config, const PassShape& pass,
                                                                     std::byte* memory) {
    using Mem = typename Exec::memory_space;
    SequenceBuffers<T, Mem> buffers;
    const bool shared = !pass.training || pass.recompute;
    std::size_t begin = 0;
    for (int l = 0; l < config.num_hidden_layers; ++l) {
        Cutter<Mem> cut(memory ? memory + begin : nullptr);
        buffers.layers.push_back(cut_exchange<T, Mem>(cut, plan.layer(l), config.head_dim, plan.gated()));
        buffers.saved_bytes = shared ? std::max(buffers.saved_bytes, cut.used()) : begin + cut.used();
        if (!shared) begin = buffers.saved_bytes;
    }
    Cutter<Mem> cut(memory ? memory + buffers.saved_bytes : nullptr);
    buffers.scratch =
        cut_exchange_scratch<Exec, T>(cut, plan, config.num_hidden_layers, config.head_dim, pass.training);
    buffers.bytes = buffers.saved_bytes + cut.used();
    return buffers;
}

template <class Exec, class T>
AttentionBytes sequence_bytes(const SequencePlan<Exec>& plan, const ModelConfig& config, const PassShape& pass) {
    const auto buffers = cut_sequence_buffers<Exec, T>(plan, config, pass, nullptr);
    return {static_cast<std::int64_t>(buffers.saved_bytes) + layout_bytes(plan, config, pass),
            static_cast<std::int64_t>(buffers.bytes - buffers.saved_bytes) + message_bytes<Exec, T>(plan, config) +
                call_bytes<Exec, T>(plan, config, pass)};
}

#define SPARSEATTN_SEQUENCE_BUFFERS(EXEC, T)                                          \
    template SequenceBuffers<T, EXEC::memory_space> cut_sequence_buffers<EXEC, T>(    \
        const SequencePlan<EXEC>&, const ModelConfig&, const PassShape&, std::byte*); \
    template AttentionBytes sequence_bytes<EXEC, T>(const SequencePlan<EXEC>&, const ModelConfig&, const PassShape&);
SPARSEATTN_SEQUENCE_BUFFERS(Kokkos::DefaultExecutionSpace, float)
SPARSEATTN_SEQUENCE_BUFFERS(Kokkos::DefaultExecutionSpace, bf16)
SPARSEATTN_SEQUENCE_BUFFERS(Kokkos::DefaultExecutionSpace, double)

}  // namespace sparseattn::detail
