#pragma once
/// \file
/// What a layout loses: the share of attention mass that it keeps, and how far its output is from another. For reports
/// and tests; none of it is on a hot path.

#include <cstdint>
#include <vector>

#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn {

/// `count` queries of a packed batch, ascending and without repeats: in each sequence evenly spaced ones, its last
/// among them, in proportion to its length but at least one. All queries when there are no more than `count`; more than
/// `count` when there are more sequences with queries than that. `count` is at least 1.
template <class Mem>
[[nodiscard]] std::vector<std::int32_t> spaced_queries(const Sequences<Mem>& sequences, int count);

/// Attention mass of chosen queries: for query i and head h, P[i, h, j] = softmax_j(scale q . k) over all keys that
/// dense attention sees. Scores and sums are fp64. Costs one pass over the keys of every chosen query, and one over its
/// listed keys for each layout asked about.
template <class Exec, class T>
class AttentionMass {
  public:
    using Mem = typename Exec::memory_space;

    /// query [T_q, Hq, d] and key [T_k, Hkv, d], float or bf16, must outlive the object; `queries` are packed indices
    /// (spaced_queries). `scale` 0 means 1 / sqrt(d). Throws InvalidArgument for shapes that do not fit.
    AttentionMass(const Exec& exec, const HeadsView<const T, Mem>& query, const HeadsView<const T, Mem>& key,
                  const Sequences<Mem>& sequences, bool causal, double scale, const std::vector<std::int32_t>& queries);

    /// Share of the mass that the layout keeps, [queries, heads] row-major, each in [0, 1]; 1 for a query that sees no
    /// key. Waits for the execution space. Throws InvalidArgument when the layout is on other heads or causality.
    [[nodiscard]] std::vector<double> kept(const BlockLayout<Mem>& layout) const;

  private:
    Exec exec_;
    HeadsView<const T, Mem> query_;
    HeadsView<const T, Mem> key_;
    Sequences<Mem> sequences_;
    bool causal_;
    double scale_;
    Array1<std::int32_t, Mem> queries_;
    Array1<std::int32_t, Mem> sequence_of_;  // of each chosen query
    Array2<double, Mem> largest_;            // [queries, heads] largest score
    Array2<double, Mem> total_;              // [queries, heads] sum of e^(score - largest)
};

/// Squared differences of two outputs, head by head, summed in fp64.
struct OutputDifference {
    std::vector<double> error;  // [heads] sum over tokens and channels of (out - wanted)^2
    std::vector<double> size;   // [heads] sum of wanted^2

    /// sqrt(sum error / sum size) over all heads; 0 when both are 0.
    [[nodiscard]] double relative() const;
    /// The same of one head.
    [[nodiscard]] double relative(int head) const;
};

/// Compares [tokens, heads, d] arrays of equal extents (InvalidArgument otherwise). Waits for `exec`; the same bits for
/// any number of threads.
template <class Exec, class T>
OutputDifference output_difference(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& out,
                                   const HeadsView<const T, typename Exec::memory_space>& wanted);

}  // namespace sparseattn
