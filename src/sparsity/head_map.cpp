#include "sparseattn/sparsity/head_map.hpp"

#include <numeric>

#include "sparseattn/core/error.hpp"

namespace sparseattn {

double head_sparsity(const HeadMap& gates) {
    if (gates.values.empty()) return 0;
    return 1.0 -
           std::accumulate(gates.values.begin(), gates.values.end(), 0.0) / static_cast<double>(gates.values.size());
}

std::vector<float> expand_to_query_heads(const HeadMap& gates, int group) {
    require(group >= 1, "group", group, "at least 1");
    std::vector<float> expanded;
    expanded.reserve(gates.values.size() * static_cast<std::size_t>(group));
    for (const double gate : gates.values) expanded.insert(expanded.end(), group, static_cast<float>(gate));
    return expanded;
}

HeadMap sum_over_groups(const std::vector<float>& query_head_values, int layers, int heads, int group) {
    require(group >= 1, "group", group, "at least 1");
    HeadMap sums(layers, heads);
    require(query_head_values.size() == sums.values.size() * static_cast<std::size_t>(group),
            "query_head_values.size()", query_head_values.size(),
            concat("layers * heads * group = ", sums.values.size() * static_cast<std::size_t>(group)));
    for (std::size_t i = 0; i < query_head_values.size(); ++i) {
        sums.values[i / static_cast<std::size_t>(group)] += query_head_values[i];
    }
    return sums;
}

}  // namespace sparseattn
