#pragma once
/// \file
/// Packs: fixed-length windows of a split's token stream, in an order that is a pure function of a counter.

#include <cstdint>
#include <vector>

#include "sparseattn/io/token_dataset.hpp"

namespace sparseattn {

/// One window. Pieces of different documents are different sequences.
struct PackedTokens {
    std::vector<std::int32_t> tokens;     ///< [length]
    std::vector<std::int32_t> labels;     ///< [length] the next token of the same document, -1: none
    std::vector<std::int32_t> positions;  ///< [length] index inside the piece, from 0 at every offset
    std::vector<std::int32_t> offsets;    ///< borders of the pieces in the window, from 0 to length
};

/// The endless sequence of packs of a split. Epoch e is packs [e * packs_per_epoch(), (e + 1) * packs_per_epoch()):
/// every window once, shuffled anew in each epoch. The stream's tail shorter than `length` is left out.
class PackStream {
  public:
    /// `length` in [2, 2^30]; InvalidArgument naming split and file when it has fewer than length + 1 tokens.
    PackStream(const TokenSplit& split, int length, std::uint64_t seed, bool shuffle);

    [[nodiscard]] std::int64_t packs_per_epoch() const { return windows_; }
    [[nodiscard]] int length() const { return length_; }
    /// Window of the split that pack `index` (>= 0) is.
    [[nodiscard]] std::int64_t window(std::int64_t index) const;
    /// Pack `index` (>= 0); the same for the same split, length and seed, in any process.
    [[nodiscard]] PackedTokens pack(std::int64_t index) const;

  private:
    TokenSplit split_;
    int length_;
    std::uint64_t seed_;
    bool shuffle_;
    std::int64_t windows_;
};

/// Value of `index` under a permutation of [0, size) chosen by (seed, epoch): a Feistel network of four Philox rounds
/// on the smallest even number of bits that holds size, walked until it lands inside.
[[nodiscard]] std::int64_t permuted(std::int64_t index, std::int64_t size, std::uint64_t seed, std::uint64_t epoch);

}  // namespace sparseattn
