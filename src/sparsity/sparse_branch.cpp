#include "sparseattn/sparsity/sparse_branch.hpp"

#include "sparseattn/core/error.hpp"
#include "sparseattn/select/model_selector.hpp"

namespace sparseattn {
namespace {

// "name:...,key=...": whether the text sets the option itself.
bool names_option(const std::string& text, const std::string& key) {
    return text.find(":" + key + "=") != std::string::npos || text.find("," + key + "=") != std::string::npos;
}

void check_causal(const SelectorOptions& method) {
    std::visit(
        [](const auto& options) {
            if constexpr (requires { options.causal; }) require(options.causal, "causal", "false", "true");
        },
        method);
}

}  // namespace

SparseBranch make_sparse_branch(const SparsityOptions& options, const ModelConfig& model, int block) {
    const std::string& text = options.sparse_branch;
    SparseBranch branch;
    if (text == "streaming") {
        branch.mode = HeadMode::stream(options.sink, options.local, options.granularity);
        return branch;
    }
    try {
        const ModelSelector method(text);
        require(method.name() != "full", "method", "full", "one that leaves something out");
        for (SelectorOptions layer : method.layers(model.num_hidden_layers, model.num_attention_heads)) {
            check_causal(layer);
            int& own = std::visit([](auto& some) -> int& { return some.block; }, layer);
            require(own == block || !names_option(text, "block"), "block", own, concat(block, ", attention.block"));
            own = block;
            validate(layer);
            branch.layers.push_back(std::move(layer));
        }
    } catch (const InvalidArgument& error) {
        throw InvalidArgument(concat("sparse_branch is '", text, "': ", error.what()));
    }
    if (const auto* streaming = std::get_if<StreamingOptions>(&branch.layers.front())) {
        branch.mode =
            HeadMode::stream(streaming->sink, streaming->local, streaming->granularity, streaming->dense_tail);
        branch.layers.clear();  // the same in every layer, and no look at queries and keys
    }
    return branch;
}

}  // namespace sparseattn
