#pragma once
// Real text in stretches of a wanted length.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "sparseattn/io/packed_batch.hpp"

namespace sparseattn::detail {

class PrefillText {
  public:
    // The beginning of a split, as far as `most` tokens.
    [[nodiscard]] static PrefillText of_split(const TokenSplit& split, std::int64_t most);
    // Files as byte tokens, each begun by `bos` and ended by `eos`.
    [[nodiscard]] static PrefillText of_files(const std::vector<std::filesystem::path>& files,
                                              const SpecialTokens& special);

    // Tokens that the source has (not only those read).
    [[nodiscard]] std::int64_t available() const { return available_; }
    // For messages: "the validation split of FILE".
    [[nodiscard]] const std::string& source() const { return source_; }

    // Stretch number `sample` of `length` tokens. `documents`: pieces of different documents are sequences of their
    // own, positions restart, and labels stay inside; otherwise the stretch is one sequence. The last token of a
    // sequence has no label.
    [[nodiscard]] PackedTokens stretch(int sample, std::int64_t length, bool documents) const;

  private:
    std::vector<std::int32_t> tokens_;
    std::vector<std::int64_t> document_begins_;  // ascending, from 0
    std::int64_t available_ = 0;
    std::string source_;
};

}  // namespace sparseattn::detail
