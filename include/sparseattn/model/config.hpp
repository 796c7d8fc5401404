#pragma once
/// \file
/// Shape of a LLaMA-family decoder, under the key names of Hugging Face's config.json.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

namespace sparseattn {

/// Size and constants of a model. Queries have num_attention_heads heads, keys and values num_key_value_heads (grouped
/// query attention); `qk_norm` normalises each query and key head before the rotary embedding, as Qwen3 does.
struct ModelConfig {
    int vocab_size = 0;
    int hidden_size = 0;
    int num_hidden_layers = 0;
    int num_attention_heads = 0;
    int num_key_value_heads = 0;
    int head_dim = 0;
    int intermediate_size = 0;
    double rope_theta = 10000.0;
    double rms_norm_eps = 1e-5;
    double initializer_range = 0.02;
    bool tie_word_embeddings = false;
    bool qk_norm = false;

    /// Throws InvalidArgument naming the first key that is out of range, what it was and what it must be.
    void validate() const;

    /// Query features per token, key/value features per token, and all three together.
    [[nodiscard]] int query_size() const { return num_attention_heads * head_dim; }
    [[nodiscard]] int key_value_size() const { return num_key_value_heads * head_dim; }
    [[nodiscard]] int qkv_size() const { return query_size() + 2 * key_value_size(); }

    /// The config.json of this model: model_type "llama", or "qwen3" with qk_norm.
    [[nodiscard]] nlohmann::json to_json() const;
    /// Reads a config.json of model_type "llama" or "qwen3", filling what the file leaves out with Hugging Face's
    /// defaults; keys without meaning here (dtype, token ids, ...) are passed over. The result is validated.
    /// Throws InvalidArgument for a missing or mistyped key, and for a feature this library does not compute (biases,
    /// rope scaling, another activation, sliding windows).
    [[nodiscard]] static ModelConfig from_json(const nlohmann::json& json);

    friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

}  // namespace sparseattn
