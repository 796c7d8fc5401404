#pragma once
/// \file
/// What sparseattn-inspect shows: one JSON document per file, and its text form.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace sparseattn {

struct InspectOptions {
    bool statistics = false;  ///< read every tensor: Euclidean norm, smallest, largest, number of non-finite values
    bool verify = false;      ///< read every byte against the checksums
};

/// A checkpoint directory: "kind", "path", "step", "format_version", "library", "deck", "state", "files", "tensors"
/// (name, dtype, shape, count, parts, and with statistics: norm, min, max, nonfinite), "verify".
[[nodiscard]] nlohmann::json inspect_checkpoint(const std::filesystem::path& directory, const InspectOptions& options);
/// A token data set: "kind", "path", "vocab_size", "tokenizer", "special", "splits", "source", "verify".
[[nodiscard]] nlohmann::json inspect_token_dataset(const std::filesystem::path& file, const InspectOptions& options);
/// Either of them, or the newest checkpoint of a folder of checkpoints.
[[nodiscard]] nlohmann::json inspect(const std::filesystem::path& path, const InspectOptions& options);
/// The document as text for a terminal.
[[nodiscard]] std::string inspect_text(const nlohmann::json& document);

}  // namespace sparseattn
