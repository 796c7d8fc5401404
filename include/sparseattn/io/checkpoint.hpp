#pragma once
/// \file
/// Checkpoints: a directory that appears by rename when it is complete (format: docs/checkpoints.md).
///
/// Writing, with any number of writers (no communication here; the caller orders the steps):
///
///     CheckpointWriter writer(root, step, rank, ranks);
///     if (rank == 0) writer.prepare();          // all others wait for it
///     ShardRecord mine = writer.write_shard(parts);
///     // gather every record's to_text() on writer 0
///     if (rank == 0) { writer.write_index(meta, records); writer.commit(); }

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/dtype.hpp"

namespace sparseattn {

/// Name (Hugging Face spelling), element type and shape (at least one dimension, none of them 0).
struct TensorInfo {
    std::string name;
    DType dtype = DType::float32;
    std::vector<std::int64_t> shape;

    [[nodiscard]] std::int64_t count() const;
    bool operator==(const TensorInfo&) const = default;
};

/// Elements [begin, begin + count) of the flattened tensor, in memory.
struct TensorPart {
    TensorInfo tensor;
    std::int64_t begin = 0;
    std::int64_t count = 0;
    const void* data = nullptr;
};

/// What a checkpoint holds beside tensors. `state` must be free of NaN and infinities (JSON has none).
struct CheckpointMeta {
    std::int64_t step = 0;
    std::string deck;
    nlohmann::json state;
};

/// Where a range of a tensor lies, and its checksum.
struct StoredPart {
    std::int64_t begin = 0;  ///< first element in the flattened tensor
    std::int64_t count = 0;
    std::int64_t position = 0;  ///< first element in the shard's dataset
    std::uint64_t xxh3 = 0;
    int shard = 0;
    bool operator==(const StoredPart&) const = default;
};

/// What one writer wrote, to be gathered by writer 0.
struct ShardRecord {
    struct Tensor {
        TensorInfo info;
        std::vector<StoredPart> parts;
    };
    std::int64_t step = 0;
    int writer = 0;
    int writers = 1;
    std::string file;
    std::int64_t bytes = 0;
    std::uint64_t xxh3 = 0;
    std::vector<Tensor> tensors;

    [[nodiscard]] std::string to_text() const;
    /// CheckpointError when the text is not a record.
    [[nodiscard]] static ShardRecord parse(const std::string& text);
};

/// A file of a checkpoint as COMMIT lists it.
struct CheckpointFile {
    std::string name;
    std::int64_t bytes = 0;
    std::uint64_t xxh3 = 0;
    bool operator==(const CheckpointFile&) const = default;
};

/// Writes one checkpoint. Everything goes to `.tmp_step_*` in the root until commit(). Failures (CheckpointError
/// naming the file) leave earlier checkpoints as they were.
class CheckpointWriter {
  public:
    /// `step` in [0, 10^12), `writer` in [0, writers), writers in [1, 99999].
    CheckpointWriter(std::filesystem::path root, std::int64_t step, int writer, int writers);

    /// Writer 0, before any other call of any writer: makes the root and an empty temporary directory, and removes what
    /// killed runs left.
    void prepare();
    /// This writer's parts (at most one per tensor; none is fine), synchronised to storage. Returns what the index
    /// needs.
    [[nodiscard]] ShardRecord write_shard(std::span<const TensorPart> parts);
    /// Writer 0, with the records of all writers: checks that the parts cover every tensor exactly once.
    void write_index(const CheckpointMeta& meta, std::vector<ShardRecord> records);
    /// Writer 0, last: COMMIT, synchronise, rename. Returns the checkpoint's directory. A checkpoint of the same step
    /// is replaced; one of the two is there at any moment.
    std::filesystem::path commit();
    /// Removes the temporary directory (writer 0) after a failure.
    void abandon() noexcept;

    [[nodiscard]] const std::filesystem::path& temporary_directory() const { return temporary_; }
    /// Where commit() puts the checkpoint.
    [[nodiscard]] std::filesystem::path final_directory() const;

