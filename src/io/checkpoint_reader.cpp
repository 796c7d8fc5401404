#include <algorithm>
#include <map>

#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/checkpoint_format.hpp"

namespace sparseattn {

namespace fs = std::filesystem;

struct CheckpointReader::State {
    fs::path directory;
    detail::Commit commit;
    detail::CheckpointIndex index;
    std::map<std::string, std::size_t> by_name;
    mutable std::vector<std::unique_ptr<detail::h5::File>> shards;  // opened when first needed

    [[noreturn]] void fail(const std::string& file, const std::string& what) const {
        throw CheckpointError((directory / file).string() + ": " + what);
    }
    void check_sizes() const;
    void load_version_1();
    const detail::h5::File& shard(int index) const;
    void read_piece(const TensorInfo& tensor, const StoredPart& part, void* out) const;
};

void CheckpointReader::State::check_sizes() const {
    for (const CheckpointFile& file : commit.files) {
        std::error_code error;
        const auto bytes = static_cast<std::int64_t>(fs::file_size(directory / file.name, error));
        if (error) fail(file.name, error.message());
        if (bytes != file.bytes) fail(file.name, concat("has ", bytes, " bytes, must have ", file.bytes));
    }
}

void CheckpointReader::State::load_version_1() {
    const CheckpointFile& file = commit.files.back();
    if (file.name != detail::index_file) fail(detail::commit_file, "must list index.h5 last");
    // The whole index is checked before any of it is believed.
    const std::uint64_t sum = file_checksum(directory / file.name);
    if (sum != file.xxh3) {
        fail(file.name, concat("checksum is ", to_hex(sum), ", must be ", to_hex(file.xxh3), ": the file is damaged"));
    }
    index = detail::read_index_file(directory / file.name);
    if (!std::equal(index.shards.begin(), index.shards.end(), commit.files.begin(), commit.files.end() - 1)) {
        fail(file.name, "lists other shards than COMMIT");
    }
    if (index.meta.step != commit.step)
        fail(file.name, concat("step is ", index.meta.step, ", COMMIT says ", commit.step));
}

const detail::h5::File& CheckpointReader::State::shard(int number) const {
    const detail::h5::Session session;
    auto& file = shards[static_cast<std::size_t>(number)];
    if (!file) file = detail::h5::File::open(directory / index.shards[static_cast<std::size_t>(number)].name);
    return *file;
}

void CheckpointReader::State::read_piece(const TensorInfo& tensor, const StoredPart& part, void* out) const {
    const std::string& file = index.shards[static_cast<std::size_t>(part.shard)].name;
    const std::string label =
        concat("tensor '", tensor.name, "', elements [", part.begin, ", ", part.begin + part.count, "): ");
    std::uint64_t sum = 0;
    try {
        const detail::h5::Dataset dataset = shard(part.shard).dataset(detail::dataset_name(tensor.name));
        if (dataset.dtype() != tensor.dtype) {
            fail(file, concat(label, "is ", name(dataset.dtype()), ", must be ", name(tensor.dtype)));
        }
        dataset.read(part.position, part.count, out);
        sum = checksum(out, static_cast<std::size_t>(part.count * size_of(tensor.dtype)));
    } catch (const CheckpointError&) {
        throw;
    } catch (const FileError& error) {
        fail(file, concat(label, "cannot be read: ", error.what()));
    }
    if (sum != part.xxh3) {
        fail(file,
             concat(label, "checksum is ", to_hex(sum), ", must be ", to_hex(part.xxh3), ": the file is damaged"));
    }
}

CheckpointReader::CheckpointReader(const fs::path& directory) : state_(std::make_unique<State>()) {
    state_->directory = directory;
    try {
        state_->commit = detail::Commit::read(directory);
        state_->check_sizes();
        switch (state_->commit.version) {
            case 1:
                state_->load_version_1();
                break;
        }
    } catch (const CheckpointError&) {
        throw;
    } catch (const Error& error) {
        throw CheckpointError(error.what());
    }
    state_->shards.resize(state_->index.shards.size());
    for (const TensorInfo& tensor : state_->index.tensors) state_->by_name.emplace(tensor.name, state_->by_name.size());
}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;
CheckpointReader& CheckpointReader::operator=(CheckpointReader&&) noexcept = default;

const fs::path& CheckpointReader::directory() const {
    return state_->directory;
}

int CheckpointReader::format_version() const {
    return state_->commit.version;
}

const std::string& CheckpointReader::library() const {
    return state_->index.library;
}

const CheckpointMeta& CheckpointReader::meta() const {
    return state_->index.meta;
}

const std::vector<TensorInfo>& CheckpointReader::tensors() const {
    return state_->index.tensors;
}

const std::vector<CheckpointFile>& CheckpointReader::files() const {
    return state_->commit.files;
}

bool CheckpointReader::contains(const std::string& name) const {
    return state_->by_name.count(name) > 0;
}

std::size_t CheckpointReader::index_of(const std::string& name) const {
    const auto found = state_->by_name.find(name);
    if (found == state_->by_name.end()) {
        state_->fail(detail::index_file,
                     concat("there is no tensor '", name, "' (it has ", tensors().size(), " tensors)"));
    }
    return found->second;
}

const TensorInfo& CheckpointReader::find(const std::string& name) const {
    return tensors()[index_of(name)];
}

void CheckpointReader::require_shape(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const TensorInfo& tensor = find(name);
    if (tensor.shape != shape) {
        state_->fail(detail::index_file, concat("tensor '", name, "' has shape ", nlohmann::json(tensor.shape).dump(),
                                                ", must be ", nlohmann::json(shape).dump()));
    }
}

const std::vector<StoredPart>& CheckpointReader::parts(const std::string& name) const {
    return state_->index.parts[index_of(name)];
}

void CheckpointReader::read(const std::string& name, std::int64_t begin, std::int64_t count, void* out) const {
    const TensorInfo& tensor = find(name);
    if (begin < 0 || count < 0 || count > tensor.count() - begin) {
        state_->fail(detail::index_file, concat("tensor '", name, "' has ", tensor.count(), " elements, [", begin, ", ",
                                                begin + count, ") is wanted"));
    }
    const std::vector<StoredPart>& all = parts(name);
    const std::int64_t end = begin + count;
    const std::int64_t size = size_of(tensor.dtype);
    auto part = std::upper_bound(all.begin(), all.end(), begin,
                                 [](std::int64_t first, const StoredPart& p) { return first < p.begin + p.count; });
    std::vector<std::byte> buffer;
    for (; part != all.end() && part->begin < end; ++part) {
        const std::int64_t first = std::max(begin, part->begin);
        const std::int64_t last = std::min(end, part->begin + part->count);
        auto* target = static_cast<std::byte*>(out) + (first - begin) * size;
        if (last - first == part->count) {
            state_->read_piece(tensor, *part, target);
        } else {  // the checksum is of the whole piece
            buffer.resize(static_cast<std::size_t>(part->count * size));
            state_->read_piece(tensor, *part, buffer.data());
            std::copy_n(buffer.data() + (first - part->begin) * size, (last - first) * size, target);
        }
    }
}

namespace {

template <class From, class To>
void convert(const std::vector<std::byte>& from, std::int64_t count, To* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        From value;
        std::memcpy(&value, from.data() + static_cast<std::size_t>(i) * sizeof value, sizeof value);
        out[i] = static_cast<To>(value);
    }
}

}  // namespace

