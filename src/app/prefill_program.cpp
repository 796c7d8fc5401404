#include "sparseattn/app/prefill_program.hpp"

#include <algorithm>
#include <set>

#include "sparseattn/app/detail/prefill_job.hpp"
#include "sparseattn/app/exit_codes.hpp"
#include "sparseattn/app/options.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/version.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace {

using detail::PrefillInput;
using nlohmann::json;

[[noreturn]] void reject(const std::string& reason) {
    throw DeckError("command line: " + reason);
}

// The methods with full attention, which the others are measured against, in front.
std::vector<ModelSelector> read_methods(const PrefillArguments& arguments) {
    std::vector<ModelSelector> methods;
    std::set<std::string> seen;
    for (const std::string& text : arguments.methods.empty() ? selector_names() : arguments.methods) {
        if (!seen.insert(text).second) reject(concat("--method ", text, " is given twice, must be given once"));
        try {
            methods.emplace_back(text);
        } catch (const InvalidArgument& error) {
            reject(concat("--method ", text, ": ", error.what()));
        }
    }
    const auto full = std::find_if(methods.begin(), methods.end(),
                                   [](const ModelSelector& method) { return method.name() == "full"; });
    if (full == methods.end()) {
        methods.insert(methods.begin(), ModelSelector());
    } else {
        std::rotate(methods.begin(), full, full + 1);
    }
    return methods;
}

void refuse_options(bool checkpoint, const PrefillArguments& arguments) {
    const auto refuse = [&](bool given, const char* option, const char* needs) {
        if (given)
            reject(concat(option, " is given, must come with ", needs, "; ", arguments.input.string(), " is not"));
    };
    if (arguments.pictures.empty() && !(arguments.picture_layers.empty() && arguments.picture_heads.empty())) {
        reject("--picture-layers and --picture-heads need --pictures");
    }
    if (checkpoint) {
        refuse(!arguments.output.empty(), "--output", "a file of attention tensors");
        if (arguments.capture.empty() && !arguments.capture_layers.empty()) reject("--capture-layers needs --capture");
        if (!arguments.text.empty() && !arguments.data.empty())
            reject("--text and --data are given, must be one of them");
        if (!arguments.text.empty() && arguments.train_split) {
            reject("--text and --train-split are given, must be one of them");
        }
        return;
    }
    const char* needs = "a checkpoint";
    refuse(!arguments.lengths.empty(), "--length", needs);
    refuse(!arguments.data.empty(), "--data", needs);
    refuse(arguments.train_split, "--train-split", needs);
    refuse(!arguments.text.empty(), "--text", needs);
    refuse(arguments.documents, "--documents", needs);
    refuse(arguments.samples.has_value(), "--samples", needs);
    refuse(!arguments.capture.empty() || !arguments.capture_layers.empty(), "--capture", needs);
}

// Before minutes of work whose result has no place.
void require_folders(const PrefillArguments& arguments) {
    for (const std::filesystem::path* file : {&arguments.json, &arguments.capture, &arguments.output}) {
        const std::filesystem::path folder = file->parent_path();
        if (!folder.empty() && !std::filesystem::is_directory(folder)) {
            throw FileError(concat(file->string(), " cannot be written: there is no folder ", folder.string()));
        }
    }
}

std::string memory_text(const detail::MemoryParts& parts) {
    TextTable table({"memory", "bytes"});
    std::int64_t total = 0;
    for (const auto& [purpose, bytes] : parts) {
        table.add_row({purpose, format_bytes(bytes)});
        total += bytes;
    }
    table.add_row({"total", format_bytes(total)});
    return table.text();
}

json document_of(const PrefillInput& input) {
    return {{"program", "sparseattn-prefill"},
            {"version", version_with_commit()},
            {"execution_space", detail::PrefillExec::name()},
            {"concurrency", concurrency(detail::PrefillExec())},
            {"attention", attention_report()},
            {"input", input.about()},
            {"comparisons", json::array()}};
}

}  // namespace

namespace detail {

std::vector<LayerSelector> layer_selectors(const std::vector<ModelSelector>& methods, int layer, int heads,
                                           bool share_groups) {
    std::vector<LayerSelector> selectors;
    for (const ModelSelector& method : methods) selectors.push_back({method.layer(layer, heads), {{}, share_groups}});
    return selectors;
}

std::vector<MethodFigures> named_figures(const std::vector<ModelSelector>& methods) {
    std::vector<MethodFigures> figures;
    for (const ModelSelector& method : methods) figures.push_back({method.text(), describe(method.common()), {}, {}});
    return figures;
}

ComparisonOptions comparison_options(const PrefillArguments& arguments) {
    ComparisonOptions options;
    options.repeats = arguments.repeats;
    options.sampled_queries = arguments.sampled_queries;
    options.attention.implementation = parse_implementation(arguments.implementation);
    return options;
}

}  // namespace detail

int prefill_program(const PrefillArguments& arguments, const Runtime& runtime) {
    const Communicator& world = runtime.world();
    world.together([&] {
        if (world.size() > 1) reject(concat("started as ", world.size(), " processes, must be one"));
    });
    const std::vector<ModelSelector> methods = read_methods(arguments);
    if (!std::filesystem::exists(arguments.input)) {
        throw FileError(concat(arguments.input.string(), " does not exist, must be a checkpoint, a run or a file of ",
                               "attention tensors"));
    }
    const bool checkpoint = std::filesystem::is_directory(arguments.input);
    refuse_options(checkpoint, arguments);
    require_folders(arguments);
    const std::unique_ptr<PrefillInput> input = checkpoint ? detail::open_prefill_checkpoint(arguments, methods)
                                                           : detail::open_prefill_file(arguments, methods);
    Log log(true, {});
    log.block(input->text());
    if (arguments.dry_run) {
        log.block(memory_text(input->memory()));
        return exit_code::done;
    }
    json document = document_of(*input);
    input->run(log, [&](const PrefillComparison& comparison) {
        log.block(concat('\n', comparison.title, '\n', comparison.table().text()));
        document["comparisons"].push_back(comparison.to_json());
    });
    log.block('\n' + table_legend(input->has_model()));
    if (!arguments.json.empty()) write_file_atomically(arguments.json, document.dump(2) + '\n');
    return exit_code::done;
}

}  // namespace sparseattn
