#pragma once
/// \file
/// Text that people read: durations, counts, aligned tables.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sparseattn {

/// Seconds from "90", "90.5" or "HH:MM:SS" (any number of hours, minutes and seconds below 60). DeckError naming
/// `argument` for anything else.
[[nodiscard]] double parse_duration(std::string_view text, std::string_view argument);

/// Numbers from "0,3,7-9", ascending and each once, all in [0, below). DeckError naming `argument` for anything else.
[[nodiscard]] std::vector<int> parse_index_list(std::string_view text, std::string_view argument, int below);

/// "7 s", "3 min 05 s", "2 h 07 min", "3 d 04 h".
[[nodiscard]] std::string format_duration(double seconds);
/// "512 B", "3.4 KiB", "1.2 GiB".
[[nodiscard]] std::string format_bytes(std::int64_t bytes);
/// `digits` significant digits, "-" for NaN (not measured).
[[nodiscard]] std::string format_number(double value, int digits = 4);

/// Rows of cells in aligned columns: the first column to the left, the others to the right.
class TextTable {
  public:
    explicit TextTable(std::vector<std::string> header);
    /// As many cells as the header has (InvalidArgument otherwise).
    void add_row(std::vector<std::string> cells);
    /// The header, a rule and the rows, each line ended.
    [[nodiscard]] std::string text() const;

    [[nodiscard]] const std::vector<std::string>& header() const { return header_; }
    [[nodiscard]] const std::vector<std::vector<std::string>>& rows() const { return rows_; }

  private:
    std::vector<std::string> header_;
    std::vector<std::vector<std::string>> rows_;
};

}  // namespace sparseattn
