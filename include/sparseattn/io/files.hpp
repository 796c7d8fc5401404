#pragma once
/// \file
/// Files that appear complete or not at all.

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace sparseattn {

/// Replaces `file` by `content` in one step: written beside it, synchronised, renamed, folder synchronised. A failure
/// (FileError naming the file and the system's reason) leaves the previous file as it was.
void write_file_atomically(const std::filesystem::path& file, std::string_view content);

/// The whole file as bytes; FileError when it cannot be read.
[[nodiscard]] std::string read_file(const std::filesystem::path& file);

/// Forces a file's data, or a folder's entries, to storage.
void sync_to_disk(const std::filesystem::path& file_or_folder);

}  // namespace sparseattn
