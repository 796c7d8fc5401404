#pragma once
/// \file
/// One method for all layers of a model, some options of it from tables with an entry per layer.

#include <optional>
#include <string>

#include "sparseattn/select/selector.hpp"

namespace sparseattn {

/// A selection method as decks and command lines name it: the text of parse_selector, in which two methods may also
/// name a file. `xattention:thresholds=FILE` has a threshold per layer and head (read_xattention_thresholds),
/// `minference:table=FILE` a pattern per layer and head (read_minference_table) and `starting_layer=N`, before which
/// layers are dense.
class ModelSelector {
  public:
    /// Full attention.
    ModelSelector() = default;
    /// Reads text and files. InvalidArgument for text that is wrong, naming the option; FileError for files that are.
    explicit ModelSelector(const std::string& text);

    /// The text that it was made of.
    [[nodiscard]] const std::string& text() const { return text_; }
    /// "xattention", ...
    [[nodiscard]] std::string name() const { return selector_name(common_); }
    /// The options that all layers share.
    [[nodiscard]] const SelectorOptions& common() const { return common_; }
    /// Sets the method's causality. InvalidArgument when the method has no other than causal attention.
    void set_causal(bool causal);

    /// Options of one layer for `heads` query heads. FileError naming the table that has no such layer or other heads.
    [[nodiscard]] SelectorOptions layer(int layer, int heads) const;
    /// The options of every layer of a model; FileError also when a table has another number of layers.
    [[nodiscard]] std::vector<SelectorOptions> layers(int layers, int heads) const;

  private:
    [[nodiscard]] std::size_t table_layers() const;

    std::string text_ = "full";
    SelectorOptions common_;
    std::string file_;  // of the table; empty: none
    std::optional<XAttentionThresholds> thresholds_;
    std::optional<MInferenceTable> table_;
};

}  // namespace sparseattn
