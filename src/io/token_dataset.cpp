#include "sparseattn/io/token_dataset.hpp"

#include <algorithm>
#include <limits>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/token_writer.hpp"

namespace sparseattn {
namespace detail {

struct TokenSplitFile {
    std::shared_ptr<const h5::File> file;
    std::string name;
    int vocab_size;
    h5::Dataset tokens;
    std::vector<std::int64_t> offsets;

    [[noreturn]] void fail(const std::string& dataset, const std::string& what) const {
        throw FileError(concat(file->path().string(), ": ", name, "/", dataset, ": ", what));
    }
};

}  // namespace detail

namespace {

using detail::TokenSplitFile;

// Stored vocabulary ids lie in the token type and in int32.
std::int64_t attribute_in(const detail::h5::File& file, const std::string& name, std::int64_t low, std::int64_t high) {
    const std::int64_t value = file.integer_attribute("/", name);
    if (value < low || value > high) {
        throw FileError(
            concat(file.path().string(), ": /@", name, " is ", value, ", must be in [", low, ", ", high, "]"));
    }
    return value;
}

void check_offsets(const TokenSplitFile& split) {
    const std::string stored = split.file->text_attribute(split.name + "/document_offsets", "xxh3");
    if (to_hex(checksum(split.offsets.data(), 8 * split.offsets.size())) != stored) {
        split.fail("document_offsets", "does not match its checksum: the file is damaged");
    }
    if (split.offsets.size() < 2) split.fail("document_offsets", "has no document, must have at least one");
    if (split.offsets.front() != 0)
        split.fail("document_offsets", concat("starts at ", split.offsets.front(), ", must be 0"));
    for (std::size_t i = 1; i < split.offsets.size(); ++i) {
        if (split.offsets[i] <= split.offsets[i - 1]) {
            split.fail("document_offsets",
                       concat("entry ", i, " is ", split.offsets[i], ", must be above ", split.offsets[i - 1]));
        }
    }
    if (split.offsets.back() != split.tokens.extent()) {
        split.fail("document_offsets",
                   concat("ends at ", split.offsets.back(), ", must be the number of tokens, ", split.tokens.extent()));
    }
}

TokenSplit open_split(const std::shared_ptr<const detail::h5::File>& file, const std::string& name, int vocab_size) {
    auto split =
        std::make_shared<TokenSplitFile>(TokenSplitFile{file, name, vocab_size, file->dataset(name + "/tokens"), {}});
    const DType dtype = split->tokens.dtype();
    if (dtype != DType::uint16 && dtype != DType::int32) {
        split->fail("tokens", concat("is ", sparseattn::name(dtype), ", must be uint16 or int32"));
    }
    split->offsets = file->read_integers(name + "/document_offsets");
    check_offsets(*split);
    return TokenSplit(std::move(split));
}

}  // namespace

TokenSplit::TokenSplit(std::shared_ptr<const detail::TokenSplitFile> file) : file_(std::move(file)) {}

std::int64_t TokenSplit::tokens() const {
    return file_->tokens.extent();
}

std::int64_t TokenSplit::documents() const {
    return static_cast<std::int64_t>(file_->offsets.size()) - 1;
}

const std::vector<std::int64_t>& TokenSplit::document_offsets() const {
    return file_->offsets;
}

std::int64_t TokenSplit::document_at(std::int64_t token) const {
    require(token >= 0 && token < tokens(), "token", token, concat("in [0, ", tokens(), ")"));
    return std::upper_bound(file_->offsets.begin(), file_->offsets.end(), token) - file_->offsets.begin() - 1;
}

const std::string& TokenSplit::name() const {
    return file_->name;
}

const std::filesystem::path& TokenSplit::file() const {
    return file_->file->path();
}

void TokenSplit::read(std::int64_t begin, std::int64_t count, std::int32_t* out) const {
    const TokenSplitFile& split = *file_;
    split.tokens.read(begin, count, out, DType::int32);
    for (std::int64_t i = 0; i < count; ++i) {
        if (out[i] < 0 || out[i] >= split.vocab_size) {
            split.fail("tokens",
                       concat("token ", begin + i, " is ", out[i], ", must be in [0, ", split.vocab_size, ")"));
        }
    }
}

void TokenSplit::verify() const {
    const TokenSplitFile& split = *file_;
    ChecksumStream sum;
    std::vector<std::uint8_t> buffer;
    constexpr std::int64_t step = 1 << 20;
    for (std::int64_t begin = 0; begin < tokens(); begin += step) {
        const std::int64_t count = std::min(step, tokens() - begin);
        buffer.resize(static_cast<std::size_t>(count * size_of(split.tokens.dtype())));
        split.tokens.read(begin, count, buffer.data());
        sum.add(buffer.data(), buffer.size());
    }
    if (to_hex(sum.value()) != split.file->text_attribute(name() + "/tokens", "xxh3")) {
        split.fail("tokens", "does not match its checksum: the file is damaged");
    }
}

TokenDataset::TokenDataset(TokenSplit train, TokenSplit validation)
    : train_(std::move(train)), validation_(std::move(validation)) {}

TokenDataset TokenDataset::open(const std::filesystem::path& path) {
    const std::shared_ptr<const detail::h5::File> file = detail::h5::File::open(path);
    const std::string format = file->has_attribute("/", "format") ? file->text_attribute("/", "format") : "";
    if (format != detail::token_format) {
        throw FileError(concat(path.string(), ": format is '", format, "', must be '", detail::token_format,
                               "' (make data sets with sparseattn-convert)"));
    }
    const std::int64_t version = file->integer_attribute("/", "version");
    if (version != detail::token_format_version) {
        throw FileError(concat(path.string(), ": format version is ", version, ", this build reads ",
                               detail::token_format_version));
    }
    const std::int64_t vocab_size = attribute_in(*file, "vocab_size", 1, std::numeric_limits<std::int32_t>::max());
    TokenDataset dataset(open_split(file, "train", static_cast<int>(vocab_size)),
                         open_split(file, "validation", static_cast<int>(vocab_size)));
    dataset.vocab_size_ = static_cast<int>(vocab_size);
    dataset.tokenizer_ = file->text_attribute("/", "tokenizer");
    dataset.special_.bos = static_cast<std::int32_t>(attribute_in(*file, "bos", 0, vocab_size - 1));
    dataset.special_.eos = static_cast<std::int32_t>(attribute_in(*file, "eos", 0, vocab_size - 1));
    dataset.special_.pad = static_cast<std::int32_t>(attribute_in(*file, "pad", 0, vocab_size - 1));
    dataset.source_ = nlohmann::json::parse(file->read_text("source"), nullptr, false);
    if (dataset.source_.is_discarded()) throw FileError(path.string() + ": source: is not JSON");
    return dataset;
}

void TokenDataset::verify() const {
    train_.verify();
    validation_.verify();
}

}  // namespace sparseattn
