#pragma once
/// \file
/// Layouts made of other layouts: heads picked one by one, unions, lists shared in groups.
///
/// All sources must be on the same sequences and agree in block, causality and number of heads; InvalidArgument names
/// the one that does not. Results are the same for any number of threads.
///
/// Each call exists in two forms. One writes into a layout that may have been made before (see make_block_grid) and is
/// none of the sources: it waits for nothing on a device, where the sources' room bounds that of the result. The other
/// returns a new layout and waits for `exec`.

#include <vector>

#include "sparseattn/core/workspace.hpp"
#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn {

template <class Mem>
using LayoutList = std::vector<const BlockLayout<Mem>*>;

/// Head h gets list and window of head h of `*layouts[pick[h]]`. Heads that shared a list go on sharing it.
template <class Exec>
BlockLayout<typename Exec::memory_space> combine(const Exec& exec,
                                                 const Sequences<typename Exec::memory_space>& sequences,
                                                 const LayoutList<typename Exec::memory_space>& layouts,
                                                 const std::vector<int>& pick);
template <class Exec>
void combine(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
             const LayoutList<typename Exec::memory_space>& layouts, const std::vector<int>& pick,
             Workspace<typename Exec::memory_space>& workspace, BlockLayout<typename Exec::memory_space>& result);

/// Head h visits every block and single key that it visits in any of the layouts (at least one); a single key inside a
/// block of the union is no longer single. A head whose windows differ gets the window that holds every key: the union
/// is then one of whole blocks, and may keep more pairs than the layouts do together.
template <class Exec>
BlockLayout<typename Exec::memory_space> unite(const Exec& exec,
                                               const Sequences<typename Exec::memory_space>& sequences,
                                               const LayoutList<typename Exec::memory_space>& layouts);
template <class Exec>
void unite(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
           const LayoutList<typename Exec::memory_space>& layouts, Workspace<typename Exec::memory_space>& workspace,
           BlockLayout<typename Exec::memory_space>& result);

/// The heads of each group of `group` neighbours (a divisor of the heads) share one list, the union of theirs; windows
/// as in `unite`.
template <class Exec>
BlockLayout<typename Exec::memory_space> share_in_groups(const Exec& exec,
                                                         const Sequences<typename Exec::memory_space>& sequences,
                                                         const BlockLayout<typename Exec::memory_space>& layout,
                                                         int group);
template <class Exec>
void share_in_groups(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
                     const BlockLayout<typename Exec::memory_space>& layout, int group,
                     Workspace<typename Exec::memory_space>& workspace,
                     BlockLayout<typename Exec::memory_space>& result);

}  // namespace sparseattn
