#pragma once
// Gates of a decoder's query heads, [layers, query heads].

#include <cstddef>
#include <type_traits>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/types.hpp"
#include "sparseattn/model/config.hpp"

namespace sparseattn::detail {

// One layer's part of a map; empty for an empty map.
template <class T, class Mem>
Span1<T, Mem> layer_row(const Span2<T, Mem>& map, int layer) {
    if (map.extent(0) == 0) return {};
    return Span1<T, Mem>(map.data() + static_cast<std::size_t>(layer) * map.extent(1), map.extent(1));
}

inline void check_gates(const char* name, std::size_t layers, std::size_t heads, const ModelConfig& config) {
    const auto wanted_layers = static_cast<std::size_t>(config.num_hidden_layers);
    const auto wanted_heads = static_cast<std::size_t>(config.num_attention_heads);
    require(layers == wanted_layers && heads == wanted_heads, name, concat(layers, " x ", heads),
            concat("layers x query heads = ", wanted_layers, " x ", wanted_heads));
}

}  // namespace sparseattn::detail