  private:
    std::filesystem::path root_;
    std::int64_t step_;
    int writer_;
    int writers_;
    std::filesystem::path temporary_;
    std::vector<CheckpointFile> files_;  // for COMMIT
};

/// `step_000001200`.
[[nodiscard]] std::string checkpoint_name(std::int64_t step);

/// The root's checkpoints.
struct CheckpointScan {
    std::vector<std::filesystem::path> committed;  ///< by step, newest last
    std::vector<std::string> rejected;             ///< "directory: reason" of those with a missing or invalid COMMIT
};
[[nodiscard]] CheckpointScan scan_checkpoints(const std::filesystem::path& root);
/// scan_checkpoints().committed.
[[nodiscard]] std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& root);

/// The checkpoint meant by `which`: "latest" is the newest with a valid COMMIT in `root` (or `root` itself when it is a
/// checkpoint), a number or a directory name is that step of `root`. Rejected directories that are newer than the
/// result are appended to `warnings`. CheckpointError naming the root and what was rejected when there is none.
[[nodiscard]] std::filesystem::path find_checkpoint(const std::filesystem::path& root,
                                                    std::string_view which = "latest",
                                                    std::vector<std::string>* warnings = nullptr);

/// Removes all but the newest `keep` (>= 2) committed checkpoints.
void prune_checkpoints(const std::filesystem::path& root, int keep);

/// One thing wrong with a checkpoint; `tensor` is empty when the file as a whole is meant.
struct Damage {
    std::string file;
    std::string tensor;
    std::string message;
};

struct VerifyReport {
    std::int64_t files = 0;
    std::int64_t bytes = 0;
    std::int64_t tensors = 0;
    std::vector<Damage> damages;

    [[nodiscard]] bool ok() const { return damages.empty(); }
    /// One line per damage, or what was checked.
    [[nodiscard]] std::string text() const;
};

/// Reads every byte of the files f with f % ranks == rank (all by default; many ranks share the work) against sizes and
/// checksums, and of a damaged file every tensor, to say which are affected. Never throws for damage.
[[nodiscard]] VerifyReport verify_checkpoint(const std::filesystem::path& directory, int rank = 0, int ranks = 1);

/// Reads a checkpoint: any range of any tensor, however many writers there were. The constructor checks COMMIT, the
/// sizes of all files and the index's checksum; read() checks the checksums of the parts it touches. Every failure is a
/// CheckpointError naming file and tensor.
class CheckpointReader {
  public:
    explicit CheckpointReader(const std::filesystem::path& directory);
    ~CheckpointReader();
    CheckpointReader(CheckpointReader&&) noexcept;
    CheckpointReader& operator=(CheckpointReader&&) noexcept;

    [[nodiscard]] const std::filesystem::path& directory() const;
    [[nodiscard]] int format_version() const;
    /// Version of the library that wrote it.
    [[nodiscard]] const std::string& library() const;
    [[nodiscard]] const CheckpointMeta& meta() const;
    /// By name.
    [[nodiscard]] const std::vector<TensorInfo>& tensors() const;
    [[nodiscard]] bool contains(const std::string& name) const;
    /// CheckpointError naming the directory and the tensor when there is none.
    [[nodiscard]] const TensorInfo& find(const std::string& name) const;
    /// CheckpointError saying what the stored shape is and must be, unless it is `shape`.
    void require_shape(const std::string& name, const std::vector<std::int64_t>& shape) const;
    /// Parts of a tensor in the order of their elements.
    [[nodiscard]] const std::vector<StoredPart>& parts(const std::string& name) const;
    /// All files of the checkpoint but COMMIT, which lists them: the shards by writer, then the index.
    [[nodiscard]] const std::vector<CheckpointFile>& files() const;

    /// Elements [begin, begin + count) of the flattened tensor in the file's type.
    void read(const std::string& name, std::int64_t begin, std::int64_t count, void* out) const;
    /// The same as float or double, from any floating type: to a wider type exactly, to a narrower one rounded to
    /// nearest. CheckpointError for integer tensors.
    template <class T>
    void read_as(const std::string& name, std::int64_t begin, std::int64_t count, T* out) const;

    /// verify_checkpoint() of the directory.
    [[nodiscard]] VerifyReport verify(int rank = 0, int ranks = 1) const;

  private:
    struct State;
    [[nodiscard]] std::size_t index_of(const std::string& name) const;

    std::unique_ptr<State> state_;
};

extern template void CheckpointReader::read_as<float>(const std::string&, std::int64_t, std::int64_t, float*) const;
extern template void CheckpointReader::read_as<double>(const std::string&, std::int64_t, std::int64_t, double*) const;

}  // namespace sparseattn
