#include "sparseattn/io/inspect.hpp"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>
#include <sstream>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/io/checksum.hpp"
#include "sparseattn/io/token_dataset.hpp"

namespace sparseattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Over the elements of one tensor, in double.
class Statistics {
  public:
    void add(double value) {
        if (!std::isfinite(value)) {
            ++nonfinite_;
            return;
        }
        ++finite_;
        squares_ += value * value;
        smallest_ = std::min(smallest_, value);
        largest_ = std::max(largest_, value);
    }

    void write(json& entry) const {
        entry["norm"] = std::sqrt(squares_);
        entry["min"] = finite_ > 0 ? json(smallest_) : json();
        entry["max"] = finite_ > 0 ? json(largest_) : json();
        entry["nonfinite"] = nonfinite_;
    }

  private:
    std::int64_t finite_ = 0;
    std::int64_t nonfinite_ = 0;
    double squares_ = 0;
    double smallest_ = std::numeric_limits<double>::infinity();
    double largest_ = -std::numeric_limits<double>::infinity();
};

template <class T>
void add_all(const CheckpointReader& reader, const TensorInfo& tensor, Statistics& statistics) {
    std::vector<T> buffer;
    // Part by part: each is checked as a whole anyway.
    for (const StoredPart& part : reader.parts(tensor.name)) {
        buffer.resize(static_cast<std::size_t>(part.count));
        reader.read(tensor.name, part.begin, part.count, buffer.data());
        for (const T& value : buffer) statistics.add(static_cast<double>(value));
    }
}

void add_statistics(const CheckpointReader& reader, const TensorInfo& tensor, json& entry) {
    Statistics statistics;
    switch (tensor.dtype) {
        case DType::float32:
            add_all<float>(reader, tensor, statistics);
            break;
        case DType::float64:
            add_all<double>(reader, tensor, statistics);
            break;
        case DType::bfloat16:
            add_all<bf16>(reader, tensor, statistics);
            break;
        case DType::int32:
            add_all<std::int32_t>(reader, tensor, statistics);
            break;
        case DType::int64:
            add_all<std::int64_t>(reader, tensor, statistics);
            break;
        case DType::uint8:
            add_all<std::uint8_t>(reader, tensor, statistics);
            break;
        case DType::uint16:
            add_all<std::uint16_t>(reader, tensor, statistics);
            break;
    }
    statistics.write(entry);
}

json verify_json(const VerifyReport& report) {
    json document = {{"ok", report.ok()},
                     {"files", report.files},
                     {"bytes", report.bytes},
                     {"tensors", report.tensors},
                     {"damages", json::array()}};
    for (const Damage& damage : report.damages) {
        document["damages"].push_back({{"file", damage.file}, {"tensor", damage.tensor}, {"message", damage.message}});
    }
    return document;
}

json split_json(const TokenSplit& split) {
    const auto& offsets = split.document_offsets();
    std::int64_t longest = 0;
    for (std::size_t i = 1; i < offsets.size(); ++i) longest = std::max(longest, offsets[i] - offsets[i - 1]);
    return {{"name", split.name()},
            {"documents", split.documents()},
            {"tokens", split.tokens()},
            {"longest_document", longest}};
}

std::string shape_text(const json& shape) {
    std::string text;
    for (const json& extent : shape) text += (text.empty() ? "" : " x ") + std::to_string(extent.get<std::int64_t>());
    return text;
}

std::string number(const json& value) {
    if (!value.is_number()) return "-";
    std::ostringstream out;
    out << std::setprecision(6) << value.get<double>();
    return out.str();
}

// Columns as wide as their widest cell; text to the left, numbers to the right.
void print_table(std::ostream& out, const std::vector<std::vector<std::string>>& rows, std::size_t left_columns) {
    std::vector<std::size_t> width(rows.front().size(), 0);
    for (const auto& row : rows) {
        for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], row[c].size());
    }
    for (const auto& row : rows) {
        for (std::size_t c = 0; c < row.size(); ++c) {
            const std::string fill(width[c] - row[c].size(), ' ');
            out << (c == 0 ? "  " : "   ") << (c < left_columns ? row[c] + fill : fill + row[c]);
        }
        out << '\n';
    }
}

void print_verify(std::ostream& out, const json& document) {
    if (!document.contains("verify")) return;
    const json& verify = document["verify"];
    if (verify["ok"].get<bool>()) {
        out << "verified: every byte matches its checksum\n";
        return;
    }
    for (const json& damage : verify["damages"]) {
        const auto tensor = damage["tensor"].get<std::string>();
        out << "damaged: " << damage["file"].get<std::string>() << (tensor.empty() ? "" : ", tensor '" + tensor + "'")
            << ": " << damage["message"].get<std::string>() << '\n';
    }
}

