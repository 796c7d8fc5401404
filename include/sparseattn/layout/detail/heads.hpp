#pragma once
// The heads' part of a layout.

#include <algorithm>
#include <utility>

#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn::detail {

// The number of lists is one more than the largest in `head_list`. Waits for nothing.
template <class Exec>
void set_heads(const Exec& exec, std::vector<std::int32_t> head_list, std::vector<Window> windows,
               BlockLayout<typename Exec::memory_space>& layout) {
    layout.heads = static_cast<int>(head_list.size());
    layout.lists = head_list.empty() ? 0 : *std::max_element(head_list.begin(), head_list.end()) + 1;
    layout.host_head_list = std::move(head_list);
    layout.host_windows = std::move(windows);
    put_values(exec, "SparseAttn::layout.head_list", layout.host_head_list, layout.head_list);
    put_values(exec, "SparseAttn::layout.windows", layout.host_windows, layout.windows);
}

}  // namespace sparseattn::detail
