#include "sparseattn/app/detail/prefill_text.hpp"

#include <algorithm>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn::detail {

PrefillText PrefillText::of_split(const TokenSplit& split, std::int64_t most) {
    PrefillText text;
    text.available_ = split.tokens();
    text.source_ = concat("the ", split.name(), " split of ", split.file().string());
    text.tokens_.resize(static_cast<std::size_t>(std::min(most, text.available_)));
    split.read(0, static_cast<std::int64_t>(text.tokens_.size()), text.tokens_.data());
    text.document_begins_ = split.document_offsets();
    return text;
}

PrefillText PrefillText::of_files(const std::vector<std::filesystem::path>& files, const SpecialTokens& special) {
    PrefillText text;
    for (const std::filesystem::path& file : files) {
        text.document_begins_.push_back(static_cast<std::int64_t>(text.tokens_.size()));
        text.tokens_.push_back(special.bos);
        for (const char byte : read_file(file)) text.tokens_.push_back(static_cast<unsigned char>(byte));
        text.tokens_.push_back(special.eos);
    }
    text.available_ = static_cast<std::int64_t>(text.tokens_.size());
    text.source_ = files.size() == 1 ? files.front().string() : concat("the ", files.size(), " text files");
    return text;
}

PackedTokens PrefillText::stretch(int sample, std::int64_t length, bool documents) const {
    const std::int64_t begin = sample * length, end = begin + length;
    require(begin >= 0 && end <= static_cast<std::int64_t>(tokens_.size()), "stretch", concat(begin, " to ", end),
            concat("inside the ", tokens_.size(), " tokens read"));
    PackedTokens pack;
    pack.tokens.assign(tokens_.begin() + begin, tokens_.begin() + end);
    pack.offsets = {0};
    if (documents) {
        for (const std::int64_t border : document_begins_) {
            if (border > begin && border < end) pack.offsets.push_back(static_cast<std::int32_t>(border - begin));
        }
    }
    pack.offsets.push_back(static_cast<std::int32_t>(length));
    for (std::size_t s = 0; s + 1 < pack.offsets.size(); ++s) {
        for (std::int32_t t = pack.offsets[s]; t < pack.offsets[s + 1]; ++t) {
            pack.positions.push_back(t - pack.offsets[s]);
            pack.labels.push_back(t + 1 < pack.offsets[s + 1] ? pack.tokens[t + 1] : -1);
        }
    }
    return pack;
}

}  // namespace sparseattn::detail
