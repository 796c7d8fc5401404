#include "sparseattn/app/command_line.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "sparseattn/app/deck.hpp"
#include "sparseattn/app/environment.hpp"
#include "sparseattn/app/runtime.hpp"
#include "sparseattn/app/text.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/version.hpp"

namespace sparseattn {
namespace {

const char exit_codes[] =
    "Exit codes:\n"
    "  0   done\n"
    "  2   wrong command line or deck, or they ask for what cannot be\n"
    "  3   a file is missing, unreadable or damaged\n"
    "  4   loss or gradients are not finite\n"
    "  70  anything else\n"
    "  75  stopped early with a checkpoint; go on with -r latest\n";

void say(const std::string& text) {
    if (launcher_rank() == 0) std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
}

/// "unknown option --dry_run; did you mean --dry-run?"
std::string unknown_argument(const CLI::App& app, const std::vector<std::string>& extras) {
    const auto option = std::find_if(extras.begin(), extras.end(), [](const std::string& s) { return s[0] == '-'; });
    const std::string what = option != extras.end() ? *option : extras.front();
    if (option == extras.end()) return "unexpected argument " + what + "; --help shows the usage";
    std::vector<std::string> known;
    const auto add_options_of = [&](const CLI::App& parser) {
        for (const CLI::Option* candidate : parser.get_options()) {
            for (const std::string& name : candidate->get_lnames()) known.push_back("--" + name);
        }
    };
    add_options_of(app);
    for (const CLI::App* mode : app.get_subcommands()) add_options_of(*mode);
    const std::string near = nearest_name(what.substr(0, what.find('=')), known);
    return "unknown option " + what + (near.empty() ? "; --help lists the options" : "; did you mean " + near + '?');
}

}  // namespace

CommandLine::CommandLine(const ProgramText& text) : app_(std::make_unique<CLI::App>(text.summary)) {
    app_->name(text.name);
    app_->set_help_flag("-h,--help", "Print this text and stop");
    // Callbacks run before CLI11 misses required arguments.
    const auto report = [](const std::string& text) {
        say(text);
        throw CLI::Success();
    };
    app_->add_flag_callback(
        "--version", [report, name = text.name] { report(name + ' ' + version_with_commit() + '\n'); },
        "Print the version with its commit and stop");
    app_->add_flag_callback(
        "-c,--config", [report] { report(environment_report()); },
        "Print how this program was built and what it runs on, and stop");
    app_->allow_extras();
    std::string footer;
    if (!text.notes.empty()) footer += text.notes + "\n\n";
    if (!text.examples.empty()) footer += "Examples:\n" + text.examples + "\n\n";
    app_->footer(footer + exit_codes);
}

CommandLine::~CommandLine() = default;

void CommandLine::add_run_options(RunOptions& options) {
    app_->add_option("-i,--input", options.input, "Deck, a TOML file; none: every key at its default")
        ->type_name("FILE");
    app_->add_option(
            "-r,--restart", options.restart,
            "Go on from a checkpoint: a directory, or latest for the newest of the run; without -i with the deck "
            "stored in it")
        ->type_name("DIR|latest");
    app_->add_option("-d,--run-dir", options.run_dir, "Folder of the run, instead of the deck's run.dir")
        ->type_name("DIR");
    app_->add_flag("-n,--dry-run", options.dry_run,
                   "Check everything, print the merged deck and the memory plan, and stop");
    app_->add_option(
            "-t,--time-limit", time_limit_,
            "Wall time after which to write a checkpoint and stop with exit code 75, instead of run.time_limit")
        ->type_name("SECONDS|HH:MM:SS");
    app_->add_option("overrides", options.overrides, "Values that replace the deck's: train.max_steps=100")
        ->type_name("section.key=value");
    time_limit_seconds_ = &options.time_limit;
}

void CommandLine::add_print_reference() {
    app_->add_option("--print-reference", reference_,
                     "Print every key of the deck with its default and meaning, and stop")
        ->expected(0, 1)
        ->default_str("toml")
        ->type_name("toml|markdown");
}

bool CommandLine::parse(int argc, const char* const* argv) {
    std::vector<std::string> arguments;
    for (int i = argc - 1; i > 0; --i) {  // CLI11 takes them in reverse
        if (std::string_view(argv[i]).substr(0, 9) != "--kokkos-") arguments.emplace_back(argv[i]);
    }
    try {
        app_->parse(arguments);
    } catch (const CLI::CallForHelp&) {
        say(app_->help());
        return false;
    } catch (const CLI::Success&) {
        return false;
    } catch (const CLI::ParseError& error) {
        fail(concat(error.what(), "; --help shows the usage"));
    }
    const std::vector<std::string> extras = app_->remaining(true);
    if (!extras.empty()) fail(unknown_argument(*app_, extras));
    if (time_limit_seconds_ != nullptr && app_->count("--time-limit") > 0) {
        *time_limit_seconds_ = parse_duration(time_limit_, "command line: --time-limit");
    }
    if (const auto* option = app_->get_option_no_throw("--print-reference"); option != nullptr && option->count() > 0) {
        if (!reference_.empty() && reference_ != "toml" && reference_ != "markdown") {
            fail("--print-reference is " + reference_ + ", must be toml or markdown");
        }
        say(reference_ == "markdown" ? reference_markdown() : reference_deck());
        return false;
    }
    return true;
}

void CommandLine::fail(const std::string& reason) const {
    throw DeckError("command line: " + reason);
}

}  // namespace sparseattn
