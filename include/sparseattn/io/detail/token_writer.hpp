#pragma once
/// \file
/// Writes token data sets of any source; the format is described in docs/data.md.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/h5.hpp"
#include "sparseattn/io/files.hpp"
#include "sparseattn/io/token_dataset.hpp"

namespace sparseattn::detail {

inline constexpr const char* token_format = "sparseattn-tokens";
inline constexpr std::int64_t token_format_version = 1;

/// One data set in the making, in a temporary file beside `output`; finish() puts it in place, the destructor removes
/// it otherwise.
class TokenDatasetWriter {
  public:
    TokenDatasetWriter(const std::filesystem::path& output, int vocab_size, const std::string& tokenizer,
                       SpecialTokens special);

    enum class Split { train, validation };
    /// Tokens of one document, bos and eos included.
    void add_document(Split split, std::span<const std::int32_t> tokens);
    void write_attribute(Split split, const std::string& name, double value);
    void finish(const nlohmann::json& source);

  private:
    struct Stream {
        Stream(h5::File& file, const std::string& name, DType dtype);
        void flush();

        std::string name;
        h5::Dataset tokens;
        std::vector<std::int64_t> offsets = {0};
        std::vector<std::uint8_t> pending;  // tokens in the file's type
        ChecksumStream sum;
    };
    Stream& stream(Split split) { return split == Split::train ? train_ : validation_; }

    PendingFile pending_;
    DType dtype_;
    std::unique_ptr<h5::File> file_;
    Stream train_;
    Stream validation_;
};

}  // namespace sparseattn::detail
