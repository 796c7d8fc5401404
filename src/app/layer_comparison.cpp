#include "sparseattn/app/detail/layer_comparison.hpp"

#include <algorithm>
#include <chrono>
#include <type_traits>

#include "sparseattn/attention/measures.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/profiling.hpp"

namespace sparseattn::detail {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// What a layout keeps and how far its output is from that of full attention.
template <class T>
LayerFigures accuracy(const PrefillExec& exec, const Sequences<PrefillMem>& sequences,
                      const BlockLayout<PrefillMem>& layout, const AttentionMass<PrefillExec, T>& mass,
                      const HeadsView<const T, PrefillMem>& out, const HeadsView<const T, PrefillMem>& full) {
    LayerFigures figures;
    const LayoutStatistics kept = statistics(exec, sequences, layout);
    figures.kept_pairs = kept.kept_pairs;
    figures.all_pairs = kept.all_pairs;
    figures.head_density = kept.head_density;
    const std::vector<double> shares = mass.kept(layout);  // [queries, heads]
    const std::size_t heads = out.extent(1), queries = shares.size() / heads;
    figures.head_mass.assign(heads, queries == 0 ? 1.0 : 0.0);
    for (std::size_t i = 0; i < shares.size(); ++i) {
        figures.head_mass[i % heads] += shares[i] / static_cast<double>(queries);
        figures.smallest_mass = std::min(figures.smallest_mass, shares[i]);
    }
    const OutputDifference difference = output_difference<PrefillExec, T>(exec, out, full);
    figures.error = difference.relative();
    for (std::size_t h = 0; h < heads; ++h) figures.head_error.push_back(difference.relative(static_cast<int>(h)));
    return figures;
}

}  // namespace

template <class T>
typename LayerComparison<T>::Timed LayerComparison<T>::run(const Sequences<PrefillMem>& sequences,
                                                           const AttentionInputs<T, PrefillMem>& inputs,
                                                           const LayerSelector& selector,
                                                           const AttentionOutputs<T, PrefillMem>& outputs) {
    Timed timed;
    fence(exec_, "SparseAttn::comparison.inputs");
    const Clock::time_point begin = Clock::now();
    select<PrefillExec, T>(exec_, inputs.query, inputs.key, sequences, selector.method, selection_, selector.heads,
                           room_, layout_);
    fence(exec_, "SparseAttn::comparison.selection");
    const Clock::time_point middle = Clock::now();
    attention_forward<PrefillExec, T>(exec_, inputs, sequences, layout_, options_.attention, attention_, outputs);
    fence(exec_, "SparseAttn::comparison.attention");
    const Clock::time_point end = Clock::now();
    timed.selection_seconds = seconds_between(begin, middle);
    timed.attention_seconds = seconds_between(middle, end);
    return timed;
}

template <class T>
std::vector<LayerFigures> LayerComparison<T>::compare(int layer, const Sequences<PrefillMem>& sequences,
                                                      const AttentionInputs<T, PrefillMem>& inputs,
                                                      const std::vector<LayerSelector>& methods,
                                                      const HeadsView<T, PrefillMem>& out, const Visit& visit) {
    const Region region("SparseAttn::layer_comparison");
    require(options_.repeats >= 1, "repeats", options_.repeats, "at least 1");
    const std::size_t tokens = out.extent(0), heads = out.extent(1), d = out.extent(2);
    const auto grow = [](auto& array, const std::string& label, std::size_t count) {
        if (array.extent(0) < count) {
            array = {};
            array = std::decay_t<decltype(array)>(Kokkos::view_alloc(Kokkos::WithoutInitializing, label), count);
        }
    };
    grow(out_, "SparseAttn::comparison.out", tokens * heads * d);
    grow(lse_, "SparseAttn::comparison.lse", tokens * heads);
    const RowsView<float, PrefillMem> lse(lse_.data(), Kokkos::LayoutStride(tokens, heads, heads, 1));
    const HeadsView<T, PrefillMem> other(out_.data(), Kokkos::LayoutStride(tokens, heads * d, heads, d, d, 1));
    const auto outputs_of = [&](std::size_t m) { return AttentionOutputs<T, PrefillMem>{m == 0 ? out : other, lse}; };

    const AttentionMass<PrefillExec, T> mass(exec_, inputs.query, inputs.key, sequences, options_.causal,
                                             options_.attention.scale,
                                             spaced_queries(sequences, options_.sampled_queries));
    std::vector<LayerFigures> all(methods.size());
    for (std::size_t m = 0; m < methods.size(); ++m) {
        (void)run(sequences, inputs, methods[m], outputs_of(m));
        all[m] = accuracy<T>(exec_, sequences, layout_, mass, outputs_of(m).out, out);
        all[m].layer = layer;
        if (visit) visit({m, methods[m], layout_, outputs_of(m)});
    }
    std::vector<std::vector<double>> selection(methods.size()), attention(methods.size());
    for (int round = 0; round < options_.repeats; ++round) {
        for (std::size_t m = 0; m < methods.size(); ++m) {
            const Timed timed = run(sequences, inputs, methods[m], outputs_of(m));
            selection[m].push_back(timed.selection_seconds);
            attention[m].push_back(timed.attention_seconds);
        }
    }
    for (std::size_t m = 0; m < methods.size(); ++m) {
        all[m].selection_seconds = median(selection[m]);
        all[m].attention_seconds = median(attention[m]);
    }
    return all;
}

template <class T>
std::int64_t LayerComparison<T>::allocated() const {
    return static_cast<std::int64_t>(out_.extent(0) * sizeof(T) + lse_.extent(0) * sizeof(float) +
                                     selection_.capacity() + attention_.capacity());
}

template <class T>
std::int64_t LayerComparison<T>::bytes(std::int64_t queries, std::int64_t keys, int heads, int kv_heads, int head_dim,
                                       const std::vector<LayerSelector>& methods) {
    const Sequences<PrefillMem> sequences({0, static_cast<std::int32_t>(queries)},
                                          {0, static_cast<std::int32_t>(keys)});
    std::int64_t selection = 0, layout = 0;
    for (const LayerSelector& selector : methods) {
        selection = std::max(selection, static_cast<std::int64_t>(selection_bytes<PrefillExec, T>(
                                            sequences, heads, kv_heads, head_dim, selector.method)));
        layout = std::max(layout, selected_layout_bytes(sequences, heads, selector.method, false));
    }
    ModelConfig shape;  // as far as attention's temporaries depend on it
    shape.num_attention_heads = heads;
    shape.num_key_value_heads = kv_heads;
    shape.head_dim = head_dim;
    const AttentionBytes attention = BlockAttention<PrefillExec, T>::bytes(shape, {keys, false, false}, false);
    const auto row = static_cast<std::int64_t>(sizeof(T)) * head_dim + static_cast<std::int64_t>(sizeof(float));
    return row * queries * heads + attention.workspace + selection + layout;
}

template class LayerComparison<float>;
template class LayerComparison<bf16>;

}  // namespace sparseattn::detail
