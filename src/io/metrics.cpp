#include "sparseattn/io/metrics.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace {

std::vector<std::string> split(const std::string& line) {
    std::vector<std::string> cells;
    std::size_t begin = 0;
    for (std::size_t end = line.find(','); end != std::string::npos; begin = end + 1, end = line.find(',', begin)) {
        cells.push_back(line.substr(begin, end - begin));
    }
    cells.push_back(line.substr(begin));
    return cells;
}

std::string join(const std::vector<std::string>& cells) {
    std::string line;
    for (const std::string& cell : cells) line += (line.empty() ? "" : ",") + cell;
    return line;
}

// Independent of the locale, unlike printf.
std::string format(double value) {
    if (std::isnan(value)) return "nan";
    char text[64];
    const bool whole = std::abs(value) < 0x1.0p53 && value == std::trunc(value);
    const auto result = whole ? std::to_chars(text, text + sizeof text, static_cast<std::int64_t>(value))
                              : std::to_chars(text, text + sizeof text, value, std::chars_format::general, 9);
    return std::string(text, result.ptr);
}

bool parse(const std::string& cell, double& value) {
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    return error == std::errc() && end == cell.data() + cell.size() && !cell.empty();
}

// Lines with their line end; the rest behind the last one is left out.
std::vector<std::string> whole_lines(const std::string& content) {
    std::vector<std::string> lines;
    std::size_t begin = 0;
    for (std::size_t end = content.find('\n'); end != std::string::npos;
         begin = end + 1, end = content.find('\n', begin)) {
        lines.push_back(content.substr(begin, end - begin));
    }
    return lines;
}

void write_line(int descriptor, const std::string& line, const std::filesystem::path& file) {
    // One call: O_APPEND makes it land as a whole unless the disk is full; then what got there is taken back.
    const off_t before = ::lseek(descriptor, 0, SEEK_END);
    ssize_t put = 0;
    do {
        put = ::write(descriptor, line.data(), line.size());
    } while (put < 0 && errno == EINTR);
    if (put == static_cast<ssize_t>(line.size())) return;
    const int error = put < 0 ? errno : ENOSPC;
    if (put > 0 && ::ftruncate(descriptor, before) != 0) {
        throw FileError(concat(file.string(), ": cannot write, and its last line is broken: ", std::strerror(errno)));
    }
    throw FileError(concat(file.string(), ": cannot write: ", std::strerror(error)));
}

}  // namespace

std::vector<double> MetricsTable::column(const std::string& name) const {
    for (std::size_t c = 0; c < columns.size(); ++c) {
        if (columns[c] != name) continue;
        std::vector<double> values;
        for (const auto& row : rows) values.push_back(row[c]);
        return values;
    }
    throw InvalidArgument(concat("column is '", name, "', must be one of ", join(columns)));
}

MetricsTable read_metrics(const std::filesystem::path& file) {
    const std::vector<std::string> lines = whole_lines(read_file(file));
    if (lines.empty()) throw FileError(file.string() + ": has no header line");
    MetricsTable table;
    table.columns = split(lines.front());
    if (table.columns.front() != "step") {
        throw FileError(concat(file.string(), ":1: the first column is '", table.columns.front(), "', must be 'step'"));
    }
    for (std::size_t n = 1; n < lines.size(); ++n) {
        const std::vector<std::string> cells = split(lines[n]);
        if (cells.size() != table.columns.size()) {
            throw FileError(
                concat(file.string(), ":", n + 1, ": has ", cells.size(), " values, must have ", table.columns.size()));
        }
        std::vector<double> row(cells.size());
        for (std::size_t c = 0; c < cells.size(); ++c) {
            if (!parse(cells[c], row[c])) {
                throw FileError(concat(file.string(), ":", n + 1, ": ", table.columns[c], " is '", cells[c],
                                       "', must be a number"));
            }
        }
        table.rows.push_back(std::move(row));
    }
    return table;
}

MetricsWriter::MetricsWriter(std::filesystem::path file, std::vector<std::string> columns)
    : file_(std::move(file)), columns_(std::move(columns)) {
    for (const std::string& column : columns_) {
        require(!column.empty() && column.find_first_of(",\"\n\r") == std::string::npos && column != "step", "column",
                column, "a name without commas, quotes and line ends, not 'step'");
    }
    columns_.insert(columns_.begin(), "step");
    if (std::filesystem::exists(file_)) {
        const std::vector<std::string> lines = whole_lines(read_file(file_));
        const std::string header = lines.empty() ? "" : lines.front();
        if (header != join(columns_)) {
            throw FileError(concat(file_.string(), ":1: the header is '", header, "', must be '", join(columns_),
                                   "': the file is of another program or version"));
        }
        cut_back(std::numeric_limits<std::int64_t>::max());  // a half line of a killed run
    } else {
        write_file_atomically(file_, join(columns_) + '\n');
        open();
    }
}

MetricsWriter::~MetricsWriter() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

MetricsWriter::MetricsWriter(MetricsWriter&& other) noexcept
    : file_(std::move(other.file_)),
      columns_(std::move(other.columns_)),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

MetricsWriter& MetricsWriter::operator=(MetricsWriter&& other) noexcept {
    if (this != &other) {
        if (descriptor_ >= 0) ::close(descriptor_);
        file_ = std::move(other.file_);
        columns_ = std::move(other.columns_);
        descriptor_ = std::exchange(other.descriptor_, -1);
    }
    return *this;
}

void MetricsWriter::open() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = ::open(file_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    if (descriptor_ < 0) throw FileError(concat(file_.string(), ": cannot open: ", std::strerror(errno)));
}

void MetricsWriter::append(std::int64_t step, std::span<const double> values) {
    require(values.size() + 1 == columns_.size(), "number of metric values", values.size(),
            concat(columns_.size() - 1, ", one per column"));
    std::string line = std::to_string(step);
    for (const double value : values) line += ',' + format(value);
    write_line(descriptor_, line + '\n', file_);
}

void MetricsWriter::cut_back(std::int64_t step) {
    const std::string content = read_file(file_);
    const std::vector<std::string> lines = whole_lines(content);
    const MetricsTable table = read_metrics(file_);  // names bad lines
    std::string kept = join(columns_) + '\n';
    for (std::size_t n = 0; n < table.rows.size(); ++n) {
        if (table.rows[n][0] <= static_cast<double>(step)) kept += lines[n + 1] + '\n';
    }
    if (kept != content) write_file_atomically(file_, kept);
    open();
}

}  // namespace sparseattn
