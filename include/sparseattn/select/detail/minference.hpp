#pragma once
// What MInference's patterns say of each head, and the generic selection of the heads whose scores are looked at.

#include <cstdint>
#include <vector>

#include "sparseattn/select/detail/problem.hpp"
#include "sparseattn/select/minference.hpp"

namespace sparseattn::detail {

MInferencePattern pattern_of(const MInferenceOptions& options, int head);

// Columns and distances that a vertical_and_slash head keeps of n keys; the forced ones are among them.
struct KeptCounts {
    std::int32_t columns, distances;
};
KeptCounts kept_counts(const MInferenceOptions& options, const MInferencePattern& pattern, int n);
// The most columns that any of `heads` keeps of any sequence; 0 when none is vertical_and_slash.
template <class Mem>
std::int64_t most_kept_columns(const Sequences<Mem>& sequences, const MInferenceOptions& options,
                               const std::vector<std::int32_t>& heads);

// The layout of `heads`, all vertical_and_slash or block_sparse, each with a list of its own.
template <class Exec, class T>
void select_scored_heads(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                         const HeadsView<const T, typename Exec::memory_space>& key,
                         const Sequences<typename Exec::memory_space>& sequences, const SelectionShape& shape,
                         const MInferenceOptions& options, const std::vector<std::int32_t>& heads,
                         Workspace<typename Exec::memory_space>& workspace,
                         BlockLayout<typename Exec::memory_space>& layout);
// Bytes of workspace that it takes.
template <class Mem>
std::size_t scored_heads_bytes(const Sequences<Mem>& sequences, const SelectionShape& shape,
                               const MInferenceOptions& options, const std::vector<std::int32_t>& heads);

}  // namespace sparseattn::detail
