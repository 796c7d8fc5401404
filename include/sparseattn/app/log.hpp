#pragma once
/// \file
/// What a run says: lines to the terminal and to run_dir/log.txt, and a live progress line.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace sparseattn {

/// Rank 0 writes messages to stdout (warnings and errors to stderr) and, with time and level, to `run_dir`/log.txt,
/// appending; the other ranks write nothing.
class Log {
  public:
    /// `run_dir` empty: terminal only. Made when missing. FileError when the log cannot be written.
    Log(bool root, const std::filesystem::path& run_dir);
    ~Log();
    Log(const Log&) = delete;
    Log& operator=(const Log&) = delete;

    void info(const std::string& message);
    void warning(const std::string& message);
    void error(const std::string& message);
    /// Several lines, a table say; plain also in the file.
    void block(const std::string& text);

    /// Shows "done/total  rate unit/s  time left" in place, at most five times a second and only when stderr is a
    /// terminal; any message removes it first.
    void progress(std::int64_t done, std::int64_t total, double rate, const std::string& unit, double seconds_left);
    /// Removes the progress line.
    void end_progress();

  private:
    class Sinks;
    std::unique_ptr<Sinks> sinks_;  // null on other ranks
    bool live_ = false;             // stderr is a terminal
    bool shown_ = false;
    std::chrono::steady_clock::time_point last_;
};

/// The text of a progress line, without control characters: "[=====>    ]  50/100  1.2e+04 tokens/s  3 min 05 s left".
[[nodiscard]] std::string progress_text(std::int64_t done, std::int64_t total, double rate, const std::string& unit,
                                        double seconds_left);

}  // namespace sparseattn
