#include "sparseattn/app/detail/prefill_pictures.hpp"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <numeric>

#include "sparseattn/app/text.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/io/files.hpp"
#include "sparseattn/layout/picture.hpp"

namespace sparseattn::detail {
namespace {

// Letters, digits, '.' and '-' stay.
std::string file_name(std::string text) {
    std::replace_if(
        text.begin(), text.end(),
        [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '-'; }, '_');
    return text;
}

std::string layer_name(int layer) {
    char text[24];
    std::snprintf(text, sizeof text, "layer_%04d", layer);
    return text;
}

}  // namespace

PrefillPictures::PrefillPictures(const PrefillArguments& arguments, const std::vector<int>& layers, int heads)
    : folder_(arguments.pictures), layers_(layers), heads_(heads) {
    std::iota(heads_.begin(), heads_.end(), 0);
    if (!arguments.picture_heads.empty()) {
        heads_ = parse_index_list(arguments.picture_heads, "command line: --picture-heads", heads);
    }
    if (arguments.picture_layers.empty()) return;
    layers_ = parse_index_list(arguments.picture_layers, "command line: --picture-layers", layers.back() + 1);
    for (const int layer : layers_) {
        if (!std::binary_search(layers.begin(), layers.end(), layer)) {
            throw DeckError(concat("command line: --picture-layers has ", layer, ", must be layers that are compared"));
        }
    }
}

void PrefillPictures::write(const std::string& what, int layer, const std::string& method,
                            const Sequences<PrefillMem>& sequences, const BlockLayout<PrefillMem>& layout) const {
    if (folder_.empty() || !std::binary_search(layers_.begin(), layers_.end(), layer)) return;
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) throw FileError(concat(folder_.string(), ": cannot be made: ", error.message()));
    const std::string name = concat(what, what.empty() ? "" : "_", layer_name(layer), '_', method);
    const std::string title = concat(method, ", layer ", layer, what.empty() ? "" : ", ", what);
    const auto maps = density_maps(PrefillExec(), sequences, layout, heads_);
    write_file_atomically(folder_ / (file_name(name) + ".svg"), svg_picture(title, maps));
}

}  // namespace sparseattn::detail
