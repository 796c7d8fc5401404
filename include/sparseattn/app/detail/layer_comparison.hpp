#pragma once
// Every method on the query, key and value of one layer: accuracy against full attention, and times.

#include <functional>
#include <vector>

#include "sparseattn/app/prefill_report.hpp"
#include "sparseattn/attention/attention.hpp"
#include "sparseattn/model/selected_attention.hpp"

namespace sparseattn::detail {

using PrefillExec = Kokkos::DefaultExecutionSpace;
using PrefillMem = PrefillExec::memory_space;

struct ComparisonOptions {
    int repeats = 3;           // timed, after one round that is not
    int sampled_queries = 64;  // at which attention mass is summed
    bool causal = true;
    AttentionOptions attention;
};

// What one method made of the layer; views hold during the call.
template <class T>
struct MethodResult {
    std::size_t method;
    const LayerSelector& selector;
    const BlockLayout<PrefillMem>& layout;
    AttentionOutputs<T, PrefillMem> outputs;
};

// T is float or bf16.
template <class T>
class LayerComparison {
  public:
    using Visit = std::function<void(const MethodResult<T>&)>;

    LayerComparison(const PrefillExec& exec, const ComparisonOptions& options) : exec_(exec), options_(options) {}

    // Figures of each method; methods[0] is full attention and leaves its result in `out`. Rounds go over all methods
    // in turn, so that a change of the machine's speed meets all of them. `visit` (may be empty) sees each result once.
    std::vector<LayerFigures> compare(int layer, const Sequences<PrefillMem>& sequences,
                                      const AttentionInputs<T, PrefillMem>& inputs,
                                      const std::vector<LayerSelector>& methods, const HeadsView<T, PrefillMem>& out,
                                      const Visit& visit);

    // Bytes held now.
    [[nodiscard]] std::int64_t allocated() const;
    // Bytes that compare() will hold for one sequence: the result of a method, temporaries of selection and attention,
    // and one layout as if every block were kept.
    [[nodiscard]] static std::int64_t bytes(std::int64_t queries, std::int64_t keys, int heads, int kv_heads,
                                            int head_dim, const std::vector<LayerSelector>& methods);

  private:
    struct Timed {
        double selection_seconds = 0;
        double attention_seconds = 0;
    };
    // Leaves its layout in layout_.
    Timed run(const Sequences<PrefillMem>& sequences, const AttentionInputs<T, PrefillMem>& inputs,
              const LayerSelector& selector, const AttentionOutputs<T, PrefillMem>& outputs);

    PrefillExec exec_;
    ComparisonOptions options_;
    Workspace<PrefillMem> selection_, attention_;
    SelectionRoom<PrefillMem> room_;
    BlockLayout<PrefillMem> layout_;  // of the method that ran last; kept, so that no round pays for its memory
    Array1<T, PrefillMem> out_;       // of a method under test
    Array1<float, PrefillMem> lse_;
};

}  // namespace sparseattn::detail
