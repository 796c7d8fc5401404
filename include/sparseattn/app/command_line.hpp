#pragma once
/// \file
/// The command line that all programs share.

#include <memory>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace sparseattn {

/// What --help says around the options.
struct ProgramText {
    std::string name;      // "sparseattn-train"
    std::string summary;   // what it does
    std::string examples;  // command lines, one per line
    std::string notes;     // anything else, may be empty
};

/// The options of programs that work from a deck.
struct RunOptions {
    std::string input;    // deck; empty: none
    std::string restart;  // "latest" or a directory; empty: none
    std::string run_dir;  // empty: as the deck says
    bool dry_run = false;
    double time_limit = 0;               // seconds; 0: as the deck says
    std::vector<std::string> overrides;  // section.key=value
};

/// A parser with --help, --version and --config; programs add what else they take. Bad usage is a DeckError (exit
/// code 2) that names the nearest option.
class CommandLine {
  public:
    explicit CommandLine(const ProgramText& text);
    ~CommandLine();
    CommandLine(const CommandLine&) = delete;
    CommandLine& operator=(const CommandLine&) = delete;

    /// -i, -r, -d, -n, -t and overrides; `options` outlives parse().
    void add_run_options(RunOptions& options);
    /// --print-reference [toml|markdown].
    void add_print_reference();
    /// The CLI11 parser, for options of one program; those programs include <CLI/CLI.hpp>.
    [[nodiscard]] CLI::App& parser() { return *app_; }

    /// False when the program has nothing left to do: what was asked for (help, version, reports) is printed, by the
    /// launcher's rank 0 only. --kokkos-* arguments are left to Kokkos.
    [[nodiscard]] bool parse(int argc, const char* const* argv);

    /// Throws the DeckError "command line: reason".
    [[noreturn]] void fail(const std::string& reason) const;

  private:
    std::unique_ptr<CLI::App> app_;
    std::string time_limit_;
    double* time_limit_seconds_ = nullptr;
    std::string reference_;
};

}  // namespace sparseattn
