#include "sparseattn/io/text_import.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <sstream>
#include <tuple>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/detail/token_writer.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace {

namespace fs = std::filesystem;
using ByteCounts = std::array<std::int64_t, 256>;

constexpr int byte_vocab_size = 259;  // 256 bytes, bos, eos, pad

void check_options(const std::vector<fs::path>& inputs, const TextImportOptions& options) {
    require(!inputs.empty(), "inputs", "empty", "at least one file or folder");
    require(options.validation_fraction > 0 && options.validation_fraction < 1, "validation_fraction",
            options.validation_fraction, "above 0 and below 1");
    require(options.max_file_bytes > 0, "max_file_bytes", options.max_file_bytes, "above 0");
}

// Finds the files, in the order of their names.
class FileList {
  public:
    FileList(const TextImportOptions& options, TextImportReport& report) : options_(options), report_(report) {}

    std::vector<fs::path> find(const std::vector<fs::path>& inputs) {
        for (const fs::path& input : inputs) {
            const fs::file_status status = status_of(input, true);
            if (fs::is_directory(status)) {
                walk(input);
            } else if (fs::is_regular_file(status)) {
                take(input);
            } else {
                throw FileError(input.string() + ": is neither a file nor a folder");
            }
        }
        std::sort(files_.begin(), files_.end(),
                  [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
        // A folder and its subfolder may both have been named.
        files_.erase(std::unique(files_.begin(), files_.end()), files_.end());
        report_.files_seen += static_cast<std::int64_t>(files_.size());
        return std::move(files_);
    }

  private:
    static fs::file_status status_of(const fs::path& path, bool follow) {
        std::error_code error;
        const fs::file_status status = follow ? fs::status(path, error) : fs::symlink_status(path, error);
        if (status.type() == fs::file_type::not_found) throw FileError(path.string() + ": does not exist");
        if (error) throw FileError(path.string() + ": cannot be looked at: " + error.message());
        return status;
    }

    void walk(const fs::path& folder) {
        std::error_code error;
        const fs::path canonical = fs::canonical(folder, error);
        // Reached twice through links or inputs; also ends a circle of links.
        if (!error && !visited_.insert(canonical).second) return;
        fs::directory_iterator entries;
        if (!error) entries = fs::directory_iterator(folder, error);
        for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
            const fs::path path = entries->path();
            if (!options_.follow_symlinks && fs::is_symlink(status_of(path, false))) {
                ++report_.skipped_special;
                continue;
            }
            const fs::file_status status = status_of(path, true);
            if (fs::is_directory(status)) {
                walk(path);
            } else if (fs::is_regular_file(status)) {
                take(path);
            } else {
                ++report_.skipped_special;
            }
        }
        if (error) throw FileError(folder.string() + ": cannot be read: " + error.message());
    }

    void take(const fs::path& file) {
        const std::string name = file.filename().string();
        const bool wanted =
            options_.extensions.empty() ||
            std::any_of(options_.extensions.begin(), options_.extensions.end(), [&](const std::string& ending) {
                return ending.empty() ? name.find('.') == std::string::npos : name.ends_with(ending);
            });
        if (wanted) {
            files_.push_back(file);
        } else {
            ++report_.files_seen;
            ++report_.skipped_filter;
        }
    }

    const TextImportOptions& options_;
    TextImportReport& report_;
    std::vector<fs::path> files_;
    std::set<fs::path> visited_;
};

std::int64_t total(const ByteCounts& counts) {
    std::int64_t sum = 0;
    for (const std::int64_t count : counts) sum += count;
    return sum;
}

double entropy(const ByteCounts& counts) {
    const auto all = static_cast<double>(total(counts));
    double sum = 0;
    for (const std::int64_t count : counts) {
        if (count > 0) sum -= static_cast<double>(count) / all * std::log(static_cast<double>(count) / all);
    }
    return sum;
}

double cross_entropy(const ByteCounts& train, const ByteCounts& validation) {
    const double train_total = static_cast<double>(total(train)) + 256.0;
    const auto validation_total = static_cast<double>(total(validation));
    double sum = 0;
    for (int byte = 0; byte < 256; ++byte) {
        const double probability = (static_cast<double>(train[byte]) + 1.0) / train_total;
        sum -= static_cast<double>(validation[byte]) / validation_total * std::log(probability);
    }
    return sum;
}

// Takes documents into the data set and counts.
class Importer {
  public:
    Importer(detail::TokenDatasetWriter& writer, const TextImportOptions& options, TextImportReport& report)
        : writer_(writer), options_(options), report_(report) {}

    void add(const fs::path& file) {
        std::error_code error;
        const auto size = fs::file_size(file, error);
        if (error) throw FileError(file.string() + ": cannot be looked at: " + error.message());
        if (size > static_cast<std::uintmax_t>(options_.max_file_bytes)) {
            ++report_.skipped_large;
            return;
        }
        const std::string content = read_file(file);
        if (content.empty()) {
            ++report_.skipped_empty;
        } else if (!options_.keep_binary && content.find('\0') != std::string::npos) {
            ++report_.skipped_binary;
        } else if (!seen_.emplace(content.size(), checksum(content, 1), checksum(content, 2)).second) {
            ++report_.skipped_duplicate;
        } else {
            add_document(content);
        }
    }

