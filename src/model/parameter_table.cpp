#include "sparseattn/model/parameter_table.hpp"

#include <utility>

#include "sparseattn/core/error.hpp"

namespace sparseattn {

ParameterTable::ParameterTable(const ModelConfig& config) {
    config.validate();
    const std::int64_t hidden = config.hidden_size, inner = config.intermediate_size, head_dim = config.head_dim;
    const std::int64_t query = config.query_size(), key_value = config.key_value_size();
    add("model.embed_tokens.weight", {config.vocab_size, hidden}, true);
    for (int l = 0; l < config.num_hidden_layers; ++l) {
        const std::string layer = concat("model.layers.", l, ".");
        add(layer + "input_layernorm.weight", {hidden}, false);
        add(layer + "self_attn.q_proj.weight", {query, hidden}, true);
        add(layer + "self_attn.k_proj.weight", {key_value, hidden}, true);
        add(layer + "self_attn.v_proj.weight", {key_value, hidden}, true);
        if (config.qk_norm) {
            add(layer + "self_attn.q_norm.weight", {head_dim}, false);
            add(layer + "self_attn.k_norm.weight", {head_dim}, false);
        }
        add(layer + "self_attn.o_proj.weight", {hidden, query}, true);
        add(layer + "post_attention_layernorm.weight", {hidden}, false);
        add(layer + "mlp.gate_proj.weight", {inner, hidden}, true);
        add(layer + "mlp.up_proj.weight", {inner, hidden}, true);
        add(layer + "mlp.down_proj.weight", {hidden, inner}, true);
    }
    add("model.norm.weight", {hidden}, false);
    if (!config.tie_word_embeddings) add("lm_head.weight", {config.vocab_size, hidden}, true);
}

void ParameterTable::add(std::string name, std::vector<std::int64_t> shape, bool decay) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    index_.emplace(name, parameters_.size());
    parameters_.push_back({std::move(name), std::move(shape), total_, count, decay});
    total_ += count;
}

bool ParameterTable::contains(std::string_view name) const {
    return index_.count(std::string(name)) > 0;
}

const ParameterInfo& ParameterTable::find(std::string_view name) const {
    const auto found = index_.find(std::string(name));
    require(found != index_.end(), "parameter name", name, "one of the model's tensors");
    return parameters_[found->second];
}

}  // namespace sparseattn
