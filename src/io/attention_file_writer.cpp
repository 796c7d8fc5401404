#include <algorithm>
#include <cmath>
#include <numeric>
#include <system_error>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/attention_file.hpp"
#include "sparseattn/io/detail/attention_format.hpp"
#include "sparseattn/io/detail/h5_array.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace {

using detail::h5::Array;
using detail::h5::File;

void check_offsets(const char* name, const std::vector<std::int32_t>& offsets) {
    require(offsets.size() >= 2, concat("number of ", name), offsets.size(), "sequences + 1, at least 2");
    require(offsets.front() == 0, concat(name, "[0]"), offsets.front(), "0");
    for (std::size_t i = 1; i < offsets.size(); ++i) {
        require(offsets[i] >= offsets[i - 1], concat(name, "[", i, "]"), offsets[i],
                concat("at least the one before, ", offsets[i - 1]));
    }
    require(offsets.back() >= 1, concat("last of ", name), offsets.back(), "at least 1");
}

void check_header(const AttentionFileHeader& header) {
    check_offsets("query_offsets", header.query_offsets);
    check_offsets("key_offsets", header.key_offsets);
    require(header.key_offsets.size() == header.query_offsets.size(), "number of key_offsets",
            header.key_offsets.size(), concat("that of query_offsets, ", header.query_offsets.size()));
    const double scale = header.scale.value_or(1);
    require(scale > 0 && std::isfinite(scale), "scale", scale, "positive and finite");
}

template <class T>
void write_array(File& file, const std::string& name, const std::vector<std::int64_t>& shape, std::span<const T> data) {
    const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t(1), std::multiplies<>());
    require(static_cast<std::int64_t>(data.size()) == count, concat("size of ", name), data.size(), concat(count));
    Array::create(file, name, dtype_of<T>, shape).write(data.data());
}

template <class T>
void write_list(File& file, const std::string& name, const std::vector<T>& values) {
    write_array(file, name, {static_cast<std::int64_t>(values.size())}, std::span<const T>(values));
}

void write_layout(File& file, const std::string& group, const StoredLayout& layout, int heads) {
    const auto count = static_cast<std::size_t>(heads);
    require(layout.block >= 1, "layout.block", layout.block, "at least 1");
    require(layout.head_list.size() == count, "size of layout.head_list", layout.head_list.size(), concat(heads));
    require(layout.windows.size() == count, "size of layout.windows", layout.windows.size(), concat(heads));
    require(!layout.offsets.empty() && layout.offsets.back() == static_cast<std::int64_t>(layout.columns.size()),
            "size of layout.columns", layout.columns.size(), "the last of layout.offsets");
    file.make_group(group);
    file.write_attribute(group, "block", std::int64_t(layout.block));
    file.write_attribute(group, "causal", std::int64_t(layout.causal));
    write_list(file, group + "/head_list", layout.head_list);
    const std::span<const std::int32_t> windows(layout.windows.data()->data(), 3 * count);
    write_array(file, group + "/windows", {heads, 3}, windows);
    write_list(file, group + "/offsets", layout.offsets);
    write_list(file, group + "/columns", layout.columns);
    write_list(file, group + "/key_offsets", layout.key_offsets);
    write_list(file, group + "/keys", layout.keys);
}

}  // namespace

struct AttentionFileWriter::State {
    std::filesystem::path target;
    PendingFile pending;
    std::unique_ptr<File> file;  // none after commit
    std::int64_t queries = 0;
    std::int64_t keys = 0;
    bool extends = false;
    std::vector<std::pair<AttentionFileLayer, std::string>> layers;  // with their groups

    explicit State(const std::filesystem::path& path) : target(path), pending(path) {}

    // What HDF5 reports names the pending file, which the user never sees.
    template <class Write>
    void write(const Write& write_to) {
        require(file != nullptr, "AttentionFileWriter", "committed", "used before commit()");
        try {
            write_to(*file);
        } catch (const FileError& error) {
            std::string message = error.what();
            const std::string hidden = pending.path().string();
            const std::size_t at = message.find(hidden);
            if (at != std::string::npos) message.replace(at, hidden.size(), target.string());
            throw FileError(message);
        }
    }
};

AttentionFileWriter::AttentionFileWriter(const std::filesystem::path& target, const AttentionFileHeader& header)
    : state_(std::make_unique<State>(target)) {
    check_header(header);
    state_->queries = header.query_offsets.back();
    state_->keys = header.key_offsets.back();
    state_->file = File::create(state_->pending.path());
    state_->write([&](File& file) {
        file.write_attribute("/", "format", std::string(detail::attention_format));
        file.write_attribute("/", "version", detail::attention_format_version);
        file.write_attribute("/", "causal", std::int64_t(header.causal));
        if (header.scale) file.write_attribute("/", "scale", *header.scale);
        write_list(file, "/query_offsets", header.query_offsets);
        write_list(file, "/key_offsets", header.key_offsets);
    });
}

