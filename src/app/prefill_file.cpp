// sparseattn-prefill on a file of attention tensors.
#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "sparseattn/app/detail/prefill_job.hpp"
#include "sparseattn/app/detail/prefill_pictures.hpp"
#include "sparseattn/attention/measures.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/io/attention_file.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/precision.hpp"

namespace sparseattn::detail {
namespace {

using nlohmann::json;

// The group of a method's results.
std::string group_name(const ModelSelector& method) {
    std::string name = method.text();
    std::replace(name.begin(), name.end(), '/', '_');
    return name;
}

StoredLayout stored(const PrefillExec& exec, const BlockLayout<PrefillMem>& layout) {
    const HostLists lists = copy_lists(exec, layout);
    StoredLayout result;
    result.block = layout.grid.block;
    result.causal = layout.causal;
    result.head_list = layout.host_head_list;
    for (const Window& window : layout.host_windows) {
        result.windows.push_back({window.sink, window.local, window.dense_tail});
    }
    result.offsets = lists.offsets;
    result.columns = lists.columns;
    if (layout.has_single_keys()) result.key_offsets = lists.key_offsets;
    result.keys = lists.keys;
    return result;
}

template <class T>
class FileInput : public PrefillInput {
  public:
    FileInput(const PrefillArguments& arguments, std::vector<ModelSelector> methods);

    [[nodiscard]] std::string text() const override;
    [[nodiscard]] json about() const override;
    [[nodiscard]] bool has_model() const override { return false; }
    [[nodiscard]] MemoryParts memory() const override;
    void run(Log& log, const std::function<void(const PrefillComparison&)>& done) override;

  private:
    std::vector<LayerFigures> compare(const AttentionFileLayer& layer, LayerComparison<T>& comparison,
                                      const Sequences<PrefillMem>& sequences,
                                      std::optional<AttentionFileWriter>& writer) const;
    void write(const AttentionFileLayer& layer, const MethodResult<T>& result, AttentionFileWriter& writer) const;

