#pragma once
/// \file
/// The files of a checkpoint directory beside the shards, and the names in it. docs/checkpoints.md describes them.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/io/detail/h5.hpp"

namespace sparseattn::detail {

inline constexpr int checkpoint_version = 1;
inline constexpr const char* index_format = "sparseattn-checkpoint";
inline constexpr const char* shard_format = "sparseattn-checkpoint-shard";
inline constexpr const char* index_file = "index.h5";
inline constexpr const char* commit_file = "COMMIT";
inline constexpr const char* unfinished_prefix = ".tmp_step_";     // a save that is not committed
inline constexpr const char* replaced_prefix = ".replaced_step_";  // the old one of a step while it is replaced
inline constexpr const char* doomed_prefix = ".tmp_prune_step_";   // being removed
/// Range of a tensor with a checksum of its own, in bytes: small enough that reading a few elements stays cheap.
inline constexpr std::int64_t piece_bytes = std::int64_t(4) << 20;

[[nodiscard]] std::string shard_name(int writer, int writers);
[[nodiscard]] std::string dataset_name(const std::string& tensor);

/// The COMMIT file.
struct Commit {
    int version = checkpoint_version;
    std::int64_t step = 0;
    std::vector<CheckpointFile> files;

    [[nodiscard]] std::string to_text() const;
    /// Reads a directory's COMMIT. CheckpointError when it is missing, damaged, or of a newer format.
    [[nodiscard]] static Commit read(const std::filesystem::path& directory);
};

/// The content of index.h5.
struct CheckpointIndex {
    CheckpointMeta meta;
    std::string library;
    std::vector<TensorInfo> tensors;             // by name
    std::vector<std::vector<StoredPart>> parts;  // of each tensor, by begin, without gaps
    std::vector<CheckpointFile> shards;
};

/// CheckpointError naming `where` and the tensor unless the parts cover every tensor exactly once.
void check_coverage(const CheckpointIndex& index, const std::filesystem::path& where);
void write_index_file(const std::filesystem::path& file, const CheckpointIndex& index);
[[nodiscard]] CheckpointIndex read_index_file(const std::filesystem::path& file);
/// Adds `/view/<name>`: the whole tensor as a virtual dataset over the shards.
void write_view(h5::File& file, const TensorInfo& tensor, const std::vector<StoredPart>& parts,
                const std::vector<CheckpointFile>& shards);

/// Called at every step of the write protocol with the step's name. Tests end the process in it.
using ProtocolHook = void (*)(const char* step);
ProtocolHook set_protocol_hook(ProtocolHook hook);
void protocol_step(const char* step);

}  // namespace sparseattn::detail
