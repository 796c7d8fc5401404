#pragma once
// Host-side argument checks of the attention calls. Every message names the argument, what it was, what it must be.

#include <array>
#include <cstdint>
#include <string_view>

#include "sparseattn/attention/attention.hpp"

namespace sparseattn::detail {

/// The sizes every argument of a call is measured against.
struct AttentionShape {
    std::int64_t queries, keys, heads, kv_heads, head_dim;
};

/// Extents and strides of a [tokens, heads, head_dim] or [tokens, heads] view, without its type.
struct HeadsExtents {
    std::array<std::int64_t, 3> extents;
    std::int64_t last_stride;
};
template <class T, class Mem>
HeadsExtents extents_of(const HeadsView<T, Mem>& view) {
    const auto extent = [&](int r) { return static_cast<std::int64_t>(view.extent(r)); };
    return {{extent(0), extent(1), extent(2)}, static_cast<std::int64_t>(view.stride(2))};
}

/// Shape of a call from its inputs, after checking that they fit each other and the sequences.
AttentionShape check_inputs(const HeadsExtents& query, const HeadsExtents& key, const HeadsExtents& value,
                            std::int64_t sequence_queries, std::int64_t sequence_keys);
/// A [tokens, heads, head_dim] view of exactly these extents, last dimension contiguous.
void check_heads(std::string_view name, const HeadsExtents& was, std::int64_t tokens, std::int64_t heads,
                 std::int64_t head_dim);
/// extent(0) of a per-head array; `what` tells where `must` comes from.
void check_extent(std::string_view argument, std::int64_t was, std::int64_t must, std::string_view what);

template <class T, class Mem>
void check_outputs(std::string_view name, const AttentionOutputs<T, Mem>& outputs, const AttentionShape& shape);
template <class Mem>
void check_layout(std::string_view name, const BlockLayout<Mem>& layout, const Sequences<Mem>& sequences,
                  const AttentionShape& shape);
template <class Mem>
void check_transposed(std::string_view name, const LayoutPair<Mem>& pair, const Sequences<Mem>& sequences);

}  // namespace sparseattn::detail
