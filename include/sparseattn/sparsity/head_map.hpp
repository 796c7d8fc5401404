#pragma once
/// \file
/// One number per layer and key/value head, on the host.

#include <cstddef>
#include <vector>

namespace sparseattn {

/// [layers, heads] doubles, row-major; heads are key/value heads.
struct HeadMap {
    int layers = 0;
    int heads = 0;
    std::vector<double> values;

    HeadMap() = default;
    HeadMap(int layer_count, int head_count, double value = 0)
        : layers(layer_count), heads(head_count), values(static_cast<std::size_t>(layer_count) * head_count, value) {}

    double& operator()(int layer, int head) { return values[static_cast<std::size_t>(layer) * heads + head]; }
    double operator()(int layer, int head) const { return values[static_cast<std::size_t>(layer) * heads + head]; }
    friend bool operator==(const HeadMap&, const HeadMap&) = default;
};

/// 1 - mean of the gates: the share of heads, weighted by their gates, that stream. Every key/value head stands for the
/// same number of query heads, so this is also the share of query heads. 0 for an empty map.
[[nodiscard]] double head_sparsity(const HeadMap& gates);

/// Gates of key/value heads [layers, Hkv] to gates of query heads [layers, Hkv * group], row-major.
[[nodiscard]] std::vector<float> expand_to_query_heads(const HeadMap& gates, int group);

/// Gradients of query heads' gates [layers, heads * group] summed over each group.
[[nodiscard]] HeadMap sum_over_groups(const std::vector<float>& query_head_values, int layers, int heads, int group);

}  // namespace sparseattn
