#include "sparseattn/select/model_selector.hpp"

#include <charconv>
#include <sstream>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

// Takes "key=value" out of "name:key=value,..." and returns the value; nothing when the key is not there.
std::optional<std::string> take_option(std::string& text, const std::string& key) {
    const std::size_t colon = text.find(':');
    if (colon == std::string::npos) return std::nullopt;
    std::istringstream parts(text.substr(colon + 1));
    std::optional<std::string> found;
    std::string rest;
    for (std::string part; std::getline(parts, part, ',');) {
        if (part.rfind(key + "=", 0) != 0) {
            rest += (rest.empty() ? "" : ",") + part;
            continue;
        }
        require(!found, concat("option '", key, "' of ", text.substr(0, colon)), "given twice", "given once");
        found = part.substr(key.size() + 1);
    }
    text = text.substr(0, colon) + (rest.empty() ? "" : ":" + rest);
    return found;
}

}  // namespace

ModelSelector::ModelSelector(const std::string& text) : text_(text) {
    std::string rest = text;
    const std::string name = text.substr(0, text.find(':'));
    if (name == "xattention") {
        if (const auto file = take_option(rest, "thresholds")) {
            file_ = *file;
            thresholds_ = read_xattention_thresholds(file_);
        }
    } else if (name == "minference") {
        const auto start = take_option(rest, "starting_layer");
        if (const auto file = take_option(rest, "table")) {
            file_ = *file;
            table_ = read_minference_table(file_);
        }
        if (start) {
            int first = -1;
            const auto [end, error] = std::from_chars(start->data(), start->data() + start->size(), first);
            require(error == std::errc() && end == start->data() + start->size() && first >= 0,
                    "minference.starting_layer", concat("'", *start, "'"), "a whole number, at least 0");
            require(table_.has_value(), "minference.starting_layer", first, "given with a table");
            table_->starting_layer = first;
        }
    }
    common_ = parse_selector(rest);
}

void ModelSelector::set_causal(bool causal) {
    std::visit(
        [&](auto& method) {
            if constexpr (requires { method.causal; }) {
                method.causal = causal;
            } else {
                require(causal, "method", name(),
                        "one that has attention without causality: full, streaming, xattention");
            }
        },
        common_);
}

std::size_t ModelSelector::table_layers() const {
    return thresholds_ ? thresholds_->layers.size() : table_->layers.size();
}

SelectorOptions ModelSelector::layer(int layer, int heads) const {
    SelectorOptions options = common_;
    try {
        if (thresholds_) std::get<XAttentionOptions>(options).thresholds = thresholds_->layer(layer, heads);
        if (table_) options = table_->layer(layer, heads, std::get<MInferenceOptions>(options));
    } catch (const InvalidArgument& error) {
        throw FileError(concat(file_, ": ", error.what()));
    }
    return options;
}

std::vector<SelectorOptions> ModelSelector::layers(int layers, int heads) const {
    if (!file_.empty() && table_layers() != static_cast<std::size_t>(layers)) {
        throw FileError(concat(file_, ": has ", table_layers(), " layers, must be ", layers, ", those of the model"));
    }
    std::vector<SelectorOptions> all;
    for (int l = 0; l < layers; ++l) all.push_back(layer(l, heads));
    return all;
}

}  // namespace sparseattn
