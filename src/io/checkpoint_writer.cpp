#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/checkpoint_format.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace {

namespace fs = std::filesystem;
using detail::protocol_step;

constexpr std::int64_t chunk_bytes = std::int64_t(1) << 20;

// Runs `work`; whatever file error it ends in names the checkpoint's tensor, too.
template <class Work>
auto as_checkpoint_error(const std::string& tensor, const Work& work) {
    try {
        return work();
    } catch (const CheckpointError&) {
        throw;
    } catch (const FileError& error) {
        throw CheckpointError(tensor.empty() ? std::string(error.what())
                                             : concat("tensor '", tensor, "': ", error.what()));
    } catch (const fs::filesystem_error& error) {
        throw CheckpointError(error.what());
    }
}

void check_part(const TensorPart& part, std::set<std::string>& names) {
    const TensorInfo& tensor = part.tensor;
    const bool plain = std::all_of(tensor.name.begin(), tensor.name.end(),
                                   [](char c) { return c > ' ' && c < 127 && c != '/' && c != '%'; });
    require(plain && !tensor.name.empty() && tensor.name != "." && tensor.name != "..", "tensor name",
            "'" + tensor.name + "'", "printable ASCII without blanks, '/' and '%'");
    require(names.insert(tensor.name).second, "tensor '" + tensor.name + "'", "given twice", "given once by a writer");
    require(!tensor.shape.empty() && tensor.shape.size() <= 32, "number of dimensions of '" + tensor.name + "'",
            tensor.shape.size(), "in [1, 32]");
    for (const std::int64_t extent : tensor.shape) {
        require(extent > 0, "an extent of '" + tensor.name + "'", extent, "above 0");
    }
    const std::int64_t all = tensor.count();
    require(part.count > 0 && part.begin >= 0 && part.count <= all - part.begin, "part of '" + tensor.name + "'",
            concat("[", part.begin, ", ", part.begin + part.count, ")"),
            concat("a range inside [0, ", all, "), not empty"));
    require(part.data != nullptr, "data of '" + tensor.name + "'", "null", "the part's elements");
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
    return nlohmann::json(shape).dump();
}

ShardRecord::Tensor write_part(detail::h5::File& file, const TensorPart& part, int writer) {
    const std::int64_t size = size_of(part.tensor.dtype);
    const std::string name = detail::dataset_name(part.tensor.name);
    detail::h5::Dataset dataset = file.make_dataset(name, part.tensor.dtype, part.count, chunk_bytes / size);
    file.write_attribute(name, "begin", part.begin);
    file.write_attribute(name, "shape", shape_text(part.tensor.shape));
    ShardRecord::Tensor record{part.tensor, {}};
    const auto* bytes = static_cast<const std::byte*>(part.data);
    const std::int64_t piece = detail::piece_bytes / size;
    for (std::int64_t position = 0; position < part.count; position += piece) {
        const std::int64_t count = std::min(piece, part.count - position);
        const std::byte* data = bytes + position * size;
        dataset.write(position, count, data);
        record.parts.push_back(
            {part.begin + position, count, position, checksum(data, static_cast<std::size_t>(count * size)), writer});
    }
    return record;
}

void check_finite(const nlohmann::json& value, const std::string& where) {
    if (value.is_number_float()) {
        require(std::isfinite(value.get<double>()), "checkpoint state " + where, value.get<double>(),
                "finite (JSON has no other numbers)");
    } else if (value.is_structured()) {
        for (const auto& [key, inner] : value.items()) check_finite(inner, where + "/" + key);
    }
}

bool is_temporary(const fs::path& path) {
    const std::string name = path.filename().string();
    return name.starts_with(detail::unfinished_prefix) || name.starts_with(detail::doomed_prefix);
}

