#include "sparseattn/model/config.hpp"

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

// A key of config.json as an int or a double; `fallback` where the key is missing or null.
template <class Value>
Value number(const nlohmann::json& json, const char* key, const Value* fallback) {
    const auto found = json.find(key);
    if (found == json.end() || found->is_null()) {
        require(fallback != nullptr, key, "missing", "given");
        return *fallback;
    }
    if constexpr (std::is_same_v<Value, int>) {
        require(found->is_number_integer(), key, found->dump(), "an integer");
        const auto value = found->template get<std::int64_t>();
        require(value >= 0 && value <= std::numeric_limits<int>::max(), key, value, "in [0, 2^31)");
        return static_cast<int>(value);
    } else {
        require(found->is_number(), key, found->dump(), "a number");
        return found->template get<double>();
    }
}

bool flag(const nlohmann::json& json, const char* key, bool fallback) {
    const auto found = json.find(key);
    if (found == json.end() || found->is_null()) return fallback;
    require(found->is_boolean(), key, found->dump(), "true or false");
    return found->get<bool>();
}

// Features that change the result and are not computed here.
void check_unsupported(const nlohmann::json& json) {
    for (const char* key : {"attention_bias", "mlp_bias", "use_sliding_window"}) {
        require(!flag(json, key, false), key, "true", "false: this library does not compute it");
    }
    const auto activation = json.find("hidden_act");
    require(activation == json.end() || *activation == "silu", "hidden_act",
            activation == json.end() ? "" : activation->dump(), "\"silu\"");
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
        const auto found = json.find(key);
        if (found == json.end() || found->is_null()) continue;
        require(found->is_object(), key, found->dump(), "an object");
        for (const char* name : {"rope_type", "type"}) {
            const auto type = found->find(name);
            require(type == found->end() || *type == "default", concat(key, ".", name),
                    type == found->end() ? "" : type->dump(), "\"default\": this library does not scale positions");
        }
    }
}

}  // namespace

void ModelConfig::validate() const {
    require(vocab_size >= 1, "vocab_size", vocab_size, "at least 1");
    require(hidden_size >= 1, "hidden_size", hidden_size, "at least 1");
    require(num_hidden_layers >= 1, "num_hidden_layers", num_hidden_layers, "at least 1");
    require(num_key_value_heads >= 1, "num_key_value_heads", num_key_value_heads, "at least 1");
    require(num_attention_heads >= 1 && num_attention_heads % num_key_value_heads == 0, "num_attention_heads",
            num_attention_heads, concat("a positive multiple of num_key_value_heads = ", num_key_value_heads));
    require(head_dim >= 2 && head_dim % 2 == 0, "head_dim", head_dim, "positive and even");
    require(intermediate_size >= 1, "intermediate_size", intermediate_size, "at least 1");
    // Rows of the fused projections are counted in int.
    constexpr std::int64_t most = std::numeric_limits<int>::max();
    const std::int64_t heads = std::int64_t{num_attention_heads} + 2 * std::int64_t{num_key_value_heads};
    require(heads <= most / head_dim, "num_attention_heads", num_attention_heads,
            "such that (num_attention_heads + 2 num_key_value_heads) head_dim < 2^31");
    require(intermediate_size <= most / 2, "intermediate_size", intermediate_size, "below 2^30");
    const auto finite = [](double value) { return value - value == 0.0; };
    require(rope_theta > 1 && finite(rope_theta), "rope_theta", rope_theta, "finite and above 1");
    require(rms_norm_eps > 0 && finite(rms_norm_eps), "rms_norm_eps", rms_norm_eps, "finite and positive");
    require(initializer_range > 0 && finite(initializer_range), "initializer_range", initializer_range,
            "finite and positive");
}

nlohmann::json ModelConfig::to_json() const {
    return {{"architectures", nlohmann::json::array({qk_norm ? "Qwen3ForCausalLM" : "LlamaForCausalLM"})},
            {"model_type", qk_norm ? "qwen3" : "llama"},
            {"hidden_act", "silu"},
            {"attention_bias", false},
            {"vocab_size", vocab_size},
            {"hidden_size", hidden_size},
            {"num_hidden_layers", num_hidden_layers},
            {"num_attention_heads", num_attention_heads},
            {"num_key_value_heads", num_key_value_heads},
            {"head_dim", head_dim},
            {"intermediate_size", intermediate_size},
            {"rope_theta", rope_theta},
            {"rms_norm_eps", rms_norm_eps},
            {"initializer_range", initializer_range},
            {"tie_word_embeddings", tie_word_embeddings}};
}

ModelConfig ModelConfig::from_json(const nlohmann::json& json) {
    require(json.is_object(), "config.json", json.type_name(), "an object");
    const auto type = json.find("model_type");
    require(type != json.end() && (*type == "llama" || *type == "qwen3"), "model_type",
            type == json.end() ? "missing" : type->dump(), "\"llama\" or \"qwen3\"");
    check_unsupported(json);

    ModelConfig config;
    config.qk_norm = *type == "qwen3";
    const auto needed = [&](const char* key) { return number<int>(json, key, nullptr); };
    config.vocab_size = needed("vocab_size");
    config.hidden_size = needed("hidden_size");
    config.num_hidden_layers = needed("num_hidden_layers");
    config.num_attention_heads = needed("num_attention_heads");
    config.intermediate_size = needed("intermediate_size");
    config.num_key_value_heads = number(json, "num_key_value_heads", &config.num_attention_heads);
    const int even_share = config.num_attention_heads > 0 ? config.hidden_size / config.num_attention_heads : 0;
    const int head_dim = config.qk_norm ? 128 : even_share;
    config.head_dim = number(json, "head_dim", &head_dim);
    const double theta = 10000.0, eps = 1e-6, range = 0.02;
    const auto rope = json.find("rope_parameters");  // where newer files keep it
    const bool nested = rope != json.end() && rope->is_object() && rope->contains("rope_theta");
    config.rope_theta = number(nested ? *rope : json, "rope_theta", &theta);
    config.rms_norm_eps = number(json, "rms_norm_eps", &eps);
    config.initializer_range = number(json, "initializer_range", &range);
    config.tie_word_embeddings = flag(json, "tie_word_embeddings", false);
    config.validate();
    return config;
}

}  // namespace sparseattn
