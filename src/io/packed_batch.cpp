#include "sparseattn/io/packed_batch.hpp"

#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"

namespace sparseattn {

std::int64_t permuted(std::int64_t index, std::int64_t size, std::uint64_t seed, std::uint64_t epoch) {
    require(size > 0 && size <= std::int64_t(1) << 62, "size", size, "in [1, 2^62]");
    require(index >= 0 && index < size, "index", index, concat("in [0, ", size, ")"));
    int half = 1;  // bits of each half
    while (std::uint64_t(1) << (2 * half) < static_cast<std::uint64_t>(size)) ++half;
    const std::uint64_t mask = (std::uint64_t(1) << half) - 1;
    const RandomStream stream(seed, RandomPurpose::data_order, epoch);
    auto value = static_cast<std::uint64_t>(index);
    do {
        std::uint64_t left = value >> half;
        std::uint64_t right = value & mask;
        for (std::uint64_t round = 0; round < 8; ++round) {
            const std::uint64_t mixed = left ^ (stream.bits(round << 32 | right) & mask);
            left = right;
            right = mixed;
        }
        value = left << half | right;
    } while (value >= static_cast<std::uint64_t>(size));
    return static_cast<std::int64_t>(value);
}

PackStream::PackStream(const TokenSplit& split, int length, std::uint64_t seed, bool shuffle)
    : split_(split), length_(length), seed_(seed), shuffle_(shuffle), windows_(0) {
    require(length >= 2 && length <= 1 << 30, "sequence length", length, "in [2, 2^30]");
    if (split.tokens() <= length) {
        throw InvalidArgument(concat("the ", split.name(), " split of ", split.file().string(), " has ", split.tokens(),
                                     " tokens, must have at least ", std::int64_t(length) + 1, " for sequence length ",
                                     length));
    }
    windows_ = split.tokens() / length;
}

std::int64_t PackStream::window(std::int64_t index) const {
    require(index >= 0, "pack index", index, "at least 0");
    const std::int64_t place = index % windows_;
    return shuffle_ ? permuted(place, windows_, seed_, static_cast<std::uint64_t>(index / windows_)) : place;
}

PackedTokens PackStream::pack(std::int64_t index) const {
    const std::int64_t begin = window(index) * length_;
    const std::int64_t end = begin + length_;
    // The token behind the window is the label of its last position.
    const std::int64_t have = std::min(end + 1, split_.tokens()) - begin;
    PackedTokens pack;
    pack.tokens.resize(static_cast<std::size_t>(have));
    split_.read(begin, have, pack.tokens.data());
    pack.labels.assign(pack.tokens.begin() + 1, pack.tokens.end());
    pack.labels.resize(static_cast<std::size_t>(length_), -1);
    pack.tokens.resize(static_cast<std::size_t>(length_));
    pack.positions.resize(static_cast<std::size_t>(length_));
    const std::vector<std::int64_t>& borders = split_.document_offsets();
    for (std::int64_t piece = begin, document = split_.document_at(begin); piece < end; ++document) {
        const std::int64_t next = borders[static_cast<std::size_t>(document) + 1];
        pack.offsets.push_back(static_cast<std::int32_t>(piece - begin));
        for (std::int64_t i = piece; i < std::min(next, end); ++i) {
            pack.positions[static_cast<std::size_t>(i - begin)] = static_cast<std::int32_t>(i - piece);
        }
        // The first token of a document is no label.
        if (next <= end) pack.labels[static_cast<std::size_t>(next - 1 - begin)] = -1;
        piece = next;
    }
    pack.offsets.push_back(length_);
    return pack;
}

}  // namespace sparseattn
