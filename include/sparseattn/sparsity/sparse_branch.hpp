#pragma once
/// \file
/// What a head does as far as its gate is closed.

#include <vector>

#include "sparseattn/model/config.hpp"
#include "sparseattn/select/selector.hpp"
#include "sparseattn/sparsity/sparsity_options.hpp"

namespace sparseattn {

/// The attention of closed gates: a fixed mode of all heads, or what a selector of each layer keeps of its queries and
/// keys (constant for the gradient).
struct SparseBranch {
    HeadMode mode;                        // without selectors
    std::vector<SelectorOptions> layers;  // one per layer, or empty
    [[nodiscard]] bool selects() const { return !layers.empty(); }
};

/// The branch that `options.sparse_branch` names, for layouts of `block` tokens: "streaming" with the options' window,
/// "streaming:KEY=VALUE,..." with its own, or a method as ModelSelector reads it, on blocks of `block` tokens.
/// Throws InvalidArgument beginning with "sparse_branch is" for text that is wrong, names full attention, another block
/// or attention that is not causal; FileError for a table that is wrong.
[[nodiscard]] SparseBranch make_sparse_branch(const SparsityOptions& options, const ModelConfig& model, int block);

}  // namespace sparseattn
