#pragma once
/// \file
/// Token data sets: HDF5 files of tokenised documents in a training and a validation split (docs/data.md).

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sparseattn {

/// Ids that are not content. In byte data sets 256, 257, 258.
struct SpecialTokens {
    std::int32_t bos = 256;  ///< starts every document
    std::int32_t eos = 257;  ///< ends every document
    std::int32_t pad = 258;
};

namespace detail {
struct TokenSplitFile;
}

/// One split: a stream of tokens, cut into documents. Copies share the open file.
class TokenSplit {
  public:
    explicit TokenSplit(std::shared_ptr<const detail::TokenSplitFile> file);

    [[nodiscard]] std::int64_t tokens() const;
    [[nodiscard]] std::int64_t documents() const;
    /// documents() + 1 positions in the stream, from 0 to tokens().
    [[nodiscard]] const std::vector<std::int64_t>& document_offsets() const;
    /// Index of the document that holds stream position `token`, in [0, tokens()).
    [[nodiscard]] std::int64_t document_at(std::int64_t token) const;
    /// Tokens [begin, begin + count) into `out`. FileError naming file and dataset when they cannot be read, fail their
    /// checksum or lie outside the vocabulary.
    void read(std::int64_t begin, std::int64_t count, std::int32_t* out) const;
    /// Reads every token against the split's checksum; FileError naming file and dataset when they differ.
    void verify() const;
    /// "train" or "validation".
    [[nodiscard]] const std::string& name() const;
    [[nodiscard]] const std::filesystem::path& file() const;

  private:
    std::shared_ptr<const detail::TokenSplitFile> file_;
};

/// An open token data set.
class TokenDataset {
  public:
    /// Opens and checks format, attributes, shapes and document borders (not every token: see verify()).
    /// FileError naming file and dataset otherwise.
    [[nodiscard]] static TokenDataset open(const std::filesystem::path& file);

    [[nodiscard]] int vocab_size() const { return vocab_size_; }
    /// "bytes": token = byte.
    [[nodiscard]] const std::string& tokenizer() const { return tokenizer_; }
    [[nodiscard]] const SpecialTokens& special() const { return special_; }
    /// How the data set was made and its statistics (TextImportReport::to_json()).
    [[nodiscard]] const nlohmann::json& source() const { return source_; }
    [[nodiscard]] const TokenSplit& train() const { return train_; }
    [[nodiscard]] const TokenSplit& validation() const { return validation_; }
    /// TokenSplit::verify() of both splits.
    void verify() const;

  private:
    TokenDataset(TokenSplit train, TokenSplit validation);

    int vocab_size_ = 0;
    std::string tokenizer_;
    SpecialTokens special_;
    nlohmann::json source_;
    TokenSplit train_;
    TokenSplit validation_;
};

}  // namespace sparseattn
