#include "sparseattn/sparsity/head_masks.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

namespace fs = std::filesystem;

void write_text(const fs::path& path, const std::string& text) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out << text;
    out.close();
    if (!out) throw FileError(concat(path.string(), ": cannot write"));
}

std::string read_text(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in || fs::is_directory(path)) throw FileError(concat(path.string(), ": cannot read"));
    return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    for (std::size_t begin = 0;;) {
        const std::size_t end = text.find(separator, begin);
        parts.push_back(text.substr(begin, end - begin));
        if (end == std::string_view::npos) return parts;
        begin = end + 1;
    }
}

double parse_mask(const fs::path& path, std::size_t line, std::size_t column, std::string_view text) {
    double value = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (status != std::errc() || end != text.data() + text.size() || !(value >= 0.0 && value <= 1.0)) {
        throw FileError(concat(path.string(), ":", line, ": column ", column, " is '", text,
                               "', must be a number between 0 and 1"));
    }
    return value;
}

}  // namespace

fs::path window_sizes_path(fs::path path) {
    if (!path.empty()) path.replace_extension(".json");
    return path;
}

void write_head_masks(const fs::path& path, const HeadMap& masks, const WindowSizes& window) {
    std::string text;
    for (int layer = 0; layer < masks.layers; ++layer) {
        for (int head = 0; head < masks.heads; ++head) {
            const double mask = masks(layer, head);
            require(mask >= 0.0 && mask <= 1.0, concat("masks(", layer, ", ", head, ")"), mask, "between 0 and 1");
            char digits[32];
            const auto end = std::to_chars(std::begin(digits), std::end(digits), mask).ptr;
            text.append(std::begin(digits), end).push_back(head + 1 < masks.heads ? '\t' : '\n');
        }
    }
    write_text(path, text);
    write_text(window_sizes_path(path), nlohmann::json{{"sink", window.sink}, {"local", window.local}}.dump() + "\n");
}

HeadMap read_head_masks(const fs::path& path, int layers, int heads) {
    const std::string text = read_text(path);
    std::vector<std::string_view> lines = split(text, '\n');
    if (lines.back().empty()) lines.pop_back();  // after the last newline
    HeadMap masks(layers, heads);
    for (std::size_t l = 0; l < lines.size(); ++l) {
        if (l == static_cast<std::size_t>(layers)) break;
        std::string_view line = lines[l];
        if (line.ends_with('\r')) line.remove_suffix(1);
        const std::vector<std::string_view> cells = split(line, '\t');
        if (cells.size() != static_cast<std::size_t>(heads)) {
            throw FileError(concat(path.string(), ":", l + 1, ": ", cells.size(), " columns, must be ", heads,
                                   " (one per key/value head)"));
        }
        for (std::size_t h = 0; h < cells.size(); ++h) {
            masks(static_cast<int>(l), static_cast<int>(h)) = parse_mask(path, l + 1, h + 1, cells[h]);
        }
    }
    if (lines.size() != static_cast<std::size_t>(layers)) {
        throw FileError(concat(path.string(), ": ", lines.size(), " rows, must be ", layers, " (one per layer)"));
    }
    return masks;
}

WindowSizes read_window_sizes(const fs::path& path) {
    const fs::path file = window_sizes_path(path);
    const auto json = nlohmann::json::parse(read_text(file), nullptr, false);
    const auto size = [&](const char* key, std::int32_t least) {
        if (!json.is_object() || !json.contains(key) || !json[key].is_number_integer()) {
            throw FileError(concat(file.string(), ": ", key, " is missing, must be a whole number of tokens"));
        }
        const auto value = json[key].get<std::int64_t>();
        if (value < least || value > std::numeric_limits<std::int32_t>::max()) {
            throw FileError(
                concat(file.string(), ": ", key, " is ", value, ", must be at least ", least, " and fit 32 bits"));
        }
        return static_cast<std::int32_t>(value);
    };
    return {size("sink", 0), size("local", 1)};
}

HeadMap round_to_sparsity(const HeadMap& gates, double sparsity) {
    require(sparsity >= 0.0 && sparsity <= 1.0, "sparsity", sparsity, "between 0 and 1");
    const std::size_t count = gates.values.size();
    // A rounding error of 1 - sparsity must not cost a head: 10 heads at 0.9 keep one.
    const auto kept = static_cast<std::size_t>(static_cast<double>(count) * (1.0 - sparsity) + 1e-9);
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return gates.values[a] > gates.values[b]; });
    HeadMap masks(gates.layers, gates.heads);
    for (std::size_t i = 0; i < std::min(kept, count); ++i) masks.values[order[i]] = 1.0;
    return masks;
}

}  // namespace sparseattn
