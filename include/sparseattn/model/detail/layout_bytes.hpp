#pragma once
// Bytes of layouts that selectors make.

#include <cstdint>

#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/select/selection_room.hpp"

namespace sparseattn::detail {

template <class View>
std::int64_t view_bytes(const View& view) {
    return static_cast<std::int64_t>(view.size() * sizeof(typename View::value_type));
}

// What lists hold now.
template <class Mem>
std::int64_t held_bytes(const BlockLayout<Mem>& layout) {
    return view_bytes(layout.offsets) + view_bytes(layout.columns) + view_bytes(layout.key_offsets) +
           view_bytes(layout.keys);
}
template <class Mem>
std::int64_t held_bytes(const TransposedLayout<Mem>& transposed) {
    return view_bytes(transposed.offsets) + view_bytes(transposed.rows) + view_bytes(transposed.key_offsets) +
           view_bytes(transposed.key_rows);
}
template <class Mem>
std::int64_t held_bytes(const SelectionRoom<Mem>& room) {
    return held_bytes(room.estimated) + held_bytes(room.shared) + held_bytes(room.scored) + held_bytes(room.fixed);
}

}  // namespace sparseattn::detail
