#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/attention_file.hpp"
#include "sparseattn/io/detail/attention_format.hpp"
#include "sparseattn/io/detail/h5_array.hpp"

namespace sparseattn {
namespace detail {

std::string attention_group(int layer) {
    char group[24];
    std::snprintf(group, sizeof group, "/layer_%04d", layer);
    return group;
}

}  // namespace detail

namespace {

using detail::h5::Array;
using detail::h5::File;

constexpr std::int64_t most_tokens = std::numeric_limits<std::int32_t>::max();

[[noreturn]] void fail(const File& file, const std::string& object, const std::string& what) {
    throw FileError(concat(file.path().string(), ": ", object, " ", what));
}

std::string text(const std::vector<std::int64_t>& shape) {
    std::string joined;
    for (const std::int64_t extent : shape) joined += (joined.empty() ? "[" : ", ") + std::to_string(extent);
    return (joined.empty() ? "[" : joined) + "]";
}

// "/layer_0007" -> 7; none for any other name.
std::optional<int> layer_number(const File& file, const std::string& name) {
    const std::string prefix = "/layer_";
    if (!name.starts_with(prefix)) return std::nullopt;
    int number = 0;
    const char* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, number);
    if (error != std::errc() || stop != end || detail::attention_group(number) != name) {
        fail(file, name, "is no layer's name, must be layer_ and the number with four digits, e.g. layer_0007");
    }
    return number;
}

// A group's place, and whether the tensors lie in the root.
std::string tensor_name(const std::string& group, AttentionTensor tensor) {
    return group + "/" + name(tensor);
}

Array open_tensor(const File& file, const std::string& dataset, std::size_t rank, const char* shape) {
    Array array = Array::open(file, dataset);
    if (!array.is_floating()) {
        fail(file, dataset, concat("is ", array.type_name(), ", must be float16, bfloat16, float32 or float64"));
    }
    if (array.shape().size() != rank) {
        fail(file, dataset, concat("has shape ", text(array.shape()), ", must be ", shape));
    }
    for (const std::int64_t extent : array.shape()) {
        if (extent < 1 || extent > most_tokens) {
            fail(file, dataset,
                 concat("has shape ", text(array.shape()), ", every extent must be in [1, ", most_tokens, "]"));
        }
    }
    return array;
}

struct Shapes {
    AttentionFileLayer layer;
    std::int64_t queries;
    std::int64_t keys;
};

Shapes layer_shapes(const File& file, int number, const std::string& group) {
    const Array query = open_tensor(file, tensor_name(group, AttentionTensor::query), 3, "[queries, heads, dimension]");
    const std::string key_name = tensor_name(group, AttentionTensor::key);
    const Array key = open_tensor(file, key_name, 3, "[keys, key heads, dimension]");
    const std::string value_name = tensor_name(group, AttentionTensor::value);
    const Array value = open_tensor(file, value_name, 3, "[keys, key heads, dimension]");
    const auto &q = query.shape(), &k = key.shape();
    if (k[2] != q[2]) {
        fail(file, key_name, concat("has shape ", text(k), ", its last extent must be that of the query, ", q[2]));
    }
    if (q[1] % k[1] != 0) {
        fail(file, key_name, concat("has ", k[1], " heads, must have a divisor of the query's ", q[1]));
    }
    if (value.shape() != k) {
        fail(file, value_name, concat("has shape ", text(value.shape()), ", must be that of the key, ", text(k)));
    }
    return {{number, static_cast<int>(q[1]), static_cast<int>(k[1]), static_cast<int>(q[2])}, q[0], k[0]};
}

std::vector<std::int32_t> read_offsets(const File& file, const std::string& dataset, std::int64_t tokens) {
    const Array array = Array::open(file, dataset);
    if (!array.is_integer()) fail(file, dataset, concat("is ", array.type_name(), ", must be int32"));
    if (array.shape().size() != 1 || array.shape()[0] < 2) {
        fail(file, dataset, concat("has shape ", text(array.shape()), ", must be [sequences + 1], at least [2]"));
    }
    std::vector<std::int64_t> wide(static_cast<std::size_t>(array.shape()[0]));
    array.read_rows(0, array.shape()[0], wide.data());
    if (wide.front() != 0) fail(file, dataset, concat("starts at ", wide.front(), ", must start at 0"));
    for (std::size_t i = 1; i < wide.size(); ++i) {
        if (wide[i] < wide[i - 1]) {
            fail(file, dataset,
                 concat("entry ", i, " is ", wide[i], ", must be at least the one before, ", wide[i - 1]));
        }
    }
    if (wide.back() != tokens) {
        fail(file, dataset, concat("ends at ", wide.back(), ", must be the number of tokens, ", tokens));
    }
    return std::vector<std::int32_t>(wide.begin(), wide.end());
}

AttentionFileHeader read_header(const File& file, const Shapes& shapes) {
    AttentionFileHeader header;
    const bool has_queries = file.has("/query_offsets"), has_keys = file.has("/key_offsets");
    const auto one = [](std::int64_t tokens) {
        return std::vector<std::int32_t>{0, static_cast<std::int32_t>(tokens)};
    };
    header.query_offsets = has_queries ? read_offsets(file, "/query_offsets", shapes.queries) : one(shapes.queries);
    if (has_keys) {
        header.key_offsets = read_offsets(file, "/key_offsets", shapes.keys);
    } else if (shapes.keys == shapes.queries) {
        header.key_offsets = header.query_offsets;
    } else {
        header.key_offsets = one(shapes.keys);
    }
    const std::size_t entries = header.query_offsets.size();
    if (header.key_offsets.size() != entries) {
        fail(file, "/key_offsets",
             has_keys
                 ? concat("has ", header.key_offsets.size(), " entries, must have as many as /query_offsets, ", entries)
                 : concat("is missing, must be there: /query_offsets has ", entries, " entries and tokens differ"));
    }
    if (file.has_attribute("/", "causal")) header.causal = file.flag_attribute("/", "causal");
    if (file.has_attribute("/", "scale")) {
        header.scale = file.number_attribute("/", "scale");
        if (!(*header.scale > 0) || !std::isfinite(*header.scale)) {
            fail(file, "/@scale", concat("is ", *header.scale, ", must be positive and finite"));
        }
    }
    return header;
}

void check_format(const File& file) {
    const std::string format = file.has_attribute("/", "format") ? file.text_attribute("/", "format") : "";
    if (format != detail::attention_format) {
        fail(file, "/@format",
             concat(format.empty() ? "is missing" : "is '" + format + "'", ", must be '", detail::attention_format,
                    "'"));
    }
    const std::int64_t version = file.integer_attribute("/", "version");
    if (version < 1 || version > detail::attention_format_version) {
        fail(file, "/@version", concat("is ", version, ", must be 1 to ", detail::attention_format_version));
    }
}

// Where each layer's tensors lie, by number.
std::vector<std::pair<int, std::string>> find_groups(const File& file) {
    std::vector<std::pair<int, std::string>> groups;
    for (const std::string& link : detail::h5::links(file, "/")) {
        const std::string group = concat("/", link);
        if (const std::optional<int> number = layer_number(file, group)) groups.emplace_back(*number, group);
    }
    if (file.has("/query")) {
        if (!groups.empty()) {
            fail(file, "/query",
                 concat("and ", groups[0].second, " are both there, must be one of them: the tensors of ",
                        "one layer in the root or each layer in its group"));
        }
        groups.emplace_back(0, "");
    }
    if (groups.empty()) fail(file, "/", "has no layer, must have /query, /key, /value or groups /layer_0000, ...");
    std::sort(groups.begin(), groups.end());
    return groups;
}

template <class T>
void check_finite(const File& file, const std::string& dataset, const std::vector<T>& values, int heads, int dim) {
    const auto bad = std::find_if(values.begin(), values.end(), [](T value) { return !std::isfinite(float(value)); });
    if (bad == values.end()) return;
    const std::int64_t at = bad - values.begin();
    const std::string element = concat(dataset, "[", at / dim / heads, ", ", at / dim % heads, ", ", at % dim, "]");
    fail(file, element, concat("is ", float(*bad), ", must be finite in ", sparseattn::name(dtype_of<T>)));
}

}  // namespace

