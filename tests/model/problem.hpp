#pragma once
// A random pack with its attention layouts, and random parameters, for tests of the whole decoder.

#include <vector>

#include "sparseattn/layout/builders.hpp"
#include "sparseattn/model/decoder.hpp"
#include "support/arrays.hpp"

namespace sparseattn::test {

inline ModelConfig tiny_config(bool tied, bool qk_norm, int head_dim = 6) {
    ModelConfig config;
    config.vocab_size = 23;
    config.hidden_size = 20;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = head_dim;
    config.intermediate_size = 27;
    config.rope_theta = 100.0;
    config.tie_word_embeddings = tied;
    config.qk_norm = qk_norm;
    return config;
}

// Positions count inside each document; labels are random with some -1 (the first token among them).
inline Batch<Mem> random_batch(const ModelConfig& config, const std::vector<std::int32_t>& offsets,
                               std::uint64_t seed) {
    Batch<Mem> batch;
    batch.sequences = Sequences<Mem>(offsets);
    const int tokens = offsets.back();
    std::vector<std::int32_t> positions, labels = random_ints(tokens, seed + 1, config.vocab_size);
    for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
        for (int t = offsets[s]; t < offsets[s + 1]; ++t) {
            positions.push_back(t - offsets[s]);
            if (t == offsets[s] || t % 7 == 3) labels[t] = -1;
        }
    }
    for (const auto label : labels) batch.label_count += label >= 0 ? 1 : 0;
    const Exec exec;
    batch.tokens = detail::to_device(exec, "tokens", random_ints(tokens, seed, config.vocab_size));
    batch.positions = detail::to_device(exec, "positions", positions);
    batch.labels = detail::to_device(exec, "labels", labels);
    return batch;
}

// Dense and streaming layouts over the sequences of a batch, with gates that include 0 and 1. Gates are multiples of
// 1/16, so that small steps from them are exact in float.
struct Layouts {
    Layouts(const ModelConfig& config, const Sequences<Mem>& sequences, int sink = 3, int local = 5)
        : full(build_layout(Exec(), sequences, 64, true,
                            std::vector<HeadMode>(config.num_attention_heads, HeadMode::dense()))),
          full_transposed(transpose(Exec(), sequences, full)),
          sparse(build_layout(Exec(), sequences, 64, true,
                              std::vector<HeadMode>(config.num_attention_heads, HeadMode::stream(sink, local)))),
          sparse_transposed(transpose(Exec(), sequences, sparse)),
          layers(config.num_hidden_layers),
          gates(static_cast<std::size_t>(config.num_hidden_layers) * config.num_attention_heads) {
        for (std::size_t i = 0; i < gates.size(); ++i) gates[i] = static_cast<float>((i * 5 + 3) % 17) / 16.0F;
        gates[0] = 1.0F;
        gates[1] = 0.0F;
    }
    Layouts(const Layouts&) = delete;
    Layouts& operator=(const Layouts&) = delete;

    AttentionPlan<Mem> plain() const { return {{full, full_transposed}, nullptr, {}, {}}; }
    AttentionPlan<Mem> gated(const Device<float>& gate) const {
        return {{full, full_transposed}, &sparse_pair, gate.matrix(layers), {}};
    }

    BlockLayout<Mem> full;
    TransposedLayout<Mem> full_transposed;
    BlockLayout<Mem> sparse;
    TransposedLayout<Mem> sparse_transposed;
    std::size_t layers;
    std::vector<float> gates;
    LayoutPair<Mem> sparse_pair{sparse, sparse_transposed};
};

// Larger than fresh weights, so that every part of the model matters.
inline std::vector<double> random_parameters(const ModelConfig& config, std::uint64_t seed) {
    const ParameterTable table(config);
    auto values = random<double>(static_cast<std::size_t>(table.total()), seed, 0.25);
    for (const auto& info : table.parameters()) {
        if (info.decay) continue;
        for (std::int64_t i = 0; i < info.count; ++i) values[info.offset + i] += 1.0;
    }
    return values;
}

template <class T>
struct Gradients {
    double loss = 0;
    std::vector<accumulate_t<T>> parameters;
    std::vector<float> gate;
};

template <class T>
Gradients<T> run_gradients(Decoder<Exec, T>& decoder, const Batch<Mem>& batch, const AttentionPlan<Mem>& plan,
                           const std::vector<T>& parameters, accumulate_t<T> scale, const TrainingMemory& memory) {
    const Device<T> device(parameters);
    const Device<accumulate_t<T>> gradients(parameters.size());
    const Device<float> dgate(plan.gate.extent(0) * plan.gate.extent(1));
    const Span2<float, Mem> dgate_matrix(dgate.array.data(), plan.gate.extent(0), plan.gate.extent(1));
    Gradients<T> result;
    result.loss = decoder.loss_and_gradients(batch, plan, device.flat(), scale, gradients.flat(), dgate_matrix, memory);
    result.parameters = gradients.host();
    result.gate = dgate.host();
    return result;
}

}  // namespace sparseattn::test
