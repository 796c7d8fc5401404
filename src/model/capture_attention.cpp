#include "sparseattn/model/capture_attention.hpp"

#include <algorithm>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/profiling.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn {
namespace {

// The elements of a strided array, row-major.
template <class Exec, class T>
std::vector<T> packed(const Exec& exec, const HeadsView<const T, typename Exec::memory_space>& heads) {
    const std::int64_t count = static_cast<std::int64_t>(heads.size());
    const std::int64_t rows = heads.extent(1), columns = heads.extent(2);
    const Array1<T, typename Exec::memory_space> flat(
        Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, "SparseAttn::capture"), count);
    Kokkos::parallel_for(
        "SparseAttn::capture", Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, 0, count),
        KOKKOS_LAMBDA(std::int64_t i) { flat(i) = heads(i / columns / rows, i / columns % rows, i % columns); });
    return detail::to_host(exec, flat);
}

}  // namespace

template <class Exec, class T>
CaptureAttention<Exec, T>::CaptureAttention(LayerAttention<Exec, T>& inner, std::vector<int> layers,
                                            std::filesystem::path file)
    : inner_(inner), layers_(std::move(layers)), file_(std::move(file)) {
    require(!layers_.empty(), "layers", "empty", "at least one layer to capture");
}

template <class Exec, class T>
void CaptureAttention<Exec, T>::prepare(const ModelConfig& config, const PassShape& pass) {
    for (const int layer : layers_) {
        require(layer >= 0 && layer < config.num_hidden_layers, "layer to capture", layer,
                concat("in [0, ", config.num_hidden_layers, "), a layer of the model"));
    }
    inner_.prepare(config, pass);
}

template <class Exec, class T>
void CaptureAttention<Exec, T>::forward(const Exec& exec, const LayerInputs<Exec, T>& inputs,
                                        const HeadsView<T, Mem>& out) {
    if (const auto found = std::find(layers_.begin(), layers_.end(), inputs.layer); found != layers_.end()) {
        const Region region("SparseAttn::capture");
        if (!writer_) {
            AttentionFileHeader header;
            header.query_offsets = inputs.sequences.query_offsets();
            header.key_offsets = inputs.sequences.key_offsets();
            writer_.emplace(file_, header);
        }
        const auto& [query, key, value] = inputs.heads;
        const AttentionFileLayer layer{inputs.layer, static_cast<int>(query.extent(1)), static_cast<int>(key.extent(1)),
                                       static_cast<int>(query.extent(2))};
        const std::vector<T> q = packed<Exec, T>(exec, query), k = packed<Exec, T>(exec, key),
                             v = packed<Exec, T>(exec, value);
        writer_->template write_layer<T>(layer, q, k, v);
        layers_.erase(found);
    }
    inner_.forward(exec, inputs, out);
}

template <class Exec, class T>
void CaptureAttention<Exec, T>::backward(const Exec& exec, const LayerInputs<Exec, T>& inputs,
                                         const HeadsView<const T, Mem>& out, const HeadsView<const T, Mem>& dout,
                                         const AttentionGradients<T, Mem>& gradients) {
    inner_.backward(exec, inputs, out, dout, gradients);
}

template <class Exec, class T>
void CaptureAttention<Exec, T>::commit() {
    require(layers_.empty(), "layers to capture", concat(layers_.size(), " not seen yet"),
            "seen by a forward pass before commit()");
    require(writer_.has_value(), "capture", "committed already", "committed once");
    writer_->commit();
    writer_.reset();
}

template class CaptureAttention<Kokkos::DefaultExecutionSpace, float>;
template class CaptureAttention<Kokkos::DefaultExecutionSpace, bf16>;

}  // namespace sparseattn
