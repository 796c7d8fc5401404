#pragma once
// The parts of sparseattn-search-heads: its samples, and the search of one layer as a JSON document.

#include <nlohmann/json.hpp>
#include <vector>

#include "sparseattn/app/search_program.hpp"
#include "sparseattn/io/attention_file.hpp"
#include "sparseattn/model/head_search.hpp"

namespace sparseattn::detail {

using SearchSamples = LayerSamples<Kokkos::DefaultExecutionSpace>;

// The files of samples, which must agree: layers, heads, causality.
class SearchInput {
  public:
    SearchInput(const SearchArguments& arguments, bool needs_causal);

    [[nodiscard]] const std::vector<AttentionFileLayer>& layers() const { return layers_; }
    [[nodiscard]] bool causal() const { return files_.front().header().causal; }
    [[nodiscard]] SearchSamples::Shape shape(const AttentionFileLayer& layer) const;
    // Adds the layer of every file. FileError for shapes that no attention kernel covers.
    void load(const AttentionFileLayer& layer, SearchSamples& samples) const;

    [[nodiscard]] std::string text() const;
    // Device bytes of the largest layer's samples, and of selection at its longest sample.
    [[nodiscard]] std::int64_t sample_bytes() const;
    [[nodiscard]] std::int64_t selection_bytes(const SelectorOptions& method) const;

  private:
    std::vector<AttentionFileReader> files_;
    std::vector<AttentionFileLayer> layers_;
};

// Either search with all its options checked.
class HeadSearch {
  public:
    // DeckError for what the command line has wrong.
    explicit HeadSearch(const SearchArguments& arguments);

    [[nodiscard]] bool is_minference() const { return minference_.has_value(); }
    [[nodiscard]] SelectorOptions method() const;
    void set_causal(bool causal);
    [[nodiscard]] nlohmann::json options() const;
    // {"layer", "relative_error", "density", "heads": [{"head", "error", "density", ...}]}
    [[nodiscard]] nlohmann::json search(int layer, SearchSamples& samples) const;
    // Writes the table of all layers found; layers that were not searched get the method's default.
    void write_table(const std::filesystem::path& file, const nlohmann::json& layers, int model_layers) const;
    // What was chosen in one layer, in a few words.
    [[nodiscard]] std::string summary(const nlohmann::json& layer) const;

  private:
    std::optional<MInferenceSearch> minference_;
    std::optional<ThresholdSearch> thresholds_;
};

}  // namespace sparseattn::detail
