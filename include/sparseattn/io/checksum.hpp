#pragma once
/// \file
/// XXH3-64 checksums of memory and files.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace sparseattn {

/// XXH3-64 of `bytes` bytes.
[[nodiscard]] std::uint64_t checksum(const void* data, std::size_t bytes, std::uint64_t seed = 0);
[[nodiscard]] std::uint64_t checksum(std::string_view text, std::uint64_t seed = 0);
/// XXH3-64 of a whole file; FileError when it cannot be read.
[[nodiscard]] std::uint64_t file_checksum(const std::filesystem::path& file);

/// XXH3-64 of data that arrives in pieces.
class ChecksumStream {
  public:
    ChecksumStream();
    void add(const void* data, std::size_t bytes);
    /// Of everything added so far.
    [[nodiscard]] std::uint64_t value() const;

  private:
    struct Free {
        void operator()(void* state) const;
    };
    std::unique_ptr<void, Free> state_;
};

/// 16 lower-case hexadecimal digits.
[[nodiscard]] std::string to_hex(std::uint64_t value);
/// Inverse of to_hex(); InvalidArgument unless exactly 16 hexadecimal digits.
[[nodiscard]] std::uint64_t parse_hex(std::string_view text);

}  // namespace sparseattn
