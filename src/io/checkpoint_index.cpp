// index.h5: meta data and the table of tensors, parts and shards.
#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/version.hpp"
#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/checkpoint_format.hpp"

namespace sparseattn::detail {
namespace {

[[noreturn]] void bad_table(const h5::File& file, const std::string& what) {
    throw CheckpointError(file.path().string() + ": " + what);
}

// Columns of the tables, each a dataset of its own.
struct Columns {
    std::vector<std::string> names, dtypes;
    std::vector<std::int64_t> dimensions, extents;  // extents of all tensors, one after the other
    std::vector<std::int64_t> tensor, shard, begin, count, position;
    std::vector<std::string> part_sums;
    std::vector<std::string> files, file_sums;
    std::vector<std::int64_t> file_bytes;
};

Columns to_columns(const CheckpointIndex& index) {
    Columns out;
    for (std::size_t t = 0; t < index.tensors.size(); ++t) {
        const TensorInfo& tensor = index.tensors[t];
        out.names.push_back(tensor.name);
        out.dtypes.emplace_back(name(tensor.dtype));
        out.dimensions.push_back(static_cast<std::int64_t>(tensor.shape.size()));
        out.extents.insert(out.extents.end(), tensor.shape.begin(), tensor.shape.end());
        for (const StoredPart& part : index.parts[t]) {
            out.tensor.push_back(static_cast<std::int64_t>(t));
            out.shard.push_back(part.shard);
            out.begin.push_back(part.begin);
            out.count.push_back(part.count);
            out.position.push_back(part.position);
            out.part_sums.push_back(to_hex(part.xxh3));
        }
    }
    for (const CheckpointFile& shard : index.shards) {
        out.files.push_back(shard.name);
        out.file_bytes.push_back(shard.bytes);
        out.file_sums.push_back(to_hex(shard.xxh3));
    }
    return out;
}

void from_columns(const Columns& in, const h5::File& file, CheckpointIndex& index) {
    if (in.dtypes.size() != in.names.size() || in.dimensions.size() != in.names.size() ||
        in.file_bytes.size() != in.files.size() || in.file_sums.size() != in.files.size()) {
        bad_table(file, "the columns of its tables have different lengths");
    }
    for (const auto* column : {&in.shard, &in.begin, &in.count, &in.position}) {
        if (column->size() != in.tensor.size() || in.part_sums.size() != in.tensor.size()) {
            bad_table(file, "the columns of parts have different lengths");
        }
    }
    std::size_t next = 0;
    for (std::size_t t = 0; t < in.names.size(); ++t) {
        const std::int64_t rank = in.dimensions[t];
        if (rank < 1 || rank > static_cast<std::int64_t>(in.extents.size() - next))
            bad_table(file, "tensors/shape is short");
        const auto first = in.extents.begin() + static_cast<std::ptrdiff_t>(next);
        index.tensors.push_back({in.names[t], parse_dtype(in.dtypes[t]), {first, first + rank}});
        next += static_cast<std::size_t>(rank);
    }
    index.parts.resize(index.tensors.size());
    for (std::size_t p = 0; p < in.tensor.size(); ++p) {
        if (in.tensor[p] < 0 || in.tensor[p] >= static_cast<std::int64_t>(index.tensors.size()) || in.shard[p] < 0 ||
            in.shard[p] >= static_cast<std::int64_t>(in.files.size())) {
            bad_table(file, concat("part ", p, " is of no tensor or in no shard"));
        }
        index.parts[static_cast<std::size_t>(in.tensor[p])].push_back(
            {in.begin[p], in.count[p], in.position[p], parse_hex(in.part_sums[p]), static_cast<int>(in.shard[p])});
    }
    for (std::size_t s = 0; s < in.files.size(); ++s) {
        index.shards.push_back({in.files[s], in.file_bytes[s], parse_hex(in.file_sums[s])});
    }
}

}  // namespace

void check_coverage(const CheckpointIndex& index, const std::filesystem::path& where) {
    for (std::size_t t = 0; t < index.tensors.size(); ++t) {
        const TensorInfo& tensor = index.tensors[t];
        const std::string label = concat(where.string(), ": tensor '", tensor.name, "': ");
        std::int64_t reached = 0;
        for (const StoredPart& part : index.parts[t]) {
            if (part.count < 1 || part.begin != reached) {
                throw CheckpointError(concat(label, part.begin < reached ? "two parts hold" : "no part holds",
                                             " the elements from ", std::min(part.begin, reached), " to ",
                                             std::max(part.begin, reached)));
            }
            reached += part.count;
        }
        if (reached != tensor.count()) {
            throw CheckpointError(concat(label, "its parts hold ", reached, " elements, must be ", tensor.count()));
        }
    }
}

void write_index_file(const std::filesystem::path& path, const CheckpointIndex& index) {
    const std::unique_ptr<h5::File> file = h5::File::create(path);
    file->write_attribute("/", "format", std::string(index_format));
    file->write_attribute("/", "version", std::int64_t(checkpoint_version));
    file->write_attribute("/", "step", index.meta.step);
    file->write_attribute("/", "library", version_with_commit());
    file->write_text("deck", index.meta.deck);
    file->write_text("state", index.meta.state.dump());
    const Columns columns = to_columns(index);
    file->make_group("tensors");
    file->write_strings("tensors/name", columns.names);
    file->write_strings("tensors/dtype", columns.dtypes);
    file->write_integers("tensors/dimensions", columns.dimensions);
    file->write_integers("tensors/shape", columns.extents);
    file->make_group("parts");
    file->write_integers("parts/tensor", columns.tensor);
    file->write_integers("parts/shard", columns.shard);
    file->write_integers("parts/begin", columns.begin);
    file->write_integers("parts/count", columns.count);
    file->write_integers("parts/position", columns.position);
    file->write_strings("parts/xxh3", columns.part_sums);
    file->make_group("shards");
    file->write_strings("shards/file", columns.files);
    file->write_integers("shards/bytes", columns.file_bytes);
    file->write_strings("shards/xxh3", columns.file_sums);
    file->make_group("view");
    for (std::size_t t = 0; t < index.tensors.size(); ++t) {
        write_view(*file, index.tensors[t], index.parts[t], index.shards);
    }
    file->close();
}

CheckpointIndex read_index_file(const std::filesystem::path& path) {
    const std::unique_ptr<h5::File> file = h5::File::open(path);
    if (file->text_attribute("/", "format") != index_format) bad_table(*file, "is no checkpoint index");
    CheckpointIndex index;
    index.meta.step = file->integer_attribute("/", "step");
    index.library = file->text_attribute("/", "library");
    index.meta.deck = file->read_text("deck");
    index.meta.state = nlohmann::json::parse(file->read_text("state"), nullptr, false);
    if (index.meta.state.is_discarded()) bad_table(*file, "state: is not JSON");
    Columns columns;
    columns.names = file->read_strings("tensors/name");
    columns.dtypes = file->read_strings("tensors/dtype");
    columns.dimensions = file->read_integers("tensors/dimensions");
    columns.extents = file->read_integers("tensors/shape");
    columns.tensor = file->read_integers("parts/tensor");
    columns.shard = file->read_integers("parts/shard");
    columns.begin = file->read_integers("parts/begin");
    columns.count = file->read_integers("parts/count");
    columns.position = file->read_integers("parts/position");
    columns.part_sums = file->read_strings("parts/xxh3");
    columns.files = file->read_strings("shards/file");
    columns.file_bytes = file->read_integers("shards/bytes");
    columns.file_sums = file->read_strings("shards/xxh3");
    from_columns(columns, *file, index);
    check_coverage(index, path);
    return index;
}

}  // namespace sparseattn::detail
