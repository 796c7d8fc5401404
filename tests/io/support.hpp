#pragma once
// Shared by the io tests: a scratch folder, small tensors with known values, a checkpoint of them.

#include <gmock/gmock.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "sparseattn/core/rng.hpp"
#include "sparseattn/io/checkpoint.hpp"

namespace sparseattn::testing_io {

namespace fs = std::filesystem;

class TemporaryFolder {
  public:
    TemporaryFolder() {
        std::string pattern = (fs::temp_directory_path() / "sparseattn-io-XXXXXX").string();
        if (mkdtemp(pattern.data()) == nullptr) throw FileError("no temporary folder");
        path_ = pattern;
    }
    ~TemporaryFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    operator const fs::path&() const { return path_; }
    fs::path operator/(const std::string& name) const { return path_ / name; }

  private:
    fs::path path_;
};

inline void write_plain(const fs::path& file, const std::string& content) {
    fs::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << content;
}

inline std::string read_plain(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
}

/// What `call` throws, as text; empty when it throws nothing.
template <class Exception, class Call>
std::string message_of(const Call& call) {
    try {
        static_cast<void>(call());
    } catch (const Exception& error) {
        return error.what();
    }
    return "";
}

/// A whole tensor in memory, random bits where every bit pattern is a value.
struct Tensor {
    TensorInfo info;
    std::vector<std::byte> bytes;
};

inline Tensor random_tensor(const std::string& name, DType dtype, std::vector<std::int64_t> shape, std::uint64_t seed) {
    Tensor tensor{{name, dtype, std::move(shape)}, {}};
    tensor.bytes.resize(static_cast<std::size_t>(tensor.info.count() * size_of(dtype)));
    const RandomStream stream(seed, RandomPurpose::test, 0);
    for (std::size_t i = 0; i < tensor.bytes.size(); ++i) {
        tensor.bytes[i] = static_cast<std::byte>(stream.bits(i) >> 24);
    }
    return tensor;
}

inline std::vector<Tensor> sample_tensors(std::uint64_t seed) {
    return {random_tensor("model.embed_tokens.weight", DType::float32, {13, 7}, seed),
            random_tensor("model.layers.0.self_attn.q_proj.weight", DType::bfloat16, {6, 5, 4}, seed + 1),
            random_tensor("optimizer.m", DType::float64, {101}, seed + 2),
            random_tensor("data.counters", DType::int64, {2, 9}, seed + 3),
            random_tensor("flags", DType::uint8, {41}, seed + 4)};
}

inline std::int64_t part_begin(std::int64_t count, int writer, int writers) {
    return count * writer / writers;
}

/// The equal share of every tensor that writer `writer` of `writers` holds (tensors smaller than that: some hold none).
inline std::vector<TensorPart> share(const std::vector<Tensor>& tensors, int writer, int writers) {
    std::vector<TensorPart> parts;
    for (const Tensor& tensor : tensors) {
        const std::int64_t begin = part_begin(tensor.info.count(), writer, writers);
        const std::int64_t end = part_begin(tensor.info.count(), writer + 1, writers);
        if (begin == end) continue;
        parts.push_back({tensor.info, begin, end - begin, tensor.bytes.data() + begin * size_of(tensor.info.dtype)});
    }
    return parts;
}

inline fs::path save(const fs::path& root, std::int64_t step, const std::vector<Tensor>& tensors, int writers = 2) {
    std::vector<CheckpointWriter> all;
    for (int w = 0; w < writers; ++w) all.emplace_back(root, step, w, writers);
    all[0].prepare();
    std::vector<ShardRecord> records;
    for (int w = writers - 1; w >= 0; --w) {
        records.push_back(
            ShardRecord::parse(all[static_cast<std::size_t>(w)].write_shard(share(tensors, w, writers)).to_text()));
    }
    all[0].write_index({step, "[run]\nseed = 1\n", {{"learning_rate", 0.1}, {"tokens", 123456789012}}}, records);
    return all[0].commit();
}

inline void expect_equal(const CheckpointReader& reader, const std::vector<Tensor>& tensors) {
    for (const Tensor& tensor : tensors) {
        EXPECT_EQ(reader.find(tensor.info.name), tensor.info);
        std::vector<std::byte> bytes(tensor.bytes.size());
        reader.read(tensor.info.name, 0, tensor.info.count(), bytes.data());
        EXPECT_EQ(std::memcmp(bytes.data(), tensor.bytes.data(), bytes.size()), 0) << tensor.info.name;
    }
}

}  // namespace sparseattn::testing_io
