#include <sstream>

#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/checkpoint_format.hpp"

namespace sparseattn {
namespace {

namespace fs = std::filesystem;

// What is wrong with a file as a whole; empty if nothing.
std::string file_damage(const fs::path& path, const CheckpointFile& file, VerifyReport& report) {
    std::error_code error;
    const auto bytes = static_cast<std::int64_t>(fs::file_size(path, error));
    if (error) return error.message();
    if (bytes != file.bytes) return concat("has ", bytes, " bytes, must have ", file.bytes);
    report.bytes += bytes;
    const std::uint64_t sum = file_checksum(path);
    if (sum != file.xxh3) return concat("checksum is ", to_hex(sum), ", must be ", to_hex(file.xxh3));
    return "";
}

// The first wrong range of a tensor in one shard; empty if none.
std::string tensor_damage(const detail::h5::File& shard, const TensorInfo& tensor, const std::vector<StoredPart>& parts,
                          int number) {
    try {
        const detail::h5::Dataset dataset = shard.dataset(detail::dataset_name(tensor.name));
        if (dataset.dtype() != tensor.dtype)
            return concat("is ", name(dataset.dtype()), ", must be ", name(tensor.dtype));
        std::vector<std::byte> buffer;
        for (const StoredPart& part : parts) {
            if (part.shard != number) continue;
            buffer.resize(static_cast<std::size_t>(part.count * size_of(tensor.dtype)));
            const std::string range = concat("elements [", part.begin, ", ", part.begin + part.count, "): ");
            try {
                dataset.read(part.position, part.count, buffer.data());
            } catch (const FileError& error) {
                return range + error.what();
            }
            const std::uint64_t sum = checksum(buffer.data(), buffer.size());
            if (sum != part.xxh3) return concat(range, "checksum is ", to_hex(sum), ", must be ", to_hex(part.xxh3));
        }
    } catch (const FileError& error) {
        return error.what();
    }
    return "";
}

// Which tensors a damaged shard takes with it.
void diagnose(const fs::path& directory, const detail::CheckpointIndex& index, int number, VerifyReport& report) {
    const std::string& file = index.shards[static_cast<std::size_t>(number)].name;
    std::unique_ptr<detail::h5::File> shard;
    std::string unreadable;
    try {
        shard = detail::h5::File::open(directory / file);
    } catch (const FileError& error) {
        unreadable = error.what();
    }
    for (std::size_t t = 0; t < index.tensors.size(); ++t) {
        bool inside = false;
        for (const StoredPart& part : index.parts[t]) inside |= part.shard == number;
        if (!inside) continue;
        const std::string what = shard ? tensor_damage(*shard, index.tensors[t], index.parts[t], number) : unreadable;
        if (!what.empty()) report.damages.push_back({file, index.tensors[t].name, what});
    }
}

void verify_files(const fs::path& directory, int rank, int ranks, VerifyReport& report) {
    const detail::Commit commit = detail::Commit::read(directory);
    std::vector<int> damaged_shards;
    for (std::size_t f = 0; f < commit.files.size(); ++f) {
        if (static_cast<int>(f % static_cast<std::size_t>(ranks)) != rank) continue;
        const CheckpointFile& file = commit.files[f];
        ++report.files;
        const std::string what = file_damage(directory / file.name, file, report);
        if (what.empty()) continue;
        report.damages.push_back({file.name, "", what});
        if (file.name != detail::index_file) damaged_shards.push_back(static_cast<int>(f));
    }
    const CheckpointFile& index_entry = commit.files.back();
    VerifyReport ignored;
    if (!file_damage(directory / index_entry.name, index_entry, ignored).empty()) return;  // found above, by some rank
    const detail::CheckpointIndex index = detail::read_index_file(directory / index_entry.name);
    report.tensors = static_cast<std::int64_t>(index.tensors.size());
    for (const int shard : damaged_shards) diagnose(directory, index, shard, report);
}

}  // namespace

VerifyReport verify_checkpoint(const fs::path& directory, int rank, int ranks) {
    require(ranks >= 1 && rank >= 0 && rank < ranks, "rank", rank, concat("in [0, ", ranks, ")"));
    VerifyReport report;
    try {
        verify_files(directory, rank, ranks, report);
    } catch (const FileError& error) {
        // Without COMMIT or index there is nothing to compare with.
        report.damages.push_back({detail::commit_file, "", error.what()});
    }
    return report;
}

std::string VerifyReport::text() const {
    std::ostringstream out;
    if (ok()) {
        out << "verified: " << files << " files, " << bytes << " bytes, " << tensors << " tensors\n";
    }
    for (const Damage& damage : damages) {
        out << "damaged: " << damage.file << (damage.tensor.empty() ? "" : ", tensor '" + damage.tensor + "'") << ": "
            << damage.message << '\n';
    }
    return out.str();
}

}  // namespace sparseattn
