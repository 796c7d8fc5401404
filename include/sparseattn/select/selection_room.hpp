#pragma once
/// \file
/// What a selection that combines layouts keeps between calls.

#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn {

/// Layouts that a selection makes its result of: a repeated selection of the same shape allocates nothing for them.
/// One room serves one execution-space instance at a time, like a Workspace.
template <class Mem>
struct SelectionRoom {
    BlockLayout<Mem> estimated;  // heads with estimates
    BlockLayout<Mem> shared;     // the same with lists shared in groups
    BlockLayout<Mem> scored;     // MInference heads that look at scores
    BlockLayout<Mem> fixed;      // heads with modes
};

}  // namespace sparseattn
