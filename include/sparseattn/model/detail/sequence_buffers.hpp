#pragma once
// Memory of a sequence-parallel pass: what its layers keep for their backward passes, and temporaries.

#include <algorithm>
#include <vector>

#include "sparseattn/model/detail/attention_call.hpp"
#include "sparseattn/model/detail/sequence_plan.hpp"

namespace sparseattn::detail {

// Of heads that are computed on whole sequences.
template <class T, class Mem>
struct SavedPiece {
    Span2<T, Mem> inputs;  // [tokens, (queries + 2 kv) * head_dim]: queries, keys, values
    Span2<T, Mem> out;     // [tokens, queries * head_dim]; not of gated heads
    SavedBranches<T, Mem> branches;
};
// Of heads that stay with their tokens.
template <class T, class Mem>
struct SavedHalo {
    Span2<T, Mem> queries;                        // [own tokens, queries * head_dim]
    Span2<T, Mem> keys;                           // [halo + own tokens, 2 kv * head_dim]: keys, values
    Span2<T, Mem> out;                            // [own tokens, queries * head_dim]
    std::vector<SavedBranches<T, Mem>> branches;  // of each call
};
template <class T, class Mem>
struct SavedExchange {
    std::vector<SavedPiece<T, Mem>> pieces;
    SavedHalo<T, Mem> halo;
};

// Two of each that travels: one computes while the other is under way.
template <class T, class Mem>
struct ExchangeScratch {
    Span1<T, Mem> results[2];  // gated out forward, dout backward
    Span1<T, Mem> inputs[2];   // gradients of SavedPiece::inputs
    Span1<T, Mem> halo_dout, halo_dqueries, halo_dkeys;
    Span1<float, Mem> dgate;
};

template <class T, class Mem>
struct SequenceBuffers {
    std::vector<SavedExchange<T, Mem>> layers;
    ExchangeScratch<T, Mem> scratch;
    std::size_t saved_bytes = 0;
    std::size_t bytes = 0;
};

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
template <class T, class Exec, class Mem = typename Exec::memory_space>
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

// Cuts the arrays out of `memory`; null counts only. Layers share one set unless the backward passes come later.
template <class T, class Exec, class Mem = typename Exec::memory_space>
SequenceBuffers<T, Mem> cut_sequence_buffers(const SequencePlan<Exec>& plan, const ModelConfig& config,
                                             const PassShape& pass, std::byte* memory) {
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
        cut_exchange_scratch<T, Exec>(cut, plan, config.num_hidden_layers, config.head_dim, pass.training);
    buffers.bytes = buffers.saved_bytes + cut.used();
    return buffers;
}

}  // namespace sparseattn::detail
