#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "sparseattn/core/error.hpp"
#include "sparseattn/select/xattention.hpp"

namespace sparseattn {
namespace {

std::vector<double> read_row(const std::string& line, const std::string& where) {
    std::vector<double> row;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
        std::size_t used = 0;
        double value = std::numeric_limits<double>::quiet_NaN();
        try {
            value = std::stod(word, &used);
        } catch (const std::exception&) {
            used = 0;
        }
        if (used != word.size() || !std::isfinite(value) || value <= 0) {
            throw FileError(
                concat(where, ": threshold of head ", row.size(), " is '", word, "', must be a finite number above 0"));
        }
        row.push_back(value);
    }
    return row;
}

// The shortest text that reads back the same.
std::string shortest(double value) {
    char text[32];
    return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

}  // namespace

const std::vector<double>& XAttentionThresholds::layer(int layer, int heads) const {
    require(layer >= 0 && layer < static_cast<int>(layers.size()), "layer", layer,
            concat("one of the ", layers.size(), " layers of the thresholds"));
    require(static_cast<int>(layers[layer].size()) == heads, concat("thresholds of layer ", layer),
            layers[layer].size(), concat(heads, ", the number of query heads"));
    return layers[layer];
}

XAttentionThresholds read_xattention_thresholds(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw FileError(concat(path, ": cannot be opened for reading"));
    XAttentionThresholds thresholds;
    int number = 0;
    for (std::string line; std::getline(file, line);) {
        ++number;
        const std::size_t first = line.find_first_not_of(" \t\r");
        if (first == std::string::npos || line[first] == '#') continue;
        const std::string where = concat(path, ":", number);
        thresholds.layers.push_back(read_row(line, where));
        const std::size_t heads = thresholds.layers.front().size();
        if (thresholds.layers.back().size() != heads) {
            throw FileError(concat(where, ": the line has ", thresholds.layers.back().size(), " thresholds, must be ",
                                   heads, " as in the first layer"));
        }
    }
    if (file.bad()) throw FileError(concat(path, ": cannot be read"));
    if (thresholds.layers.empty()) throw FileError(concat(path, ": no thresholds, must be one line for each layer"));
    return thresholds;
}

void write_xattention_thresholds(const std::string& path, const XAttentionThresholds& thresholds) {
    std::ofstream file(path);
    file << "# XAttention thresholds: one line a layer, one column a query head\n";
    for (const std::vector<double>& layer : thresholds.layers) {
        for (std::size_t h = 0; h < layer.size(); ++h) file << (h == 0 ? "" : "\t") << shortest(layer[h]);
        file << '\n';
    }
    file.close();
    if (!file) throw FileError(concat(path, ": cannot be written"));
}

}  // namespace sparseattn
