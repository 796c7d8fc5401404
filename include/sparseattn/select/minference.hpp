#pragma once
/// \file
/// MInference (arXiv 2407.02490): a pattern for every head, from a table searched offline.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sparseattn/core/workspace.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/select/estimated_heads.hpp"
#include "sparseattn/select/selection_room.hpp"

namespace sparseattn {

/// What one head does. The default is the published fallback for heads without an entry.
struct MInferencePattern {
    enum class Type {
        vertical_and_slash,  // `first` key columns and `second` distances that the last queries look at most
        stream_llm,          // A-shape: `first` sink and `second` local tokens
        tri_shape,           // A-shape, the last queries dense
        block_sparse,        // the largest block-mean scores of each query block
        dense,
    };
    Type type = Type::vertical_and_slash;
    int first = 1000;
    int second = 6096;
    double score = 1;  // what the search found; carried, not used

    friend bool operator==(const MInferencePattern&, const MInferencePattern&) = default;
};

/// As tables spell it: "vertical_and_slash", ...
[[nodiscard]] std::string name(MInferencePattern::Type type);
/// Reads "type:first,second", or "type" alone where sizes mean nothing (block_sparse, dense). InvalidArgument for
/// anything else.
[[nodiscard]] MInferencePattern parse_minference_pattern(const std::string& text);

/// Options of one layer.
struct MInferenceOptions {
    int block = 64;                         // 64 or 128
    std::vector<MInferencePattern> heads;   // one per query head, or empty: the default pattern for all
    double size_ratio = 1;                  // > 0, multiplies first and second (rounded down)
    std::optional<double> adaptive_budget;  // > 0: vertical = 0.2 a n_k, slash = 0.8 a n_k instead of the sizes
    int block_sparse_blocks = 100;          // >= 1: key blocks a row of a block_sparse head keeps
    int tri_shape_tail = 100;               // >= 0: dense last queries of a tri_shape head

    static constexpr int last_queries = 64;       // that vertical_and_slash looks through
    static constexpr int forced_columns = 30;     // first keys, always kept
    static constexpr int forced_distances = 100;  // nearest distances, always kept
    static constexpr int least_distances = 50;    // kept at least, by size

    /// Throws InvalidArgument naming the option.
    void validate() const;
};

/// Causal. vertical_and_slash: with P the softmax of the last min(64, n_q) queries, keeps max(first, 30) key columns of
/// the largest sum_r P[r, c], the first 30 among them, and max(second, 50) distances o of the largest
/// sum_r P[r, n_k - L + r - o], the nearest 100 among them. Kept distances are covered by whole key blocks (the blocks
/// that hold a key i - o for some query i of the row), kept columns outside them are single keys of the row; no key
/// counts twice. block_sparse: the block_sparse_blocks largest of mean query . mean key, the row's own blocks among
/// them. (arXiv 2407.02490, section 3; ties take the lower index.)
///
/// query [T_q, Hq, d] and key [T_k, Hkv, d], float or bf16; scores are fp32. Single keys have room for all kept
/// columns of every row on a device, 4 bytes each. Takes `minference_bytes` of workspace. Throws InvalidArgument for
/// options out of range, patterns whose number is not Hq, shapes that do not fit the sequences, and sequences with
/// fewer keys than queries.
template <class Exec, class T>
BlockLayout<typename Exec::memory_space> select_minference(const Exec& exec,
                                                           const HeadsView<const T, typename Exec::memory_space>& query,
                                                           const HeadsView<const T, typename Exec::memory_space>& key,
                                                           const Sequences<typename Exec::memory_space>& sequences,
                                                           const MInferenceOptions& options,
                                                           Workspace<typename Exec::memory_space>& workspace,
                                                           const EstimatedHeads& estimate = {});

/// The same into a layout that may have been made before, with `room` for heads that look at no scores, as in select
/// (selector.hpp): waits for nothing on a device.
template <class Exec, class T>
void select_minference(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                       const HeadsView<const T, typename Exec::memory_space>& key,
                       const Sequences<typename Exec::memory_space>& sequences, const MInferenceOptions& options,
                       Workspace<typename Exec::memory_space>& workspace, const EstimatedHeads& estimate,
                       SelectionRoom<typename Exec::memory_space>& room,
                       BlockLayout<typename Exec::memory_space>& layout);

/// Bytes of workspace that select_minference takes on arrays of T when it estimates all of `heads` query heads. With
/// N = longest n_k, M = N / B, group = heads / kv_heads, E = heads that are neither streaming nor dense: 4 N d + 256 N
/// + group * 12 N + 4 M^2 + 8 M d + E * (rows * M / 8 + sequences * kept columns * 4). bf16 where the current device
/// has the kernels of cuda/select.hpp and no head is block_sparse: what those ask for.
template <class Exec, class T>
std::size_t minference_bytes(const Sequences<typename Exec::memory_space>& sequences, int heads, int kv_heads,
                             int head_dim, const MInferenceOptions& options);

/// Patterns of a whole model, [layer]{query head -> pattern}.
struct MInferenceTable {
    std::vector<std::map<int, MInferencePattern>> layers;
    int starting_layer = 0;  // layers before it are dense

    /// `options` with the patterns of one layer for `heads` query heads; heads without an entry get the default
    /// pattern. Throws InvalidArgument when the table has no such layer or has entries for heads that do not exist.
    [[nodiscard]] MInferenceOptions layer(int layer, int heads, MInferenceOptions options = {}) const;
};

/// The public form: a JSON list over layers of objects {"head": [type, first_size, second_size, score]}.
/// Throws FileError naming the file, the layer, the head and what was wrong.
[[nodiscard]] MInferenceTable read_minference_table(const std::string& path);
void write_minference_table(const std::string& path, const MInferenceTable& table);

}  // namespace sparseattn
