#pragma once
/// \file
/// Files that appear complete or not at all.

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace sparseattn {

/// A file in the making beside its target. Until commit() the target stays as it was; without commit() the destructor
/// removes what was written.
class PendingFile {
  public:
    explicit PendingFile(std::filesystem::path target);
    ~PendingFile();
    PendingFile(const PendingFile&) = delete;
    PendingFile& operator=(const PendingFile&) = delete;

    /// Write here, and close it before commit().
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }
    /// Forces the file to storage and renames it to the target; FileError leaves the target as it was.
    void commit();

  private:
    std::filesystem::path target_;
    std::filesystem::path path_;  // empty after commit()
};

/// Replaces `file` by `content` in one step: written beside it, synchronised, renamed, folder synchronised. A failure
/// (FileError naming the file and the system's reason) leaves the previous file as it was.
void write_file_atomically(const std::filesystem::path& file, std::string_view content);

/// The whole file as bytes; FileError when it cannot be read.
[[nodiscard]] std::string read_file(const std::filesystem::path& file);

/// Forces a file's data, or a folder's entries, to storage.
void sync_to_disk(const std::filesystem::path& file_or_folder);

}  // namespace sparseattn