void print_checkpoint(std::ostream& out, const json& document) {
    out << "checkpoint " << document["path"].get<std::string>() << '\n';
    if (!document.contains("tensors")) return print_verify(out, document);  // too damaged to open
    out << "step " << document["step"] << ", format " << document["format_version"] << ", written by "
        << document["library"].get<std::string>() << "\n\nfiles\n";
    std::vector<std::vector<std::string>> rows = {{"name", "bytes", "XXH3-64"}};
    for (const json& file : document["files"]) {
        rows.push_back({file["name"], std::to_string(file["bytes"].get<std::int64_t>()), file["xxh3"]});
    }
    print_table(out, rows, 1);
    const bool statistics = !document["tensors"].empty() && document["tensors"][0].contains("norm");
    rows = {{"name", "type", "shape", "elements", "parts"}};
    if (statistics) rows[0].insert(rows[0].end(), {"norm", "min", "max", "not finite"});
    std::int64_t elements = 0;
    for (const json& tensor : document["tensors"]) {
        elements += tensor["count"].get<std::int64_t>();
        rows.push_back({tensor["name"], tensor["dtype"], shape_text(tensor["shape"]),
                        std::to_string(tensor["count"].get<std::int64_t>()),
                        std::to_string(tensor["parts"].get<std::int64_t>())});
        if (statistics) {
            rows.back().insert(rows.back().end(), {number(tensor["norm"]), number(tensor["min"]), number(tensor["max"]),
                                                   number(tensor["nonfinite"])});
        }
    }
    out << '\n' << document["tensors"].size() << " tensors, " << elements << " elements\n";
    print_table(out, rows, 3);
    out << "\nstate\n" << document["state"].dump(2) << "\n\ndeck\n" << document["deck"].get<std::string>() << '\n';
    print_verify(out, document);
}

void print_dataset(std::ostream& out, const json& document) {
    out << "token data set " << document["path"].get<std::string>() << '\n';
    if (!document.contains("splits")) return print_verify(out, document);
    const json& special = document["special"];
    out << "tokenizer " << document["tokenizer"].get<std::string>() << ", vocabulary " << document["vocab_size"]
        << " (bos " << special["bos"] << ", eos " << special["eos"] << ", pad " << special["pad"] << ")\n\n";
    std::vector<std::vector<std::string>> rows = {{"split", "documents", "tokens", "longest document"}};
    for (const json& split : document["splits"]) {
        rows.push_back({split["name"], std::to_string(split["documents"].get<std::int64_t>()),
                        std::to_string(split["tokens"].get<std::int64_t>()),
                        std::to_string(split["longest_document"].get<std::int64_t>())});
    }
    print_table(out, rows, 1);
    out << "\nsource\n" << document["source"].dump(2) << '\n';
    print_verify(out, document);
}

}  // namespace

json inspect_checkpoint(const fs::path& directory, const InspectOptions& options) {
    json document = {{"kind", "checkpoint"}, {"path", directory.string()}};
    if (options.verify) {
        const VerifyReport report = verify_checkpoint(directory);
        document["verify"] = verify_json(report);
        // What cannot be trusted is not shown.
        if (!report.ok()) return document;
    }
    const CheckpointReader reader(directory);
    document["step"] = reader.meta().step;
    document["format_version"] = reader.format_version();
    document["library"] = reader.library();
    document["deck"] = reader.meta().deck;
    document["state"] = reader.meta().state;
    document["files"] = json::array();
    for (const CheckpointFile& file : reader.files()) {
        document["files"].push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3", to_hex(file.xxh3)}});
    }
    document["tensors"] = json::array();
    for (const TensorInfo& tensor : reader.tensors()) {
        json entry = {{"name", tensor.name},
                      {"dtype", std::string(name(tensor.dtype))},
                      {"shape", tensor.shape},
                      {"count", tensor.count()},
                      {"parts", reader.parts(tensor.name).size()}};
        if (options.statistics) add_statistics(reader, tensor, entry);
        document["tensors"].push_back(std::move(entry));
    }
    return document;
}

json inspect_token_dataset(const fs::path& file, const InspectOptions& options) {
    json document = {{"kind", "token data set"}, {"path", file.string()}};
    const TokenDataset dataset = TokenDataset::open(file);
    if (options.verify) {
        VerifyReport report;
        report.files = 1;
        report.bytes = static_cast<std::int64_t>(fs::file_size(file));
        for (const TokenSplit* split : {&dataset.train(), &dataset.validation()}) {
            try {
                split->verify();
            } catch (const FileError& error) {
                report.damages.push_back({file.filename().string(), split->name() + "/tokens", error.what()});
            }
        }
        document["verify"] = verify_json(report);
    }
    document["vocab_size"] = dataset.vocab_size();
    document["tokenizer"] = dataset.tokenizer();
    document["special"] = {
        {"bos", dataset.special().bos}, {"eos", dataset.special().eos}, {"pad", dataset.special().pad}};
    document["splits"] = {split_json(dataset.train()), split_json(dataset.validation())};
    document["source"] = dataset.source();
    return document;
}

json inspect(const fs::path& path, const InspectOptions& options) {
    if (!fs::exists(path)) throw FileError(path.string() + ": does not exist");
    if (fs::is_directory(path)) return inspect_checkpoint(find_checkpoint(path), options);
    return inspect_token_dataset(path, options);
}

std::string inspect_text(const json& document) {
    std::ostringstream out;
    if (document.at("kind") == "checkpoint") {
        print_checkpoint(out, document);
    } else {
        print_dataset(out, document);
    }
    return out.str();
}

}  // namespace sparseattn