std::string name(AttentionTensor tensor) {
    switch (tensor) {
        case AttentionTensor::query:
            return "query";
        case AttentionTensor::key:
            return "key";
        case AttentionTensor::value:
            break;
    }
    return "value";
}

struct AttentionFileReader::State {
    std::unique_ptr<File> file;
    AttentionFileHeader header;
    std::vector<AttentionFileLayer> layers;
    std::vector<std::string> groups;  // of each layer
};

AttentionFileReader::AttentionFileReader(const std::filesystem::path& path) : state_(std::make_unique<State>()) {
    state_->file = File::open(path);
    const File& file = *state_->file;
    check_format(file);
    std::optional<Shapes> first;
    for (const auto& [number, group] : find_groups(file)) {
        const Shapes shapes = layer_shapes(file, number, group);
        if (!first) first = shapes;
        if (shapes.queries != first->queries || shapes.keys != first->keys) {
            const bool query = shapes.queries != first->queries;
            fail(file, tensor_name(group, query ? AttentionTensor::query : AttentionTensor::key),
                 concat("has ", query ? shapes.queries : shapes.keys, " tokens, must have those of the first layer, ",
                        query ? first->queries : first->keys));
        }
        state_->layers.push_back(shapes.layer);
        state_->groups.push_back(group);
    }
    state_->header = read_header(file, *first);
}