template <class T>
void CheckpointReader::read_as(const std::string& name, std::int64_t begin, std::int64_t count, T* out) const {
    const TensorInfo& tensor = find(name);
    if (tensor.dtype == dtype_of<T>) return read(name, begin, count, out);
    if (!is_floating(tensor.dtype)) {
        state_->fail(detail::index_file,
                     concat("tensor '", name, "' is ", sparseattn::name(tensor.dtype), ", must be a floating type"));
    }
    const std::int64_t step = detail::piece_bytes / size_of(tensor.dtype);
    std::vector<std::byte> buffer;
    for (std::int64_t done = 0; done < count;) {
        // Up to the end of a piece, so that none is read twice.
        const std::int64_t at = begin + done;
        std::int64_t stop = std::min(begin + count, at + step);
        for (const StoredPart& part : parts(name)) {
            if (part.begin > at && part.begin < stop) stop = part.begin;
        }
        buffer.resize(static_cast<std::size_t>((stop - at) * size_of(tensor.dtype)));
        read(name, at, stop - at, buffer.data());
        if (tensor.dtype == DType::float32) convert<float>(buffer, stop - at, out + done);
        if (tensor.dtype == DType::float64) convert<double>(buffer, stop - at, out + done);
        if (tensor.dtype == DType::bfloat16) convert<bf16>(buffer, stop - at, out + done);
        done = stop - begin;
    }
}

template void CheckpointReader::read_as<float>(const std::string&, std::int64_t, std::int64_t, float*) const;
template void CheckpointReader::read_as<double>(const std::string&, std::int64_t, std::int64_t, double*) const;

VerifyReport CheckpointReader::verify(int rank, int ranks) const {
    return verify_checkpoint(directory(), rank, ranks);
}

}  // namespace sparseattn
