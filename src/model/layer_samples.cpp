#include <algorithm>
#include <numeric>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/head_search.hpp"

namespace sparseattn {
namespace {

template <class Mem>
RowsView<float, Mem> rows_of(const Array2<float, Mem>& lse, int tokens, int heads) {
    return RowsView<float, Mem>(lse.data(), Kokkos::LayoutStride(tokens, heads, heads, 1));
}

}  // namespace

double LayerQuality::mean_density() const {
    return std::accumulate(density.begin(), density.end(), 0.0) / static_cast<double>(density.size());
}

template <class Exec>
LayerSamples<Exec>::LayerSamples(const Exec& exec, const Shape& shape, const AttentionOptions& options)
    : exec_(exec), shape_(shape), options_(options) {
    require(shape.heads >= 1, "heads", shape.heads, "at least 1");
    require(shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0, "kv_heads", shape.kv_heads,
            concat("a divisor of heads, ", shape.heads));
    require(shape.head_dim >= 1, "head_dim", shape.head_dim, "at least 1");
}

template <class Exec>
Array3<float, typename Exec::memory_space> LayerSamples<Exec>::on_device(const std::vector<float>& flat,
                                                                         const char* name, int tokens,
                                                                         int heads) const {
    const auto wanted = static_cast<std::size_t>(tokens) * heads * shape_.head_dim;
    require(flat.size() == wanted, concat("size of ", name), flat.size(),
            concat(tokens, " x ", heads, " x ", shape_.head_dim));
    const Array3<float, Mem> array(
        Kokkos::view_alloc(Kokkos::WithoutInitializing, concat("SparseAttn::samples.", name)), tokens, heads,
        shape_.head_dim);
    const auto host = Kokkos::create_mirror_view(array);
    std::copy(flat.begin(), flat.end(), host.data());
    Kokkos::deep_copy(exec_, array, host);
    fence(exec_, "SparseAttn::samples");  // the mirror goes away
    return array;
}

template <class Exec>
void LayerSamples<Exec>::add(const LayerTensors& tensors) {
    const Region region("SparseAttn::samples.add");
    Sample sample;
    sample.sequences = Sequences<Mem>(tensors.query_offsets, tensors.key_offsets);
    const int queries = sample.sequences.queries(), keys = sample.sequences.keys();
    sample.query = on_device(tensors.query, "query", queries, shape_.heads);
    sample.key = on_device(tensors.key, "key", keys, shape_.kv_heads);
    sample.value = on_device(tensors.value, "value", keys, shape_.kv_heads);
    sample.dense = Array3<float, Mem>(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::samples.dense"),
                                      queries, shape_.heads, shape_.head_dim);
    if (queries > static_cast<int>(out_.extent(0))) {
        out_ = Array3<float, Mem>(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::samples.out"), queries,
                                  shape_.heads, shape_.head_dim);
        lse_ = Array2<float, Mem>(Kokkos::view_alloc(Kokkos::WithoutInitializing, "SparseAttn::samples.lse"), queries,
                                  shape_.heads);
    }
    const std::vector<HeadMode> modes(shape_.heads, HeadMode::dense());
    attend(sample, build_layout(exec_, sample.sequences, 128, shape_.causal, modes), sample.dense);
    samples_.push_back(std::move(sample));
}

template <class Exec>
void LayerSamples<Exec>::attend(const Sample& sample, const BlockLayout<Mem>& layout, const Array3<float, Mem>& out) {
    const HeadsView<float, Mem> target(
        out.data(),
        Kokkos::LayoutStride(sample.query.extent(0), out.stride(0), out.extent(1), out.stride(1), out.extent(2), 1));
    attention_forward<Exec, float>(exec_, sample.inputs(), sample.sequences, layout, options_, attention_,
                                   {target, rows_of(lse_, sample.sequences.queries(), shape_.heads)});
}

// The density of each head, while visit(sample, layout) sees every sample's layout.
template <class Exec>
template <class Visit>
std::vector<double> LayerSamples<Exec>::select_all(const SelectorOptions& method, const Visit& visit) {
    std::vector<double> kept(shape_.heads, 0.0);
    double all = 0;
    for (const Sample& sample : samples_) {
        const BlockLayout<Mem> layout =
            select<Exec, float>(exec_, sample.query, sample.key, sample.sequences, method, selection_);
        require(layout.causal == shape_.causal, "method", selector_name(method),
                shape_.causal ? "causal, as the samples are" : "not causal, as the samples are");
        const LayoutStatistics counted = statistics(exec_, sample.sequences, layout);
        const double pairs = counted.all_pairs / shape_.heads;
        for (int h = 0; h < shape_.heads; ++h) kept[h] += counted.head_density[h] * pairs;
        all += pairs;
        visit(sample, layout);
    }
    for (double& share : kept) share = all > 0 ? share / all : 0;
    return kept;
}

template <class Exec>
std::vector<double> LayerSamples<Exec>::density(const SelectorOptions& method) {
    return select_all(method, [](const Sample&, const BlockLayout<Mem>&) {});
}

template <class Exec>
LayerQuality LayerSamples<Exec>::quality(const SelectorOptions& method) {
    const Region region("SparseAttn::samples.quality");
    LayerQuality result;
    result.difference.error.assign(shape_.heads, 0);
    result.difference.size.assign(shape_.heads, 0);
    result.density = select_all(method, [&](const Sample& sample, const BlockLayout<Mem>& layout) {
        attend(sample, layout, out_);
        const auto out =
            Kokkos::subview(out_, Kokkos::make_pair(std::size_t(0), sample.query.extent(0)), Kokkos::ALL, Kokkos::ALL);
        const OutputDifference part = output_difference<Exec, float>(exec_, out, sample.dense);
        for (int h = 0; h < shape_.heads; ++h) {
            result.difference.error[h] += part.error[h];
            result.difference.size[h] += part.size[h];
        }
    });
    return result;
}

template <class Exec>
std::int64_t LayerSamples<Exec>::bytes(const Shape& shape, std::int64_t queries, std::int64_t keys,
                                       std::int64_t most_queries) {
    const std::int64_t rows = (2 * queries + most_queries) * shape.heads + 2 * keys * shape.kv_heads;
    return static_cast<std::int64_t>(sizeof(float)) * (rows * shape.head_dim + most_queries * shape.heads);
}

template class LayerSamples<Kokkos::DefaultExecutionSpace>;

}  // namespace sparseattn
