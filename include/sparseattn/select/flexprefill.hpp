#pragma once
/// \file
/// FlexPrefill (arXiv 2502.20766): per head either the columns and diagonals that the last queries look at, or the
/// largest block-mean scores.

#include <optional>

#include "sparseattn/core/workspace.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/select/estimated_heads.hpp"

namespace sparseattn {

struct FlexPrefillOptions {
    int block = 128;                // 64 or 128
    double gamma = 0.9;             // > 0: share of attention mass to keep; 1 or more keeps every block
    double tau = 0.1;               // >= 0: a head whose block means predict its tail attention to within this distance
                                    // (square root of the Jensen-Shannon divergence, natural logs) is query-aware
    int min_budget = 512;           // >= 0 tokens: columns, and diagonals, kept at least
    std::optional<int> max_budget;  // >= max(1, min_budget) tokens: kept at most
    bool gqa_interleave = false;    // query head h belongs to key head h % Hkv instead of h / (Hq / Hkv)

    /// Throws InvalidArgument naming the option.
    void validate() const;
};

/// Causal. With P the softmax of the last min(B, n_q) queries, v[c] and s[o] its mass at key c and at distance o:
/// vertical-slash heads keep the top ceil(kv / B) key blocks of v and the top ceil(ks / B) distance blocks of s, where
/// kv and ks count the smallest prefixes that reach gamma (crossing entry included), clamped to the budgets.
/// Query-aware heads keep the smallest set of (row, block) pairs of the block-mean softmax whose mass reaches gamma *
/// rows, with the vertical-slash set at the minimum budget. Block 0 and the rows' own blocks always. A sequence with
/// n_k <= max(2 B, min_budget) is dense. (arXiv 2502.20766, section 3; ties take the lower index.)
///
/// query [T_q, Hq, d] and key [T_k, Hkv, d], float or bf16; scores are fp32. On a device nothing is waited for. Takes
/// `flexprefill_bytes` of workspace. Throws InvalidArgument for options out of range, shapes that do not fit the
/// sequences, and sequences with fewer keys than queries.
template <class Exec, class T>
BlockLayout<typename Exec::memory_space> select_flexprefill(
    const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
    const HeadsView<const T, typename Exec::memory_space>& key, const Sequences<typename Exec::memory_space>& sequences,
    const FlexPrefillOptions& options, Workspace<typename Exec::memory_space>& workspace,
    const EstimatedHeads& estimate = {});

/// The same into a layout that may have been made before, whose arrays are kept where they are large enough: see
/// make_block_grid (layout/block_layout.hpp).
template <class Exec, class T>
void select_flexprefill(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                        const HeadsView<const T, typename Exec::memory_space>& key,
                        const Sequences<typename Exec::memory_space>& sequences, const FlexPrefillOptions& options,
                        Workspace<typename Exec::memory_space>& workspace, const EstimatedHeads& estimate,
                        BlockLayout<typename Exec::memory_space>& layout);

/// Bytes of workspace that select_flexprefill takes on arrays of T when it estimates all of `heads` query heads. With
/// N = longest n_k, M = N / B, group = heads / kv_heads: 4 N d (keys of one head) + 4 N B (scores of the last queries)
/// + group * (8 N + 4 M^2 + 8 M d) + heads * rows * M / 8. bf16 where the current device has the kernels of
/// cuda/select.hpp: what those ask for.
template <class Exec, class T>
std::size_t flexprefill_bytes(const Sequences<typename Exec::memory_space>& sequences, int heads, int kv_heads,
                              int head_dim, const FlexPrefillOptions& options);

}  // namespace sparseattn
