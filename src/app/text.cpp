#include "sparseattn/app/text.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

template <class... Values>
std::string print(const char* format, Values... values) {
    char text[64];
    std::snprintf(text, sizeof text, format, values...);
    return text;
}

template <class T>
std::optional<T> parse_number(std::string_view text) {
    T value{};
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty() || result.ec != std::errc() || result.ptr != text.data() + text.size()) return std::nullopt;
    return value;
}

std::optional<double> parse_clock(std::string_view text) {
    const std::size_t first = text.find(':');
    const std::size_t second = text.find(':', first + 1);
    if (second == std::string_view::npos || text.size() - second - 1 != 2 || second - first - 1 != 2)
        return std::nullopt;
    const auto hours = parse_number<unsigned>(text.substr(0, first));
    const auto minutes = parse_number<unsigned>(text.substr(first + 1, 2));
    const auto seconds = parse_number<unsigned>(text.substr(second + 1));
    if (!hours || !minutes || !seconds || *minutes > 59 || *seconds > 59) return std::nullopt;
    return 3600.0 * *hours + 60.0 * *minutes + *seconds;
}

/// Terminal columns of UTF-8 text, one per code point.
std::size_t width(const std::string& text) {
    return static_cast<std::size_t>(std::count_if(
        text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

}  // namespace

double parse_duration(std::string_view text, std::string_view argument) {
    const bool clock = text.find(':') != std::string_view::npos;
    const std::optional<double> seconds = clock ? parse_clock(text) : parse_number<double>(text);
    if (!seconds || !std::isfinite(*seconds) || *seconds <= 0) {
        throw DeckError(
            concat(argument, " is ", text.empty() ? "empty" : text, ", must be seconds (above 0) or HH:MM:SS"));
    }
    return *seconds;
}

std::vector<int> parse_index_list(std::string_view text, std::string_view argument, int below) {
    const auto fail = [&] {
        throw DeckError(concat(argument, " is ", text.empty() ? "empty" : text,
                               ", must be numbers and ranges like 0,3,7-9, all below ", below));
    };
    std::vector<int> numbers;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        const std::string_view part = text.substr(begin, end - begin);
        const std::size_t dash = part.find('-');
        const auto first = parse_number<int>(part.substr(0, dash));
        const auto last = dash == std::string_view::npos ? first : parse_number<int>(part.substr(dash + 1));
        if (!first || !last || *first < 0 || *last < *first || *last >= below) fail();
        for (int number = *first; number <= *last; ++number) numbers.push_back(number);
        begin = end + 1;
    }
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
    return numbers;
}

std::string format_duration(double seconds) {
    if (!std::isfinite(seconds) || seconds < 0) return "-";
    if (seconds < 9.95) return print("%.1f s", seconds);
    const auto total = static_cast<long long>(std::llround(seconds));
    if (total < 60) return print("%lld s", total);
    if (total < 3600) return print("%lld min %02lld s", total / 60, total % 60);
    if (total < 86400) return print("%lld h %02lld min", total / 3600, total % 3600 / 60);
    return print("%lld d %02lld h", total / 86400, total % 86400 / 3600);
}

std::string format_bytes(std::int64_t bytes) {
    static const char* const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) return print("%lld B", static_cast<long long>(bytes));
    double value = static_cast<double>(bytes) / 1024;
    std::size_t unit = 0;
    while (value >= 1023.95 && unit + 1 < std::size(units)) {
        value /= 1024;
        ++unit;
    }
    return print("%.1f %s", value, units[unit]);
}

std::string format_number(double value, int digits) {
    return std::isnan(value) ? "-" : print("%.*g", digits, value);
}

TextTable::TextTable(std::vector<std::string> header) : header_(std::move(header)) {}

void TextTable::add_row(std::vector<std::string> cells) {
    require(cells.size() == header_.size(), "number of cells", cells.size(), concat(header_.size()));
    rows_.push_back(std::move(cells));
}

std::string TextTable::text() const {
    std::vector<std::size_t> widths;
    for (std::size_t c = 0; c < header_.size(); ++c) {
        widths.push_back(width(header_[c]));
        for (const auto& row : rows_) widths[c] = std::max(widths[c], width(row[c]));
    }
    std::string out;
    const auto add = [&](const std::vector<std::string>& cells) {
        std::string line;
        for (std::size_t c = 0; c < cells.size(); ++c) {
            const std::string space(widths[c] - width(cells[c]), ' ');
            line += c == 0 ? cells[c] + space : "  " + space + cells[c];
        }
        line.erase(line.find_last_not_of(' ') + 1);
        out += line + '\n';
    };
    add(header_);
    std::size_t rule = 2 * (widths.empty() ? 0 : widths.size() - 1);
    for (const std::size_t column : widths) rule += column;
    out += std::string(rule, '-') + '\n';
    for (const auto& row : rows_) add(row);
    return out;
}

}  // namespace sparseattn
