#pragma once
/// \file
/// What each head of a layer should do, found by trying it on captured queries, keys and values: MInference patterns
/// (arXiv 2407.02490, section 3.2) and XAttention thresholds (arXiv 2503.16428, section 3.4).

#include <optional>
#include <vector>

#include "sparseattn/attention/attention.hpp"
#include "sparseattn/attention/measures.hpp"
#include "sparseattn/select/selector.hpp"

namespace sparseattn {

/// One layer's tensors on the host, flat; attention scales their products by 1 / sqrt(head_dim).
struct LayerTensors {
    std::vector<std::int32_t> query_offsets, key_offsets;
    std::vector<float> query;       // [T_q, heads, head_dim]
    std::vector<float> key, value;  // [T_k, kv_heads, head_dim]
};

/// What a method does on the samples of a layer: all of them together, head by head.
struct LayerQuality {
    OutputDifference difference;  // from dense attention
    std::vector<double> density;  // [heads] pairs kept / pairs of dense attention

    [[nodiscard]] double mean_density() const;
};

/// Samples of one layer with the output of dense attention on them.
template <class Exec>
class LayerSamples {
  public:
    using Mem = typename Exec::memory_space;

    struct Shape {
        int heads = 0;
        int kv_heads = 0;
        int head_dim = 0;
        bool causal = true;
    };

    /// Throws InvalidArgument for heads that do not fit.
    LayerSamples(const Exec& exec, const Shape& shape, const AttentionOptions& options = {});

    /// Copies the tensors and computes dense attention. Throws InvalidArgument for sizes that do not fit the shape.
    void add(const LayerTensors& tensors);

    [[nodiscard]] int heads() const { return shape_.heads; }
    /// The layouts of `method` only, [heads].
    [[nodiscard]] std::vector<double> density(const SelectorOptions& method);
    /// Its layouts and outputs.
    [[nodiscard]] LayerQuality quality(const SelectorOptions& method);

    /// Device bytes for samples of `queries` and `keys` tokens in all, the longest of them of `most_queries`, without
    /// the workspaces of selection and attention.
    [[nodiscard]] static std::int64_t bytes(const Shape& shape, std::int64_t queries, std::int64_t keys,
                                            std::int64_t most_queries);

  private:
    struct Sample {
        Sequences<Mem> sequences;
        Array3<float, Mem> query, key, value, dense;
        [[nodiscard]] AttentionInputs<float, Mem> inputs() const { return {query, key, value}; }
    };
    [[nodiscard]] Array3<float, Mem> on_device(const std::vector<float>& flat, const char* name, int tokens,
                                               int heads) const;
    void attend(const Sample& sample, const BlockLayout<Mem>& layout, const Array3<float, Mem>& out);
    template <class Visit>
    std::vector<double> select_all(const SelectorOptions& method, const Visit& visit);

    Exec exec_;
    Shape shape_;
    AttentionOptions options_;
    std::vector<Sample> samples_;
    Array3<float, Mem> out_;  // of a method under test, for the longest sample
    Array2<float, Mem> lse_;
    Workspace<Mem> selection_, attention_;
};

/// The public candidates: stream_llm (100, 800); vertical_and_slash (30, 800), (100, 750), (500, 700), (3500, 100);
/// block_sparse.
[[nodiscard]] std::vector<MInferencePattern> minference_candidates();

struct MInferenceSearch {
    MInferenceOptions method;  // block and the like; its patterns are not used
    std::vector<MInferencePattern> candidates = minference_candidates();
    /// Candidates compete at equal cost: their sizes are multiplied by the largest factor (1/64 to 64, to 4 percent)
    /// with which a head keeps at most this share of the pairs. None: the share that the first candidate keeps as
    /// given. What has no sizes (block_sparse, dense), or keeps more even with the smallest, competes only within the
    /// share.
    std::optional<double> density;
    /// Sizes as they are, whatever they cost, instead.
    bool as_given = false;

    /// Throws InvalidArgument naming the member.
    void validate() const;
};

struct MInferenceTrial {
    MInferencePattern pattern;  // with the sizes it competed at; its score is the relative output error
    double density = 0;
    bool within = true;  // the budget
};
struct MInferenceChoice {
    int trial = 0;                        // the winner: smallest error within the budget (cheapest if none is within)
    std::vector<MInferenceTrial> trials;  // one for each candidate
};

/// The best candidate of each head. Ties: the earlier candidate. `quality` gets that of all heads as chosen.
template <class Exec>
std::vector<MInferenceChoice> search_minference(LayerSamples<Exec>& samples, const MInferenceSearch& search,
                                                LayerQuality& quality);

struct ThresholdSearch {
    XAttentionOptions method;  // its thresholds are not used
    /// Exactly one of the two is wished for, in (0, 1].
    std::optional<double> max_error;  // relative output error at most
    std::optional<double> density;    // share of the pairs at most
    int steps = 10;                   // thresholds are multiples of 2^-steps; 1 to 20

    /// Throws InvalidArgument naming the member.
    void validate() const;
};

/// Thresholds of one layer.
struct ThresholdChoice {
    std::vector<double> thresholds;  // [heads]
    std::vector<bool> met;           // whether the wish is met; if not, the threshold is the smallest
    LayerQuality quality;
};

/// By bisection, for all heads at once: the smallest threshold found to meet `max_error` (threshold 1, dense attention,
/// always does), or the largest found to meet `density` (the forced blocks alone may keep more).
template <class Exec>
ThresholdChoice search_thresholds(LayerSamples<Exec>& samples, const ThresholdSearch& search);

}  // namespace sparseattn
