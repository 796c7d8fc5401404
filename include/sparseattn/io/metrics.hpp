#pragma once
/// \file
/// metrics.csv: one row per logged step, append-only, cut back when a run restarts.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace sparseattn {

/// The content of a metrics file; the first column is "step".
struct MetricsTable {
    std::vector<std::string> columns;
    std::vector<std::vector<double>> rows;

    /// All values of one column; InvalidArgument naming the column when there is none.
    [[nodiscard]] std::vector<double> column(const std::string& name) const;
};

/// Reads a metrics file. A last line without its line end (the writer was killed in it) is left out. FileError naming
/// file and line for anything else that does not fit.
[[nodiscard]] MetricsTable read_metrics(const std::filesystem::path& file);

/// Appends rows. Integers are written in full, other values with nine significant digits (every float exactly),
/// missing ones as nan; each row reaches the file when append() returns.
class MetricsWriter {
  public:
    /// Columns after "step". Creates the file with its header, or continues one that has the same header (FileError
    /// naming both otherwise).
    MetricsWriter(std::filesystem::path file, std::vector<std::string> columns);
    ~MetricsWriter();
    MetricsWriter(MetricsWriter&&) noexcept;
    MetricsWriter& operator=(MetricsWriter&&) noexcept;

    /// One value per column.
    void append(std::int64_t step, std::span<const double> values);
    /// Drops the rows of steps above `step`; the file is replaced in one step.
    void cut_back(std::int64_t step);

  private:
    void open();

    std::filesystem::path file_;
    std::vector<std::string> columns_;
    int descriptor_ = -1;
};

}  // namespace sparseattn
