#pragma once
/// \file
/// What sparseattn-search-heads does between its command line and its exit code.

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "sparseattn/app/runtime.hpp"

namespace sparseattn {

struct SearchArguments {
    std::vector<std::filesystem::path> inputs;  // files of attention tensors: the samples
    std::string method;                         // "minference" or "xattention", with options as parse_selector reads
    std::filesystem::path output;               // the table: JSON for minference, TSV for xattention
    std::filesystem::path report;               // JSON with everything that was measured; empty: none
    std::string layers;                         // "0,3,7-9"; empty: those of the first file
    std::optional<int> model_layers;            // rows of the table; none: up to the last layer searched

    // minference
    std::vector<std::string> candidates;  // as parse_minference_pattern reads; empty: the public ones
    bool as_given = false;                // sizes as they are instead of equal cost
    // xattention
    std::optional<double> max_error;
    std::optional<int> steps;
    // Both: share of the pairs to keep at most.
    std::optional<double> density;

    std::string implementation = "automatic";
    bool dry_run = false;
};

/// Searches, prints a line per layer and writes table and report. The ranks share the layers. Returns exit_code::done
/// or throws. Output does not depend on the number of ranks or threads.
[[nodiscard]] int search_program(const SearchArguments& arguments, const Runtime& runtime);

}  // namespace sparseattn
