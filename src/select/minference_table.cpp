#include <charconv>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "sparseattn/core/error.hpp"
#include "sparseattn/select/minference.hpp"

namespace sparseattn {
namespace {

using Json = nlohmann::ordered_json;
using Type = MInferencePattern::Type;

const std::vector<std::pair<Type, std::string>> type_names = {{Type::vertical_and_slash, "vertical_and_slash"},
                                                              {Type::stream_llm, "stream_llm"},
                                                              {Type::tri_shape, "tri_shape"},
                                                              {Type::block_sparse, "block_sparse"},
                                                              {Type::dense, "dense"}};

Type parse_type(const Json& value, const std::string& where) {
    for (const auto& [type, name] : type_names) {
        if (value.is_string() && value.get<std::string>() == name) return type;
    }
    throw FileError(concat(where, ": type is ", value.dump(),
                           ", must be vertical_and_slash, stream_llm, tri_shape, block_sparse or dense"));
}

int parse_size(const Json& value, const char* name, const std::string& where) {
    if (value.is_number_integer() && value.get<std::int64_t>() >= 0 && value.get<std::int64_t>() <= 1 << 30) {
        return value.get<int>();
    }
    throw FileError(concat(where, ": ", name, " is ", value.dump(), ", must be a whole number, 0..", 1 << 30));
}

MInferencePattern parse_pattern(const Json& entry, const std::string& where) {
    if (!entry.is_array() || entry.size() != 4) {
        throw FileError(concat(where, ": is ", entry.dump(), ", must be [type, first_size, second_size, score]"));
    }
    if (!entry[3].is_number()) throw FileError(concat(where, ": score is ", entry[3].dump(), ", must be a number"));
    return {parse_type(entry[0], where), parse_size(entry[1], "first_size", where),
            parse_size(entry[2], "second_size", where), entry[3].get<double>()};
}

int parse_head(const std::string& text, const std::string& where) {
    const bool digits = !text.empty() && text.size() < 7 && text.find_first_not_of("0123456789") == std::string::npos;
    if (!digits) throw FileError(concat(where, ": head is '", text, "', must be a whole number"));
    return std::stoi(text);
}

}  // namespace

std::string name(Type type) {
    for (const auto& [candidate, text] : type_names) {
        if (candidate == type) return text;
    }
    return "";
}

MInferencePattern parse_minference_pattern(const std::string& text) {
    const std::size_t colon = text.find(':');
    MInferencePattern pattern;
    bool known = false;
    for (const auto& [type, spelling] : type_names) {
        if (text.substr(0, colon) != spelling) continue;
        pattern.type = type;
        known = true;
    }
    require(known, "pattern", concat("'", text, "'"),
            "TYPE:FIRST,SECOND with type vertical_and_slash, stream_llm, tri_shape, block_sparse or dense");
    if (colon == std::string::npos) {
        require(pattern.type == Type::block_sparse || pattern.type == Type::dense, "pattern", concat("'", text, "'"),
                "TYPE:FIRST,SECOND");
        return pattern;
    }
    const char* end = text.data() + text.size();
    const auto first = std::from_chars(text.data() + colon + 1, end, pattern.first);
    const bool comma = first.ec == std::errc() && first.ptr != end && *first.ptr == ',';
    const auto second = std::from_chars(comma ? first.ptr + 1 : end, end, pattern.second);
    require(comma && second.ec == std::errc() && second.ptr == end && pattern.first >= 0 && pattern.second >= 0,
            "sizes of a pattern", concat("'", text.substr(colon + 1), "'"),
            "two whole numbers FIRST,SECOND, at least 0");
    return pattern;
}

MInferenceTable read_minference_table(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw FileError(concat(path, ": cannot be opened for reading"));
    Json json;
    try {
        json = Json::parse(file);
    } catch (const Json::exception& error) {
        throw FileError(concat(path, ": is no JSON: ", error.what()));
    }
    if (!json.is_array() || json.empty()) {
        throw FileError(concat(path, ": must be a list with one object for each layer"));
    }
    MInferenceTable table;
    for (std::size_t l = 0; l < json.size(); ++l) {
        const std::string where = concat(path, ", layer ", l);
        if (!json[l].is_object()) {
            throw FileError(concat(where, ": is ", json[l].type_name(), ", must be an object {\"head\": pattern}"));
        }
        table.layers.emplace_back();
        for (const auto& [head, entry] : json[l].items()) {
            const int number = parse_head(head, where);
            if (!table.layers.back().emplace(number, parse_pattern(entry, concat(where, ", head ", head))).second) {
                throw FileError(concat(where, ": head ", number, " is given twice"));
            }
        }
    }
    return table;
}

void write_minference_table(const std::string& path, const MInferenceTable& table) {
    Json json = Json::array();
    for (const auto& layer : table.layers) {
        Json object = Json::object();
        for (const auto& [head, pattern] : layer) {
            object[std::to_string(head)] =
                Json::array({name(pattern.type), pattern.first, pattern.second, pattern.score});
        }
        json.push_back(object);
    }
    std::ofstream file(path);
    file << json.dump(1) << '\n';
    file.close();
    if (!file) throw FileError(concat(path, ": cannot be written"));
}

void MInferenceOptions::validate() const {
    require(block == 64 || block == 128, "minference.block", block, "64 or 128");
    require(size_ratio > 0 && std::isfinite(size_ratio), "minference.size_ratio", size_ratio, "above 0 and finite");
    require(!adaptive_budget || (*adaptive_budget > 0 && std::isfinite(*adaptive_budget)), "minference.adaptive_budget",
            adaptive_budget.value_or(0), "above 0 and finite");
    require(block_sparse_blocks >= 1, "minference.block_sparse_blocks", block_sparse_blocks, "at least 1");
    require(tri_shape_tail >= 0, "minference.tri_shape_tail", tri_shape_tail, "at least 0");
    for (std::size_t h = 0; h < heads.size(); ++h) {
        const bool streams = heads[h].type == Type::stream_llm || heads[h].type == Type::tri_shape;
        require(heads[h].first >= 0, concat("minference.heads[", h, "].first"), heads[h].first, "at least 0");
        require(heads[h].second >= (streams ? 1 : 0), concat("minference.heads[", h, "].second"), heads[h].second,
                streams ? "at least 1, the local tokens" : "at least 0");
    }
}

MInferenceOptions MInferenceTable::layer(int layer, int heads, MInferenceOptions options) const {
    require(layer >= 0 && layer < static_cast<int>(layers.size()), "layer", layer,
            concat("one of the ", layers.size(), " layers of the table"));
    options.heads.assign(heads, {});
    for (const auto& [head, pattern] : layers[layer]) {
        require(head < heads, concat("head of layer ", layer, " of the table"), head,
                concat("a query head, 0..", heads - 1));
        options.heads[head] = pattern;
    }
    if (layer < starting_layer) {
        for (MInferencePattern& pattern : options.heads) pattern.type = Type::dense;
    }
    return options;
}

}  // namespace sparseattn
