#pragma once
// Memory of a sequence-parallel pass: what its layers keep for their backward passes, and temporaries.

#include <cstddef>
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

// Cuts the arrays out of `memory`; null counts only. Layers share one set unless the backward passes come later.
template <class Exec, class T>
SequenceBuffers<T, typename Exec::memory_space> cut_sequence_buffers(const SequencePlan<Exec>& plan,
                                                                     const ModelConfig& config, const PassShape& pass,
                                                                     std::byte* memory);

// All that a pass allocates, on one rank: the arrays above, what messages take, and the largest call of attention.
template <class Exec, class T>
AttentionBytes sequence_bytes(const SequencePlan<Exec>& plan, const ModelConfig& config, const PassShape& pass);

}  // namespace sparseattn::detail
