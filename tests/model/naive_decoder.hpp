#pragma once
// The decoder's loss written down directly from its definition, token by token in double; dense causal attention.

#include <cmath>
#include <string>
#include <vector>

#include "sparseattn/model/parameter_table.hpp"

namespace sparseattn::test {

class NaiveDecoder {
  public:
    NaiveDecoder(const ModelConfig& config, const std::vector<double>& parameters)
        : config_(config), table_(config), parameters_(parameters) {}

    // Sum of the losses of one document.
    double loss(const std::vector<int>& tokens, const std::vector<int>& labels) const {
        std::vector<Vector> x;
        for (const int token : tokens) {
            const double* row = weight("model.embed_tokens") + static_cast<std::size_t>(token) * config_.hidden_size;
            x.emplace_back(row, row + config_.hidden_size);
        }
        for (int l = 0; l < config_.num_hidden_layers; ++l) layer("model.layers." + std::to_string(l) + ".", x);
        double sum = 0;
        for (std::size_t t = 0; t < x.size(); ++t) {
            if (labels[t] < 0) continue;
            const Vector logits = product(config_.tie_word_embeddings ? "model.embed_tokens" : "lm_head",
                                          norm("model.norm", x[t]), config_.vocab_size);
            double total = 0;
            for (const double v : logits) total += std::exp(v);
            sum += std::log(total) - logits[labels[t]];
        }
        return sum;
    }

  private:
    using Vector = std::vector<double>;

    const double* weight(const std::string& name) const {
        return parameters_.data() + table_.find(name + ".weight").offset;
    }
    Vector product(const std::string& name, const Vector& x, int outputs) const {
        const double* w = weight(name);
        Vector y(outputs, 0.0);
        for (int o = 0; o < outputs; ++o) {
            for (std::size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
        }
        return y;
    }
    Vector norm(const std::string& name, Vector x) const {
        const double* w = weight(name);
        double squares = 0;
        for (const double v : x) squares += v * v;
        const double r = std::sqrt(squares / static_cast<double>(x.size()) + config_.rms_norm_eps);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] *= w[i] / r;
        return x;
    }
    // Heads of q or k at a position: optional norm, then rotation of the pairs (i, i + d/2).
    std::vector<Vector> heads(const Vector& rows, const std::string& norm_name, int position) const {
        const int d = config_.head_dim;
        std::vector<Vector> result;
        for (std::size_t h = 0; h * d < rows.size(); ++h) {
            Vector head(&rows[h * d], &rows[h * d] + d);
            if (config_.qk_norm) head = norm(norm_name, head);
            for (int i = 0; i < d / 2; ++i) {
                const double angle = position * std::pow(config_.rope_theta, -2.0 * i / d);
                const double a = head[i], b = head[i + d / 2];
                head[i] = a * std::cos(angle) - b * std::sin(angle);
                head[i + d / 2] = b * std::cos(angle) + a * std::sin(angle);
            }
            result.push_back(head);
        }
        return result;
    }
    Vector attend(const std::vector<Vector>& query, const std::vector<std::vector<Vector>>& keys,
                  const std::vector<Vector>& values) const {
        const int d = config_.head_dim, group = config_.num_attention_heads / config_.num_key_value_heads;
        Vector out;
        for (int h = 0; h < config_.num_attention_heads; ++h) {
            Vector mixed(d, 0.0);
            double total = 0;
            for (std::size_t j = 0; j < keys.size(); ++j) {
                double score = 0;
                for (int i = 0; i < d; ++i) score += query[h][i] * keys[j][h / group][i];
                const double p = std::exp(score / std::sqrt(d));
                total += p;
                for (int i = 0; i < d; ++i) mixed[i] += p * values[j][(h / group) * d + i];
            }
            for (const double v : mixed) out.push_back(v / total);
        }
        return out;
    }
    void layer(const std::string& prefix, std::vector<Vector>& x) const {
        std::vector<std::vector<Vector>> keys;
        std::vector<Vector> values;
        const std::string self = prefix + "self_attn.";
        for (std::size_t t = 0; t < x.size(); ++t) {
            const Vector in = norm(prefix + "input_layernorm", x[t]);
            const int position = static_cast<int>(t);
            keys.push_back(heads(product(self + "k_proj", in, config_.key_value_size()), self + "k_norm", position));
            values.push_back(product(self + "v_proj", in, config_.key_value_size()));
            const auto query = heads(product(self + "q_proj", in, config_.query_size()), self + "q_norm", position);
            add(x[t], product(self + "o_proj", attend(query, keys, values), config_.hidden_size));
        }
        for (Vector& row : x) {
            const Vector in = norm(prefix + "post_attention_layernorm", row);
            Vector gate = product(prefix + "mlp.gate_proj", in, config_.intermediate_size);
            const Vector up = product(prefix + "mlp.up_proj", in, config_.intermediate_size);
            for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
            add(row, product(prefix + "mlp.down_proj", gate, config_.hidden_size));
        }
    }
    static void add(Vector& x, const Vector& y) {
        for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
    }

    ModelConfig config_;
    ParameterTable table_;
    const std::vector<double>& parameters_;
};

}  // namespace sparseattn::test
