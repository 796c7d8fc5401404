#include "sparseattn/io/detail/token_writer.hpp"

#include <cstring>

namespace sparseattn::detail {
namespace {

constexpr std::int64_t chunk_tokens = 1 << 15;
constexpr std::size_t flush_bytes = std::size_t(1) << 20;

}  // namespace

TokenDatasetWriter::Stream::Stream(h5::File& file, const std::string& group, DType dtype)
    : name(group),
      tokens((file.make_group(group), file.make_growing_dataset(group + "/tokens", dtype, chunk_tokens))) {}

void TokenDatasetWriter::Stream::flush() {
    sum.add(pending.data(), pending.size());
    tokens.append(static_cast<std::int64_t>(pending.size()) / size_of(tokens.dtype()), pending.data());
    pending.clear();
}

TokenDatasetWriter::TokenDatasetWriter(const std::filesystem::path& output, int vocab_size,
                                       const std::string& tokenizer, SpecialTokens special)
    : pending_(output),
      dtype_(vocab_size <= 1 << 16 ? DType::uint16 : DType::int32),
      file_(h5::File::create(pending_.path())),
      train_(*file_, "train", dtype_),
      validation_(*file_, "validation", dtype_) {
    file_->write_attribute("/", "format", std::string(token_format));
    file_->write_attribute("/", "version", token_format_version);
    file_->write_attribute("/", "vocab_size", std::int64_t(vocab_size));
    file_->write_attribute("/", "tokenizer", tokenizer);
    file_->write_attribute("/", "bos", std::int64_t(special.bos));
    file_->write_attribute("/", "eos", std::int64_t(special.eos));
    file_->write_attribute("/", "pad", std::int64_t(special.pad));
}

void TokenDatasetWriter::add_document(Split split, std::span<const std::int32_t> tokens) {
    Stream& out = stream(split);
    const auto old = out.pending.size();
    if (dtype_ == DType::uint16) {
        out.pending.resize(old + 2 * tokens.size());
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            const auto value = static_cast<std::uint16_t>(tokens[i]);
            std::memcpy(out.pending.data() + old + 2 * i, &value, sizeof value);
        }
    } else {
        out.pending.resize(old + 4 * tokens.size());
        std::memcpy(out.pending.data() + old, tokens.data(), 4 * tokens.size());
    }
    out.offsets.push_back(out.offsets.back() + static_cast<std::int64_t>(tokens.size()));
    if (out.pending.size() >= flush_bytes) out.flush();
}

void TokenDatasetWriter::write_attribute(Split split, const std::string& name, double value) {
    file_->write_attribute(stream(split).name, name, value);
}

void TokenDatasetWriter::finish(const nlohmann::json& source) {
    for (Stream* out : {&train_, &validation_}) {
        out->flush();
        file_->write_attribute(out->name + "/tokens", "xxh3", to_hex(out->sum.value()));
        const std::string offsets = out->name + "/document_offsets";
        const auto count = static_cast<std::int64_t>(out->offsets.size());
        file_->make_dataset(offsets, DType::int64, count, chunk_tokens).write(0, count, out->offsets.data());
        file_->write_attribute(offsets, "xxh3", to_hex(checksum(out->offsets.data(), 8 * out->offsets.size())));
    }
    file_->write_text("source", source.dump(2));
    file_->close();
    pending_.commit();
}

}  // namespace sparseattn::detail
