#pragma once
/// \file
/// XAttention (arXiv 2503.16428): key blocks by antidiagonal sums of the scores, kept up to a share of their mass.

#include <string>
#include <vector>

#include "sparseattn/core/workspace.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/select/estimated_heads.hpp"

namespace sparseattn {

struct XAttentionOptions {
    /// Pairs of a stride x stride tile that stand for it: (S - 1 - s, s) or (s, s).
    enum class Mode { antidiagonal, slash };

    int block = 128;                 // 64 or 128
    int stride = 16;                 // S >= 1, a divisor of block
    double threshold = 0.9;          // tau > 0: share of each row's estimated mass to keep; 1 or more keeps every block
    std::vector<double> thresholds;  // one per query head instead of `threshold`, or empty
    double norm = 1;                 // > 0, divides the estimated scores
    bool keep_sink = true;           // key block 0
    bool keep_recent = true;         // the blocks of the row's own positions
    bool causal = true;
    Mode mode = Mode::antidiagonal;
    int chunk_rows = 0;  // strided query rows estimated at a time; 0: 128 on the host, 1024 on a device

    /// Throws InvalidArgument naming the option.
    void validate() const;
};

/// For every estimated head and query block I, the smallest set of key blocks, by descending mass (ties: lower block
/// first), whose mass reaches tau * sum_J M[I, J] together with the forced blocks; the crossing block is included.
/// M[I, J] sums P = softmax_j(sum_s q[iS + S-1-s] . k[jS + s] / (sqrt(d) S norm)) over the strided rows i in I and
/// columns j in J (arXiv 2503.16428, section 2). Causal: strided column j takes part in strided row i when some pair of
/// their tokens is visible, positions being aligned at the sequences' ends. Scores and masses are fp32.
///
/// query [T_q, Hq, d] and key [T_k, Hkv, d], float or bf16. On a device nothing is waited for: columns have room for
/// every block that the estimated heads might visit. Takes `xattention_bytes` of workspace; the scores are formed
/// `chunk_rows` strided rows at a time. bf16 on Hopper GPUs: cuda/select.hpp, whose masses differ by the rounding of
/// fp32 sums.
/// Throws InvalidArgument for options out of range, thresholds whose number is not Hq, shapes that do not fit the
/// sequences, and causal sequences with fewer keys than queries.
template <class Exec, class T>
BlockLayout<typename Exec::memory_space> select_xattention(const Exec& exec,
                                                           const HeadsView<const T, typename Exec::memory_space>& query,
                                                           const HeadsView<const T, typename Exec::memory_space>& key,
                                                           const Sequences<typename Exec::memory_space>& sequences,
                                                           const XAttentionOptions& options,
                                                           Workspace<typename Exec::memory_space>& workspace,
                                                           const EstimatedHeads& estimate = {});

/// The same into a layout that may have been made before, whose arrays are kept where they are large enough: see
/// make_block_grid (layout/block_layout.hpp).
template <class Exec, class T>
void select_xattention(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& query,
                       const HeadsView<const T, typename Exec::memory_space>& key,
                       const Sequences<typename Exec::memory_space>& sequences, const XAttentionOptions& options,
                       Workspace<typename Exec::memory_space>& workspace, const EstimatedHeads& estimate,
                       BlockLayout<typename Exec::memory_space>& layout);

/// Bytes of workspace that select_xattention takes on arrays of T when it estimates all of `heads` query heads. With
/// N = longest n_k, C = chunk_rows: 4 N d (keys of one head) + 4 C S d + 4 C N (1/S + 2/B) + heads * rows * N / (8 B)
/// (the result as bits), each term rounded up to whole strides, blocks and 64-byte lines. Linear in N but for the last
/// term. bf16 where the current device has the kernels of cuda/select.hpp: what those ask for.
template <class Exec, class T>
std::size_t xattention_bytes(const Sequences<typename Exec::memory_space>& sequences, int heads, int kv_heads,
                             int head_dim, const XAttentionOptions& options);

/// Thresholds of a whole model, [layer][query head].
struct XAttentionThresholds {
    std::vector<std::vector<double>> layers;

    /// Thresholds of one layer; throws InvalidArgument when the file has no such layer or not `heads` of them.
    [[nodiscard]] const std::vector<double>& layer(int layer, int heads) const;
};

/// Reads tab- or space-separated text: one line a layer, one number a query head; lines that are empty or start with
/// '#' are skipped. Throws FileError with file and line for anything but finite numbers above 0 and for lines of
/// different lengths.
[[nodiscard]] XAttentionThresholds read_xattention_thresholds(const std::string& path);
void write_xattention_thresholds(const std::string& path, const XAttentionThresholds& thresholds);

}  // namespace sparseattn
