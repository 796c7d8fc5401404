// The samples of sparseattn-search-heads.
#include <algorithm>
#include <cmath>

#include "sparseattn/app/detail/search_job.hpp"
#include "sparseattn/app/text.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn::detail {
namespace {

std::string text_of(const AttentionFileLayer& layer) {
    return concat(layer.heads, " query and ", layer.kv_heads, " key heads of dimension ", layer.head_dim);
}

void check_causality(const AttentionFileReader& file, bool wanted, const std::string& why) {
    if (file.header().causal == wanted) return;
    throw FileError(concat(file.path().string(), ": /@causal is ", !wanted, ", must be ", wanted, why));
}

}  // namespace

SearchInput::SearchInput(const SearchArguments& arguments, bool needs_causal) {
    for (const std::filesystem::path& path : arguments.inputs) files_.emplace_back(path);
    const AttentionFileReader& first = files_.front();
    if (arguments.layers.empty()) {
        layers_ = first.layers();
    } else {
        for (const int number : parse_index_list(arguments.layers, "command line: --layers", 1 << 20)) {
            layers_.push_back(first.find(number));
        }
    }
    for (const AttentionFileReader& file : files_) {
        check_causality(file, first.header().causal, " as in " + first.path().string());
        if (needs_causal) check_causality(file, true, " for minference");
        require_enough_keys(file);
        for (const AttentionFileLayer& layer : layers_) {
            const AttentionFileLayer& mine = file.find(layer.layer);
            if (mine.heads != layer.heads || mine.kv_heads != layer.kv_heads || mine.head_dim != layer.head_dim) {
                throw FileError(concat(file.path().string(), ": layer ", layer.layer, " has ", text_of(mine),
                                       ", must have ", text_of(layer), " as in ", first.path().string()));
            }
        }
    }
}

SearchSamples::Shape SearchInput::shape(const AttentionFileLayer& layer) const {
    return {layer.heads, layer.kv_heads, layer.head_dim, causal()};
}

void SearchInput::load(const AttentionFileLayer& layer, SearchSamples& samples) const {
    for (const AttentionFileReader& file : files_) {
        const LayerTensors tensors{
            file.header().query_offsets, file.header().key_offsets, read_scaled_query(file, layer.layer),
            file.read<float>(layer.layer, AttentionTensor::key), file.read<float>(layer.layer, AttentionTensor::value)};
        try {
            samples.add(tensors);
        } catch (const InvalidArgument& error) {
            throw FileError(concat(file.path().string(), ": layer ", layer.layer, ": ", error.what()));
        }
    }
}

std::string SearchInput::text() const {
    std::int64_t queries = 0;
    for (const AttentionFileReader& file : files_) queries += file.queries();
    return concat(files_.size(), files_.size() == 1 ? " sample, " : " samples, ", queries, " queries; ", layers_.size(),
                  layers_.size() == 1 ? " layer, " : " layers, ", text_of(layers_.front()));
}

std::int64_t SearchInput::sample_bytes() const {
    std::int64_t queries = 0, keys = 0, most = 0, largest = 0;
    for (const AttentionFileReader& file : files_) {
        queries += file.queries();
        keys += file.keys();
        most = std::max(most, file.queries());
    }
    for (const AttentionFileLayer& layer : layers_) {
        largest = std::max(largest, SearchSamples::bytes(shape(layer), queries, keys, most));
    }
    return largest;
}

std::int64_t SearchInput::selection_bytes(const SelectorOptions& method) const {
    std::size_t largest = 0;
    for (const AttentionFileReader& file : files_) {
        const Sequences<SearchSamples::Mem> sequences(file.header().query_offsets, file.header().key_offsets);
        for (const AttentionFileLayer& layer : layers_) {
            largest = std::max(largest, sparseattn::selection_bytes<Kokkos::DefaultExecutionSpace, float>(
                                            sequences, layer.heads, layer.kv_heads, layer.head_dim, method));
        }
    }
    return static_cast<std::int64_t>(largest);
}

}  // namespace sparseattn::detail