AttentionFileWriter::AttentionFileWriter(const std::filesystem::path& target, const AttentionFileReader& source)
    : state_(std::make_unique<State>(target)) {
    std::error_code error;
    std::filesystem::copy_file(source.path(), state_->pending.path(), error);
    if (error) {
        throw FileError(
            concat(target.string(), ": cannot be made from ", source.path().string(), ": ", error.message()));
    }
    state_->queries = source.queries();
    state_->keys = source.keys();
    state_->extends = true;
    state_->file = File::open_to_extend(state_->pending.path());
    for (const AttentionFileLayer& layer : source.layers()) {
        state_->layers.emplace_back(layer, state_->file->has("/query") ? "" : detail::attention_group(layer.layer));
    }
}

AttentionFileWriter::~AttentionFileWriter() = default;
AttentionFileWriter::AttentionFileWriter(AttentionFileWriter&&) noexcept = default;
AttentionFileWriter& AttentionFileWriter::operator=(AttentionFileWriter&&) noexcept = default;

template <class T>
void AttentionFileWriter::write_layer(const AttentionFileLayer& layer, std::span<const T> query, std::span<const T> key,
                                      std::span<const T> value) {
    require(!state_->extends, "AttentionFileWriter", "adding to a file", "of a new file, to write layers");
    require(layer.layer >= 0, "layer", layer.layer, "at least 0");
    require(layer.heads >= 1, "heads", layer.heads, "at least 1");
    require(layer.kv_heads >= 1 && layer.heads % layer.kv_heads == 0, "kv_heads", layer.kv_heads,
            concat("a divisor of heads, ", layer.heads));
    require(layer.head_dim >= 1, "head_dim", layer.head_dim, "at least 1");
    for (const auto& [written, group] : state_->layers) {
        require(written.layer != layer.layer, "layer", layer.layer, "one that is not written yet");
    }
    const std::string group = detail::attention_group(layer.layer);
    state_->write([&](File& file) {
        file.make_group(group);
        write_array(file, group + "/query", {state_->queries, layer.heads, layer.head_dim}, query);
        write_array(file, group + "/key", {state_->keys, layer.kv_heads, layer.head_dim}, key);
        write_array(file, group + "/value", {state_->keys, layer.kv_heads, layer.head_dim}, value);
    });
    state_->layers.emplace_back(layer, group);
}

template <class T>
void AttentionFileWriter::write_result(int layer, const AttentionFileResult<T>& result) {
    const auto at = std::find_if(state_->layers.begin(), state_->layers.end(),
                                 [&](const auto& entry) { return entry.first.layer == layer; });
    require(at != state_->layers.end(), "layer", layer, "one of the file's layers");
    const std::string& method = result.method;
    require(!method.empty() && method[0] != '.' && method.find('/') == std::string::npos && method != "query" &&
                method != "key" && method != "value" && method != "query_offsets" && method != "key_offsets" &&
                !method.starts_with("layer_"),
            "method", method.empty() ? "''" : method, "a name without '/' that no tensor of the file has");
    const AttentionFileLayer& shape = at->first;
    const std::string& group = at->second;
    state_->write([&](File& file) {
        const std::string place = group + "/" + method;
        if (file.has(place)) file.remove(place);
        file.make_group(place);
        file.write_attribute(place, "selector", result.selector);
        write_array(file, place + "/out", {state_->queries, shape.heads, shape.head_dim}, result.out);
        write_array(file, place + "/lse", {state_->queries, shape.heads}, result.lse);
        write_layout(file, place + "/layout", result.layout, shape.heads);
    });
}

void AttentionFileWriter::commit() {
    state_->write([](File& file) { file.close(); });
    state_->file.reset();
    state_->pending.commit();
}

template void AttentionFileWriter::write_layer(const AttentionFileLayer&, std::span<const float>,
                                               std::span<const float>, std::span<const float>);
template void AttentionFileWriter::write_layer(const AttentionFileLayer&, std::span<const bf16>, std::span<const bf16>,
                                               std::span<const bf16>);
template void AttentionFileWriter::write_result(int, const AttentionFileResult<float>&);
template void AttentionFileWriter::write_result(int, const AttentionFileResult<bf16>&);

}  // namespace sparseattn
