#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "sparseattn/core/error.hpp"
#include "sparseattn/model/parameter_table.hpp"

namespace sparseattn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

ModelConfig small() {
    ModelConfig config;
    config.vocab_size = 259;
    config.hidden_size = 32;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = 16;
    config.intermediate_size = 48;
    return config;
}

// The message names the key, what it was and what it must be.
template <class Value>
void expect_refused(Value ModelConfig::*key, Value value, const char* name, const char* was, const char* must) {
    ModelConfig config = small();
    config.*key = value;
    EXPECT_THAT([&] { config.validate(); },
                ThrowsMessage<InvalidArgument>(AllOf(HasSubstr(name), HasSubstr(was), HasSubstr(must))));
}

TEST(ModelConfig, ValidationNamesTheKey) {
    EXPECT_NO_THROW(small().validate());
    expect_refused(&ModelConfig::vocab_size, 0, "vocab_size", "0", "at least 1");
    expect_refused(&ModelConfig::hidden_size, -3, "hidden_size", "-3", "at least 1");
    expect_refused(&ModelConfig::num_hidden_layers, 0, "num_hidden_layers", "0", "at least 1");
    expect_refused(&ModelConfig::num_key_value_heads, 0, "num_key_value_heads", "0", "at least 1");
    expect_refused(&ModelConfig::num_attention_heads, 3, "num_attention_heads", "3",
                   "multiple of num_key_value_heads = 2");
    expect_refused(&ModelConfig::num_attention_heads, 0, "num_attention_heads", "0", "positive multiple");
    expect_refused(&ModelConfig::head_dim, 15, "head_dim", "15", "even");
    expect_refused(&ModelConfig::head_dim, 1 << 30, "num_attention_heads", "4", "2^31");
    expect_refused(&ModelConfig::intermediate_size, 0, "intermediate_size", "0", "at least 1");
    expect_refused(&ModelConfig::rope_theta, 0.0, "rope_theta", "0", "above 1");
    expect_refused(&ModelConfig::rms_norm_eps, -1.0, "rms_norm_eps", "-1", "positive");
    expect_refused(&ModelConfig::initializer_range, std::nan(""), "initializer_range", "nan", "finite");
}

TEST(ModelConfig, JsonRoundTrip) {
    for (const bool qk_norm : {false, true}) {
        ModelConfig config = small();
        config.qk_norm = config.tie_word_embeddings = qk_norm;
        config.rope_theta = 1e6;
        config.rms_norm_eps = 1e-6;
        const auto text = config.to_json().dump();
        EXPECT_EQ(ModelConfig::from_json(nlohmann::json::parse(text)), config) << text;
    }
    EXPECT_EQ(small().to_json().at("model_type"), "llama");
}

TEST(ModelConfig, FillsHuggingFaceDefaults) {
    const auto json = nlohmann::json::parse(R"({"model_type": "llama", "vocab_size": 100, "hidden_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 80, "torch_dtype": "bfloat16",
        "rope_scaling": null, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})");
    const auto config = ModelConfig::from_json(json);
    EXPECT_EQ(config.num_key_value_heads, 4);
    EXPECT_EQ(config.head_dim, 16);
    EXPECT_EQ(config.rope_theta, 5e5);
    EXPECT_EQ(config.rms_norm_eps, 1e-6);
    EXPECT_FALSE(config.tie_word_embeddings);
}

TEST(ModelConfig, RefusesFilesItCannotCompute) {
    const auto expect_message = [](const char* key, const nlohmann::json& value, const char* part) {
        auto json = small().to_json();
        if (value.is_discarded()) {
            json.erase(key);
        } else {
            json[key] = value;
        }
        EXPECT_THAT([&] { (void)ModelConfig::from_json(json); },
                    ThrowsMessage<InvalidArgument>(AllOf(HasSubstr(key), HasSubstr(part))));
    };
    const nlohmann::json missing(nlohmann::json::value_t::discarded);
    expect_message("model_type", "gpt2", "llama");
    expect_message("model_type", missing, "missing");
    expect_message("vocab_size", missing, "missing");
    expect_message("vocab_size", "259", "an integer");
    expect_message("vocab_size", 1.5, "1.5");
    expect_message("vocab_size", std::int64_t{1} << 40, "2^31");
    expect_message("vocab_size", -1, "-1");
    expect_message("rope_theta", true, "a number");
    expect_message("tie_word_embeddings", 1, "true or false");
    expect_message("attention_bias", true, "does not compute");
    expect_message("hidden_act", "gelu", "silu");
    expect_message("rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}, "llama3");
    expect_message("rope_scaling", "linear", "an object");
    EXPECT_THROW((void)ModelConfig::from_json(nlohmann::json::array()), InvalidArgument);
}

TEST(ParameterTable, NamesShapesAndOffsets) {
    ModelConfig config = small();
    config.qk_norm = true;
    const ParameterTable table(config);
    const auto& first = table.parameters().front();
    EXPECT_EQ(first.name, "model.embed_tokens.weight");
    EXPECT_THAT(first.shape, testing::ElementsAre(259, 32));
    EXPECT_THAT(table.find("model.layers.1.self_attn.k_proj.weight").shape, testing::ElementsAre(32, 32));
    EXPECT_THAT(table.find("model.layers.0.self_attn.q_proj.weight").shape, testing::ElementsAre(64, 32));
    EXPECT_THAT(table.find("model.layers.0.self_attn.o_proj.weight").shape, testing::ElementsAre(32, 64));
    EXPECT_THAT(table.find("model.layers.0.self_attn.q_norm.weight").shape, testing::ElementsAre(16));
    EXPECT_THAT(table.find("model.layers.0.mlp.gate_proj.weight").shape, testing::ElementsAre(48, 32));
    EXPECT_THAT(table.find("model.layers.0.mlp.down_proj.weight").shape, testing::ElementsAre(32, 48));
    EXPECT_THAT(table.find("lm_head.weight").shape, testing::ElementsAre(259, 32));
    std::int64_t offset = 0;
    for (const auto& info : table.parameters()) {
        EXPECT_EQ(info.offset, offset) << info.name;
        std::int64_t count = 1;
        for (const auto extent : info.shape) count *= extent;
        EXPECT_EQ(info.count, count) << info.name;
        EXPECT_EQ(info.decay, info.name.find("norm") == std::string::npos) << info.name;
        offset += count;
    }
    EXPECT_EQ(table.total(), offset);
    EXPECT_EQ(table.parameters().size(), 3U + 2 * 11);
    // What the fused products rely on.
    const auto after = [&](const char* a, const char* b) {
        const auto& info = table.find(std::string("model.layers.0.") + a + "_proj.weight");
        EXPECT_EQ(info.offset + info.count, table.find(std::string("model.layers.0.") + b + "_proj.weight").offset);
    };
    after("self_attn.q", "self_attn.k");
    after("self_attn.k", "self_attn.v");
    after("mlp.gate", "mlp.up");
}

TEST(ParameterTable, TiedHeadAndUnknownNames) {
    ModelConfig config = small();
    const auto untied = ParameterTable(config).total();
    config.tie_word_embeddings = true;
    const ParameterTable table(config);
    EXPECT_EQ(untied - table.total(), 259 * 32);
    EXPECT_FALSE(table.contains("lm_head.weight"));
    EXPECT_TRUE(table.contains("model.norm.weight"));
    EXPECT_THAT([&] { (void)table.find("model.bogus"); }, ThrowsMessage<InvalidArgument>(HasSubstr("model.bogus")));
}

}  // namespace
}  // namespace sparseattn
