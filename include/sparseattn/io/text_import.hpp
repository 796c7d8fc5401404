#pragma once
/// \file
/// Makes a token data set of any files: bytes as tokens, one document per file.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sparseattn {

struct TextImportOptions {
    /// Of the documents, by hash of content and seed; in (0, 1).
    double validation_fraction = 0.05;
    std::uint64_t seed = 1;
    /// Take only files whose name ends in one of these (".hpp", ".txt"; empty text: names without a dot). None: all.
    std::vector<std::string> extensions;
    /// Files above this are skipped and counted, in bytes.
    std::int64_t max_file_bytes = std::int64_t(64) << 20;
    /// Take files with NUL bytes too.
    bool keep_binary = false;
    /// Follow symbolic links inside folders; links named as an input are always followed.
    bool follow_symlinks = false;
};

/// Counts of one split.
struct TextSplitReport {
    std::int64_t documents = 0;
    std::int64_t tokens = 0;  ///< with bos and eos
    std::int64_t bytes = 0;
    /// Of the split's own byte frequencies, nats per byte.
    double entropy = 0;
};

struct TextImportReport {
    std::int64_t files_seen = 0;      ///< regular files met
    std::int64_t skipped_filter = 0;  ///< name not wanted
    std::int64_t skipped_empty = 0;
    std::int64_t skipped_binary = 0;
    std::int64_t skipped_large = 0;
    std::int64_t skipped_duplicate = 0;  ///< same content as an earlier file
    std::int64_t skipped_special = 0;    ///< links not followed, sockets, pipes, devices
    TextSplitReport train, validation;
    /// Mean of -ln p(byte) over the validation bytes, p the training split's byte frequencies with one count added to
    /// each of the 256 bytes: what a model that knows byte frequencies only reaches. Nats per byte.
    double validation_cross_entropy = 0;

    [[nodiscard]] nlohmann::json to_json() const;
    [[nodiscard]] std::string text() const;
};

/// Writes data set `output` from files and folders (recursively). The result depends only on names, contents and
/// options: files are taken in the order of their names. `output` appears when complete.
///
/// FileError naming the file for a missing or unreadable input, and when a split gets no document; InvalidArgument
/// for options outside their range.
TextImportReport import_text(const std::vector<std::filesystem::path>& inputs, const std::filesystem::path& output,
                             const TextImportOptions& options);

}  // namespace sparseattn
