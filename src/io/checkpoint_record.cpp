// The records that writers send to writer 0, and the COMMIT file.
#include <sstream>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/checkpoint_format.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace detail {
namespace {
ProtocolHook hook = nullptr;
}

ProtocolHook set_protocol_hook(ProtocolHook next) {
    return std::exchange(hook, next);
}

void protocol_step(const char* step) {
    if (hook != nullptr) hook(step);
}

std::string shard_name(int writer, int writers) {
    char text[64];
    std::snprintf(text, sizeof text, "shard_%05d_of_%05d.h5", writer, writers);
    return text;
}

std::string dataset_name(const std::string& tensor) {
    return "tensors/" + tensor;
}

std::string Commit::to_text() const {
    std::ostringstream out;
    out << "sparseattn-checkpoint " << version << "\nstep " << step << '\n';
    for (const CheckpointFile& file : files) {
        out << "file " << file.name << ' ' << file.bytes << ' ' << to_hex(file.xxh3) << '\n';
    }
    const std::string body = out.str();
    return body + "end " + to_hex(checksum(body)) + '\n';
}

Commit Commit::read(const std::filesystem::path& directory) {
    const std::filesystem::path path = directory / commit_file;
    if (!std::filesystem::exists(path)) {
        throw CheckpointError(path.string() + ": is missing: this is no complete checkpoint");
    }
    const std::string text = read_file(path);
    std::istringstream in(text);
    std::string word;
    Commit commit;
    if (!(in >> word >> commit.version) || word != "sparseattn-checkpoint") {
        throw CheckpointError(path.string() + ": is damaged: must begin with 'sparseattn-checkpoint <version>'");
    }
    if (commit.version < 1 || commit.version > checkpoint_version) {
        throw CheckpointError(concat(path.string(), ": checkpoint format version is ", commit.version,
                                     ", this build reads 1 to ", checkpoint_version));
    }
    in >> word >> commit.step;
    for (in >> word; in && word == "file"; in >> word) {
        CheckpointFile file;
        std::string sum;
        in >> file.name >> file.bytes >> sum;
        if (!in || sum.size() != 16 || sum.find_first_not_of("0123456789abcdef") != std::string::npos) break;
        file.xxh3 = parse_hex(sum);
        commit.files.push_back(file);
    }
    // What was understood, written again, must be the file byte by byte, checksum included.
    if (commit.files.empty() || commit.to_text() != text) {
        throw CheckpointError(path.string() + ": is damaged: does not match its own checksum");
    }
    return commit;
}

}  // namespace detail

std::int64_t TensorInfo::count() const {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape) product *= extent;
    return product;
}

std::string ShardRecord::to_text() const {
    nlohmann::json document = {{"step", step},
                               {"writer", writer},
                               {"writers", writers},
                               {"file", file},
                               {"bytes", bytes},
                               {"xxh3", to_hex(xxh3)},
                               {"tensors", nlohmann::json::array()}};
    for (const Tensor& tensor : tensors) {
        nlohmann::json parts = nlohmann::json::array();
        for (const StoredPart& part : tensor.parts) {
            parts.push_back({part.begin, part.count, part.position, to_hex(part.xxh3)});
        }
        document["tensors"].push_back({{"name", tensor.info.name},
                                       {"dtype", std::string(name(tensor.info.dtype))},
                                       {"shape", tensor.info.shape},
                                       {"parts", std::move(parts)}});
    }
    return document.dump();
}

ShardRecord ShardRecord::parse(const std::string& text) {
    try {
        const nlohmann::json document = nlohmann::json::parse(text);
        ShardRecord record;
        record.step = document.at("step").get<std::int64_t>();
        record.writer = document.at("writer").get<int>();
        record.writers = document.at("writers").get<int>();
        record.file = document.at("file").get<std::string>();
        record.bytes = document.at("bytes").get<std::int64_t>();
        record.xxh3 = parse_hex(document.at("xxh3").get<std::string>());
        for (const nlohmann::json& entry : document.at("tensors")) {
            Tensor tensor;
            tensor.info.name = entry.at("name").get<std::string>();
            tensor.info.dtype = parse_dtype(entry.at("dtype").get<std::string>());
            tensor.info.shape = entry.at("shape").get<std::vector<std::int64_t>>();
            for (const nlohmann::json& part : entry.at("parts")) {
                tensor.parts.push_back({part.at(0).get<std::int64_t>(), part.at(1).get<std::int64_t>(),
                                        part.at(2).get<std::int64_t>(), parse_hex(part.at(3).get<std::string>()),
                                        record.writer});
            }
            record.tensors.push_back(std::move(tensor));
        }
        return record;
    } catch (const nlohmann::json::exception& error) {
        throw CheckpointError(concat("shard record is not what a writer sends: ", error.what()));
    } catch (const InvalidArgument& error) {
        throw CheckpointError(concat("shard record is not what a writer sends: ", error.what()));
    }
}

}  // namespace sparseattn