// Puts `made` in the place of `old`, which stays readable under its other name in between (scan_checkpoints knows it).
void replace_directory(const fs::path& made, const fs::path& old) {
    const fs::path aside = old.parent_path() / (".replaced_" + old.filename().string());
    fs::remove_all(aside);
    fs::rename(old, aside);
    protocol_step("set aside");
    fs::rename(made, old);
    protocol_step("replaced");
    sync_to_disk(old.parent_path());
    fs::remove_all(aside);
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
    require(step >= 0 && step < 1'000'000'000'000, "checkpoint step", step, "in [0, 10^12)");
    char text[32];
    std::snprintf(text, sizeof text, "step_%012lld", static_cast<long long>(step));
    return text;
}

CheckpointWriter::CheckpointWriter(fs::path root, std::int64_t step, int writer, int writers)
    : root_(std::move(root)),
      step_(step),
      writer_(writer),
      writers_(writers),
      temporary_(root_ / (".tmp_" + checkpoint_name(step))) {
    require(writers >= 1 && writers <= 99999, "writers", writers, "in [1, 99999]");
    require(writer >= 0 && writer < writers, "writer", writer, concat("in [0, ", writers, ")"));
}

fs::path CheckpointWriter::final_directory() const {
    return root_ / checkpoint_name(step_);
}

void CheckpointWriter::prepare() {
    require(writer_ == 0, "writer", writer_, "0 to prepare a checkpoint");
    as_checkpoint_error("", [&] {
        fs::create_directories(root_);
        for (const fs::directory_entry& entry : fs::directory_iterator(root_)) {
            if (is_temporary(entry.path())) {
                fs::remove_all(entry.path());
            } else if (entry.path().filename().string().starts_with(detail::replaced_prefix)) {
                // A run ended while it replaced this step: finish that, or undo it.
                const fs::path regular = root_ / entry.path().filename().string().substr(std::strlen(".replaced_"));
                fs::exists(regular) ? void(fs::remove_all(entry.path())) : fs::rename(entry.path(), regular);
            }
        }
        protocol_step("cleaned");
        fs::create_directory(temporary_);
        protocol_step("prepared");
    });
}

ShardRecord CheckpointWriter::write_shard(std::span<const TensorPart> parts) {
    std::set<std::string> names;
    for (const TensorPart& part : parts) check_part(part, names);
    ShardRecord record;
    record.step = step_;
    record.writer = writer_;
    record.writers = writers_;
    record.file = detail::shard_name(writer_, writers_);
    const fs::path path = temporary_ / record.file;
    as_checkpoint_error("", [&] {
        const auto file = detail::h5::File::create(path);
        protocol_step("shard created");
        file->write_attribute("/", "format", std::string(detail::shard_format));
        file->write_attribute("/", "version", std::int64_t(detail::checkpoint_version));
        file->write_attribute("/", "step", step_);
        file->write_attribute("/", "writer", std::int64_t(writer_));
        file->write_attribute("/", "writers", std::int64_t(writers_));
        file->make_group("tensors");
        for (const TensorPart& part : parts) {
            record.tensors.push_back(
                as_checkpoint_error(part.tensor.name, [&] { return write_part(*file, part, writer_); }));
            protocol_step("tensor written");
        }
        file->close();
        protocol_step("shard closed");
        sync_to_disk(path);
        record.bytes = static_cast<std::int64_t>(fs::file_size(path));
        record.xxh3 = file_checksum(path);
        protocol_step("shard synchronised");
    });
    return record;
}

