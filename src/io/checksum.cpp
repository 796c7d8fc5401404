#include "sparseattn/io/checksum.hpp"

#include <xxhash.h>

#include <cctype>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <new>
#include <vector>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {
XXH3_state_t* as_state(void* state) {
    return static_cast<XXH3_state_t*>(state);
}
}  // namespace

std::uint64_t checksum(const void* data, std::size_t bytes, std::uint64_t seed) {
    return XXH3_64bits_withSeed(data, bytes, seed);
}

std::uint64_t checksum(std::string_view text, std::uint64_t seed) {
    return checksum(text.data(), text.size(), seed);
}

void ChecksumStream::Free::operator()(void* state) const {
    XXH3_freeState(as_state(state));
}

ChecksumStream::ChecksumStream() : state_(XXH3_createState()) {
    if (!state_) throw std::bad_alloc();
    XXH3_64bits_reset(as_state(state_.get()));
}

void ChecksumStream::add(const void* data, std::size_t bytes) {
    XXH3_64bits_update(as_state(state_.get()), data, bytes);
}

std::uint64_t ChecksumStream::value() const {
    return XXH3_64bits_digest(as_state(state_.get()));
}

std::uint64_t file_checksum(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    std::vector<char> buffer(std::size_t(1) << 20);
    ChecksumStream stream;
    while (in) {
        in.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
        stream.add(buffer.data(), static_cast<std::size_t>(in.gcount()));
    }
    if (!in.eof()) throw FileError(file.string() + ": cannot be read");
    return stream.value();
}

std::string to_hex(std::uint64_t value) {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
    return text;
}

std::uint64_t parse_hex(std::string_view text) {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    require(text.size() == 16 && error == std::errc() && end == text.data() + text.size(), "checksum", text,
            "16 hexadecimal digits");
    return value;
}

}  // namespace sparseattn