    void finish() {
        report_.train.entropy = entropy(train_bytes_);
        report_.validation.entropy = entropy(validation_bytes_);
        report_.validation_cross_entropy = cross_entropy(train_bytes_, validation_bytes_);
    }

  private:
    void add_document(const std::string& content) {
        using Split = detail::TokenDatasetWriter::Split;
        // Of the content, not the name: a file keeps its side when it is moved.
        const double place = static_cast<double>(checksum(content, options_.seed + 3) >> 11) * 0x1.0p-53;
        const bool validation = place < options_.validation_fraction;
        const SpecialTokens special;
        tokens_.clear();
        tokens_.push_back(special.bos);
        ByteCounts& counts = validation ? validation_bytes_ : train_bytes_;
        for (const char character : content) {
            const auto byte = static_cast<unsigned char>(character);
            tokens_.push_back(byte);
            ++counts[byte];
        }
        tokens_.push_back(special.eos);
        writer_.add_document(validation ? Split::validation : Split::train, tokens_);
        TextSplitReport& split = validation ? report_.validation : report_.train;
        ++split.documents;
        split.tokens += static_cast<std::int64_t>(tokens_.size());
        split.bytes += static_cast<std::int64_t>(content.size());
    }

    detail::TokenDatasetWriter& writer_;
    const TextImportOptions& options_;
    TextImportReport& report_;
    ByteCounts train_bytes_{};
    ByteCounts validation_bytes_{};
    std::set<std::tuple<std::size_t, std::uint64_t, std::uint64_t>> seen_;
    std::vector<std::int32_t> tokens_;
};

void check_splits(const TextImportReport& report, const TextImportOptions& options, const fs::path& output) {
    for (const auto& [name, split] : {std::pair("training", &report.train), {"validation", &report.validation}}) {
        if (split->documents > 0) continue;
        throw FileError(concat(output.string(), ": not made: the ", name, " split has no document (",
                               report.train.documents + report.validation.documents, " documents, validation_fraction ",
                               options.validation_fraction, ", seed ", options.seed,
                               "); give more files, or another validation_fraction or seed\n", report.text()));
    }
}

nlohmann::json to_json(const TextSplitReport& split) {
    return {
        {"documents", split.documents}, {"tokens", split.tokens}, {"bytes", split.bytes}, {"entropy", split.entropy}};
}

}  // namespace

TextImportReport import_text(const std::vector<fs::path>& inputs, const fs::path& output,
                             const TextImportOptions& options) {
    check_options(inputs, options);
    TextImportReport report;
    const std::vector<fs::path> files = FileList(options, report).find(inputs);
    detail::TokenDatasetWriter writer(output, byte_vocab_size, "bytes", SpecialTokens{});
    Importer importer(writer, options, report);
    for (const fs::path& file : files) importer.add(file);
    check_splits(report, options, output);
    importer.finish();
    using Split = detail::TokenDatasetWriter::Split;
    writer.write_attribute(Split::train, "entropy", report.train.entropy);
    writer.write_attribute(Split::validation, "entropy", report.validation.entropy);
    writer.write_attribute(Split::validation, "cross_entropy", report.validation_cross_entropy);
    nlohmann::json source = report.to_json();
    source["inputs"] = nlohmann::json::array();
    for (const fs::path& input : inputs) source["inputs"].push_back(input.string());
    source["options"] = {{"validation_fraction", options.validation_fraction},
                         {"seed", options.seed},
                         {"extensions", options.extensions},
                         {"max_file_bytes", options.max_file_bytes},
                         {"keep_binary", options.keep_binary},
                         {"follow_symlinks", options.follow_symlinks}};
    writer.finish(source);
    return report;
}

nlohmann::json TextImportReport::to_json() const {
    return {{"files_seen", files_seen},
            {"skipped",
             {{"filter", skipped_filter},
              {"empty", skipped_empty},
              {"binary", skipped_binary},
              {"large", skipped_large},
              {"duplicate", skipped_duplicate},
              {"special", skipped_special}}},
            {"train", sparseattn::to_json(train)},
            {"validation", sparseattn::to_json(validation)},
            {"validation_cross_entropy", validation_cross_entropy}};
}

std::string TextImportReport::text() const {
    std::ostringstream out;
    out << "files: " << files_seen << " seen; skipped: " << skipped_filter << " by name, " << skipped_empty
        << " empty, " << skipped_binary << " binary, " << skipped_large << " too large, " << skipped_duplicate
        << " duplicates; " << skipped_special << " links or special files\n";
    out << "train: " << train.documents << " documents, " << train.tokens << " tokens, byte entropy " << train.entropy
        << " nats\n";
    out << "validation: " << validation.documents << " documents, " << validation.tokens << " tokens, byte entropy "
        << validation.entropy << " nats, under the training byte frequencies " << validation_cross_entropy << " nats\n";
    return out.str();
}

}  // namespace sparseattn