namespace {

detail::CheckpointIndex merge(const CheckpointMeta& meta, const std::vector<ShardRecord>& records) {
    detail::CheckpointIndex index;
    index.meta = meta;
    std::map<std::string, ShardRecord::Tensor> tensors;  // by name
    for (const ShardRecord& record : records) {
        index.shards.push_back({record.file, record.bytes, record.xxh3});
        for (const ShardRecord::Tensor& tensor : record.tensors) {
            const auto [known, added] = tensors.emplace(tensor.info.name, ShardRecord::Tensor{tensor.info, {}});
            if (!added && known->second.info != tensor.info) {
                throw CheckpointError(concat(record.file, ": tensor '", tensor.info.name, "' is ",
                                             name(tensor.info.dtype), shape_text(tensor.info.shape),
                                             ", other writers have ", name(known->second.info.dtype),
                                             shape_text(known->second.info.shape)));
            }
            auto& parts = known->second.parts;
            parts.insert(parts.end(), tensor.parts.begin(), tensor.parts.end());
        }
    }
    for (auto& [tensor_name, tensor] : tensors) {
        std::sort(tensor.parts.begin(), tensor.parts.end(),
                  [](const StoredPart& a, const StoredPart& b) { return a.begin < b.begin; });
        index.tensors.push_back(std::move(tensor.info));
        index.parts.push_back(std::move(tensor.parts));
    }
    return index;
}

void check_records(std::vector<ShardRecord>& records, std::int64_t step, int writers, const fs::path& folder) {
    std::sort(records.begin(), records.end(),
              [](const ShardRecord& a, const ShardRecord& b) { return a.writer < b.writer; });
    require(static_cast<int>(records.size()) == writers, "number of shard records", records.size(),
            concat(writers, ", one per writer"));
    for (int writer = 0; writer < writers; ++writer) {
        const ShardRecord& record = records[static_cast<std::size_t>(writer)];
        require(
            record.writer == writer && record.writers == writers && record.step == step &&
                record.file == detail::shard_name(writer, writers),
            "shard record",
            concat("of writer ", record.writer, " of ", record.writers, ", step ", record.step, ", file ", record.file),
            concat("of writer ", writer, " of ", writers, ", step ", step));
        const fs::path path = folder / record.file;
        std::error_code error;
        const auto bytes = static_cast<std::int64_t>(fs::file_size(path, error));
        if (error) throw CheckpointError(concat(path.string(), ": ", error.message()));
        if (bytes != record.bytes) {
            throw CheckpointError(concat(path.string(), ": has ", bytes, " bytes, its writer wrote ", record.bytes));
        }
    }
}

}  // namespace

void CheckpointWriter::write_index(const CheckpointMeta& meta, std::vector<ShardRecord> records) {
    require(writer_ == 0, "writer", writer_, "0 to write the index");
    require(meta.step == step_, "step of the meta data", meta.step, concat(step_, ", the writer's"));
    check_finite(meta.state, "state");
    check_records(records, step_, writers_, temporary_);
    const detail::CheckpointIndex index = merge(meta, records);
    const fs::path path = temporary_ / detail::index_file;
    detail::check_coverage(index, temporary_);
    as_checkpoint_error("", [&] {
        detail::write_index_file(path, index);
        protocol_step("index closed");
        sync_to_disk(path);
        files_ = index.shards;
        files_.push_back({detail::index_file, static_cast<std::int64_t>(fs::file_size(path)), file_checksum(path)});
        protocol_step("index synchronised");
    });
}

fs::path CheckpointWriter::commit() {
    require(writer_ == 0, "writer", writer_, "0 to commit");
    require(!files_.empty(), "files of the checkpoint", "none", "written by write_index before commit");
    const fs::path target = final_directory();
    as_checkpoint_error("", [&] {
        detail::Commit commit;
        commit.step = step_;
        commit.files = files_;
        write_file_atomically(temporary_ / detail::commit_file, commit.to_text());
        protocol_step("COMMIT written");
        sync_to_disk(temporary_);
        protocol_step("folder synchronised");
        if (fs::exists(target)) {
            replace_directory(temporary_, target);
        } else {
            fs::rename(temporary_, target);
        }
        protocol_step("renamed");
        sync_to_disk(root_);
        protocol_step("root synchronised");
    });
    return target;
}

void CheckpointWriter::abandon() noexcept {
    std::error_code ignored;  // the next prepare() tries again
    if (writer_ == 0) fs::remove_all(temporary_, ignored);
}

}  // namespace sparseattn