    PrefillArguments arguments_;
    AttentionFileReader reader_;
    std::vector<ModelSelector> methods_;
    std::vector<AttentionFileLayer> layers_;
    std::vector<std::vector<LayerSelector>> selectors_;  // [entry of layers_][method]
    std::optional<PrefillPictures> pictures_;
};

template <class T>
FileInput<T>::FileInput(const PrefillArguments& arguments, std::vector<ModelSelector> methods)
    : arguments_(arguments), reader_(arguments.input), methods_(std::move(methods)) {
    if (arguments.layers.empty()) {
        layers_ = reader_.layers();
    } else {
        for (const int number : parse_index_list(arguments.layers, "command line: --layers", 1 << 20)) {
            layers_.push_back(reader_.find(number));
        }
    }
    std::set<std::string> groups;
    for (ModelSelector& method : methods_) {
        try {
            method.set_causal(reader_.header().causal);
        } catch (const InvalidArgument& error) {
            throw DeckError(concat("command line: ", arguments.input.string(), " is not causal: ", error.what()));
        }
        if (!groups.insert(group_name(method)).second) {
            throw DeckError(concat("command line: --method ", method.text(),
                                   " has the same group of results as another, ", group_name(method)));
        }
    }
    require_enough_keys(reader_);
    std::vector<int> numbers;
    int heads = layers_.front().heads;
    for (const AttentionFileLayer& layer : layers_) {
        numbers.push_back(layer.layer);
        heads = std::min(heads, layer.heads);
        selectors_.push_back(layer_selectors(methods_, layer.layer, layer.heads, arguments.share_groups));
    }
    pictures_.emplace(arguments, numbers, heads);
}

template <class T>
std::string FileInput<T>::text() const {
    const AttentionFileHeader& header = reader_.header();
    const AttentionFileLayer& first = layers_.front();
    return concat(reader_.path().string(), ": ", layers_.size(), layers_.size() == 1 ? " layer, " : " layers, ",
                  header.query_offsets.size() - 1, header.query_offsets.size() == 2 ? " sequence, " : " sequences, ",
                  reader_.queries(), " queries, ", reader_.keys(), " keys, ", first.heads, " query and ",
                  first.kv_heads, " key heads of dimension ", first.head_dim, header.causal ? ", causal" : "",
                  "; precision ", to_string(precision_of<T>));
}

template <class T>
json FileInput<T>::about() const {
    const AttentionFileHeader& header = reader_.header();
    return {{"kind", "attention tensors"},
            {"path", reader_.path().string()},
            {"causal", header.causal},
            {"scale", header.scale ? json(*header.scale) : json()},
            {"precision", to_string(precision_of<T>)},
            {"repeats", arguments_.repeats},
            {"share_groups", arguments_.share_groups}};
}

template <class T>
MemoryParts FileInput<T>::memory() const {
    const std::int64_t queries = reader_.queries(), keys = reader_.keys();
    std::int64_t tensors = 0, comparison = 0;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const AttentionFileLayer& layer = layers_[l];
        const std::int64_t rows = 2 * queries * layer.heads + 2 * keys * layer.kv_heads;
        tensors = std::max(tensors, rows * layer.head_dim * static_cast<std::int64_t>(sizeof(T)));
        comparison = std::max(comparison, LayerComparison<T>::bytes(queries, keys, layer.heads, layer.kv_heads,
                                                                    layer.head_dim, selectors_[l]));
    }
    return {{"query, key, value and output of a layer", tensors}, {"comparison of methods", comparison}};
}

template <class T>
void FileInput<T>::write(const AttentionFileLayer& layer, const MethodResult<T>& result,
                         AttentionFileWriter& writer) const {
    const PrefillExec exec;
    const auto flat = [&]<class V>(V* data, std::size_t count) {
        return to_host(exec, Span1<V, PrefillMem>(data, count));
    };
    const auto& [out, lse] = result.outputs;
    const std::vector<T> host_out = flat(out.data(), out.size());
    const std::vector<float> host_lse = flat(lse.data(), lse.size());
    const ModelSelector& method = methods_[result.method];
    AttentionFileResult<T> stored_result;
    stored_result.method = group_name(method);
    stored_result.selector = method.text();
    stored_result.out = host_out;
    stored_result.lse = host_lse;
    stored_result.layout = stored(exec, result.layout);
    writer.write_result(layer.layer, stored_result);
}

template <class T>
std::vector<LayerFigures> FileInput<T>::compare(const AttentionFileLayer& layer, LayerComparison<T>& comparison,
                                                const Sequences<PrefillMem>& sequences,
                                                std::optional<AttentionFileWriter>& writer) const {
    const PrefillExec exec;
    const auto load = [&](AttentionTensor tensor) {
        const std::vector<float> values = tensor == AttentionTensor::query ? read_scaled_query(reader_, layer.layer)
                                                                           : reader_.read<float>(layer.layer, tensor);
        return to_device(exec, "SparseAttn::prefill." + name(tensor), std::vector<T>(values.begin(), values.end()));
    };
    const auto heads_of = [&](const Array1<T, PrefillMem>& flat, std::int64_t tokens, std::int64_t heads) {
        const std::size_t d = layer.head_dim;
        return HeadsView<T, PrefillMem>(flat.data(), Kokkos::LayoutStride(tokens, heads * d, heads, d, d, 1));
    };
    const auto query = load(AttentionTensor::query), key = load(AttentionTensor::key),
               value = load(AttentionTensor::value);
    const std::int64_t queries = reader_.queries(), keys = reader_.keys();
    const Array1<T, PrefillMem> out("SparseAttn::prefill.out", query.extent(0));
    const auto visit = [&](const MethodResult<T>& result) {
        pictures_->write("", layer.layer, methods_[result.method].text(), sequences, result.layout);
        if (writer) write(layer, result, *writer);
    };
    const std::size_t at = static_cast<std::size_t>(
        std::find_if(layers_.begin(), layers_.end(),
                     [&](const AttentionFileLayer& other) { return other.layer == layer.layer; }) -
        layers_.begin());
    try {
        return comparison.compare(layer.layer, sequences,
                                  {heads_of(query, queries, layer.heads), heads_of(key, keys, layer.kv_heads),
                                   heads_of(value, keys, layer.kv_heads)},
                                  selectors_[at], heads_of(out, queries, layer.heads), visit);
    } catch (const InvalidArgument& error) {  // shapes that no kernel covers
        throw FileError(concat(reader_.path().string(), ": layer ", layer.layer, ": ", error.what()));
    }
}

template <class T>
void FileInput<T>::run(Log& log, const std::function<void(const PrefillComparison&)>& done) {
    const AttentionFileHeader& header = reader_.header();
    const Sequences<PrefillMem> sequences(header.query_offsets, header.key_offsets);
    ComparisonOptions options = comparison_options(arguments_);
    options.causal = header.causal;
    LayerComparison<T> comparison(PrefillExec(), options);
    std::optional<AttentionFileWriter> writer;
    if (!arguments_.output.empty()) writer.emplace(arguments_.output, reader_);

    PrefillComparison result;
    result.title = concat(reader_.queries(), " queries, ", reader_.keys(), " keys");
    result.tokens = reader_.queries();
    result.keys = reader_.keys();
    result.sequences = sequences.count();
    result.sampled_queries = static_cast<std::int64_t>(spaced_queries(sequences, options.sampled_queries).size());
    result.methods = named_figures(methods_);
    for (const AttentionFileLayer& layer : layers_) {
        const std::vector<LayerFigures> figures = compare(layer, comparison, sequences, writer);
        for (std::size_t m = 0; m < figures.size(); ++m) result.methods[m].layers.push_back(figures[m]);
    }
    if (writer) {
        writer->commit();
        log.info(concat("out, lse and layouts written to ", arguments_.output.string()));
    }
    done(result);
}

}  // namespace

std::unique_ptr<PrefillInput> open_prefill_file(const PrefillArguments& arguments, std::vector<ModelSelector> methods) {
    if (arguments.precision == "bf16") return std::make_unique<FileInput<bf16>>(arguments, std::move(methods));
    return std::make_unique<FileInput<float>>(arguments, std::move(methods));
}

}  // namespace sparseattn::detail