AttentionFileReader::~AttentionFileReader() = default;
AttentionFileReader::AttentionFileReader(AttentionFileReader&&) noexcept = default;
AttentionFileReader& AttentionFileReader::operator=(AttentionFileReader&&) noexcept = default;

const std::filesystem::path& AttentionFileReader::path() const {
    return state_->file->path();
}

const AttentionFileHeader& AttentionFileReader::header() const {
    return state_->header;
}

const std::vector<AttentionFileLayer>& AttentionFileReader::layers() const {
    return state_->layers;
}

const AttentionFileLayer& AttentionFileReader::find(int layer) const {
    std::string known;
    for (const AttentionFileLayer& candidate : layers()) {
        if (candidate.layer == layer) return candidate;
        known += (known.empty() ? "" : ", ") + std::to_string(candidate.layer);
    }
    throw FileError(concat(path().string(), ": has no layer ", layer, ", must be one of ", known));
}

std::vector<float> read_scaled_query(const AttentionFileReader& file, int layer) {
    std::vector<float> query = file.read<float>(layer, AttentionTensor::query);
    if (const auto scale = file.header().scale) {
        const auto factor = static_cast<float>(*scale * std::sqrt(static_cast<double>(file.find(layer).head_dim)));
        for (float& value : query) value *= factor;
    }
    return query;
}

void require_enough_keys(const AttentionFileReader& file) {
    const AttentionFileHeader& header = file.header();
    for (std::size_t s = 0; header.causal && s + 1 < header.query_offsets.size(); ++s) {
        const int queries = header.query_offsets[s + 1] - header.query_offsets[s];
        const int keys = header.key_offsets[s + 1] - header.key_offsets[s];
        if (keys < queries) {
            throw FileError(concat(file.path().string(), ": sequence ", s, " has ", keys, " keys for ", queries,
                                   " queries, must have at least as many keys as queries"));
        }
    }
}

template <class T>
std::vector<T> AttentionFileReader::read(int layer, AttentionTensor tensor) const {
    const AttentionFileLayer& shape = find(layer);
    const std::string dataset = tensor_name(state_->groups[static_cast<std::size_t>(&shape - layers().data())], tensor);
    const bool query = tensor == AttentionTensor::query;
    const std::int64_t tokens = query ? queries() : keys();
    const int heads = query ? shape.heads : shape.kv_heads;
    std::vector<T> values(static_cast<std::size_t>(tokens * heads * shape.head_dim));
    Array::open(*state_->file, dataset).read_rows(0, tokens, values.data());
    check_finite(*state_->file, dataset, values, heads, shape.head_dim);
    return values;
}

template std::vector<float> AttentionFileReader::read<float>(int, AttentionTensor) const;
template std::vector<bf16> AttentionFileReader::read<bf16>(int, AttentionTensor) const;

}  // namespace sparseattn
