#pragma once
// The scalar options of every method by name: what decks and command lines can set.

#include "sparseattn/select/selector.hpp"

namespace sparseattn::detail {

// Calls visit("key", member) for each; Options may be const.
template <class Options, class Visit>
void for_each_option(Options& options, const Visit& visit) {
    using Plain = std::remove_const_t<Options>;
    visit("block", options.block);
    if constexpr (std::is_same_v<Plain, FullOptions>) {
        visit("causal", options.causal);
    } else if constexpr (std::is_same_v<Plain, StreamingOptions>) {
        visit("sink", options.sink);
        visit("local", options.local);
        visit("granularity", options.granularity);
        visit("dense_tail", options.dense_tail);
        visit("causal", options.causal);
    } else if constexpr (std::is_same_v<Plain, XAttentionOptions>) {
        visit("stride", options.stride);
        visit("threshold", options.threshold);
        visit("norm", options.norm);
        visit("keep_sink", options.keep_sink);
        visit("keep_recent", options.keep_recent);
        visit("causal", options.causal);
        visit("mode", options.mode);
        visit("chunk_rows", options.chunk_rows);
    } else if constexpr (std::is_same_v<Plain, FlexPrefillOptions>) {
        visit("gamma", options.gamma);
        visit("tau", options.tau);
        visit("min_budget", options.min_budget);
        visit("max_budget", options.max_budget);
        visit("gqa_interleave", options.gqa_interleave);
    } else {
        static_assert(std::is_same_v<Plain, MInferenceOptions>);
        visit("size_ratio", options.size_ratio);
        visit("adaptive_budget", options.adaptive_budget);
        visit("block_sparse_blocks", options.block_sparse_blocks);
        visit("tri_shape_tail", options.tri_shape_tail);
    }
}

}  // namespace sparseattn::detail
