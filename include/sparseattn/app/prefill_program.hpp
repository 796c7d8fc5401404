#pragma once
/// \file
/// What sparseattn-prefill does between its command line and its exit code.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "sparseattn/app/runtime.hpp"

namespace sparseattn {

struct PrefillArguments {
    /// A checkpoint, a folder of checkpoints, a run's folder; or a file of attention tensors (docs/attention-files.md).
    std::filesystem::path input;
    std::vector<std::string> methods;  // text of ModelSelector; empty: every method with its defaults
    bool share_groups = false;         // heads of a key/value group share one list
    std::string layers;                // "0,3,7-9" to compare in; empty: all

    // With a checkpoint.
    std::vector<std::int64_t> lengths;        // tokens; empty: 8192
    std::filesystem::path data;               // token data set; empty: as the checkpoint's deck says
    bool train_split = false;                 // text of the training split
    std::vector<std::filesystem::path> text;  // files of text instead, for models of bytes
    bool documents = false;                   // every document a sequence of its own; else all text is one sequence
    std::optional<int> samples;               // stretches of text per length; none: 1
    std::filesystem::path capture;            // attention tensors file to write
    std::string capture_layers;               // "0,3,7-9"; empty: all

    // With a file of attention tensors.
    std::filesystem::path output;  // the file with results added; may be the input

    int repeats = 3;           // timed rounds
    int sampled_queries = 64;  // at which attention mass is summed, and next tokens compared
    std::string implementation = "automatic";
    std::string precision;  // "fp32" or "bf16"; empty: that of the run, of tensors fp32
    std::filesystem::path json;
    std::filesystem::path pictures;  // folder for pictures of the layouts
    std::string picture_layers;      // "0,3,7-9"; empty: all that are compared
    std::string picture_heads;       // empty: all
    bool dry_run = false;
};

/// Compares the methods, prints a table for each length or file, writes what was asked for. Returns exit_code::done or
/// throws. Runs as one process.
[[nodiscard]] int prefill_program(const PrefillArguments& arguments, const Runtime& runtime);

}  // namespace sparseattn
