#include "sparseattn/app/search_program.hpp"

#include <algorithm>
#include <chrono>

#include "sparseattn/app/detail/search_job.hpp"
#include "sparseattn/app/exit_codes.hpp"
#include "sparseattn/app/log.hpp"
#include "sparseattn/app/options.hpp"
#include "sparseattn/app/text.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/core/version.hpp"
#include "sparseattn/io/files.hpp"

namespace sparseattn {
namespace {

using detail::HeadSearch;
using detail::SearchInput;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Rows of the table.
int table_layers(const SearchArguments& arguments, const SearchInput& input) {
    const int last = input.layers().back().layer;
    const int rows = arguments.model_layers.value_or(last + 1);
    if (rows <= last) {
        throw DeckError(
            concat("command line: --model-layers is ", rows, ", must be above the last layer searched, ", last));
    }
    return rows;
}

// Thresholds are one table: each line as long as the first.
void check_equal_heads(const SearchInput& input) {
    const AttentionFileLayer& first = input.layers().front();
    for (const AttentionFileLayer& layer : input.layers()) {
        if (layer.heads == first.heads) continue;
        throw DeckError(concat("command line: layer ", layer.layer, " has ", layer.heads, " heads, must have ",
                               first.heads, " as layer ", first.layer, " to be in one table of thresholds"));
    }
}

void check_writable(const std::filesystem::path& file) {
    const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
    if (!std::filesystem::is_directory(folder)) {
        throw FileError(concat(file.string(), ": there is no folder ", folder.string(), " to write it in"));
    }
}

std::string memory_text(const SearchInput& input, const HeadSearch& search) {
    TextTable table({"memory", "bytes"});
    table.add_row({"samples of a layer, with outputs", format_bytes(input.sample_bytes())});
    table.add_row({"selection", format_bytes(input.selection_bytes(search.method()))});
    return table.text();
}

// This rank's share of the layers.
json search_layers(const SearchInput& input, const HeadSearch& search, const AttentionOptions& options,
                   const Communicator& world, Log& log) {
    json found = json::array();
    std::vector<AttentionFileLayer> mine;
    for (std::size_t l = world.rank(); l < input.layers().size(); l += world.size()) mine.push_back(input.layers()[l]);
    const Clock::time_point start = Clock::now();
    for (const AttentionFileLayer& layer : mine) {
        const double spent = std::chrono::duration<double>(Clock::now() - start).count();
        const auto done = static_cast<std::int64_t>(found.size()), total = static_cast<std::int64_t>(mine.size());
        const double rate = done > 0 ? static_cast<double>(done) / spent : 0;
        if (done > 0) log.progress(done, total, rate, "layers", static_cast<double>(total - done) / rate);
        detail::SearchSamples samples(Kokkos::DefaultExecutionSpace(), input.shape(layer), options);
        input.load(layer, samples);
        found.push_back(search.search(layer.layer, samples));
    }
    log.end_progress();
    return found;
}

json gather_layers(const json& mine, const Communicator& world) {
    std::vector<json> all;
    for (const std::string& text : world.gather(mine.dump(), 0)) {
        for (const json& layer : json::parse(text)) all.push_back(layer);
    }
    std::sort(all.begin(), all.end(), [](const json& a, const json& b) { return a.at("layer") < b.at("layer"); });
    return all;
}

void show(const json& layers, const HeadSearch& search, Log& log) {
    TextTable table({"layer", "relative error", "density", "chosen"});
    for (const json& layer : layers) {
        table.add_row({std::to_string(layer.at("layer").get<int>()), format_number(layer.at("relative_error")),
                       format_number(layer.at("density")), search.summary(layer)});
    }
    log.block(table.text());
    for (const json& layer : layers) {
        if (layer.at("density").get<double>() < 0.99) continue;
        log.warning(concat("layer ", layer.at("layer").get<int>(),
                           " keeps all pairs: the samples are too short for what ",
                           "is searched, use longer ones or a smaller budget (--density)"));
    }
}

json document_of(const SearchArguments& arguments, const HeadSearch& search, const json& layers) {
    json files = json::array();
    for (const std::filesystem::path& path : arguments.inputs) files.push_back(path.string());
    return {{"program", "sparseattn-search-heads"}, {"version", version_with_commit()},   {"samples", files},
            {"options", search.options()},          {"table", arguments.output.string()}, {"layers", layers}};
}

}  // namespace

int search_program(const SearchArguments& arguments, const Runtime& runtime) {
    const Communicator& world = runtime.world();
    std::optional<HeadSearch> search;
    std::optional<SearchInput> input;
    AttentionOptions options;
    int rows = 0;
    world.together([&] {
        search.emplace(arguments);
        options.implementation = parse_implementation(arguments.implementation);
        if (arguments.output.empty() && !arguments.dry_run) throw DeckError("command line: --output is required");
        input.emplace(arguments, search->is_minference());
        search->set_causal(input->causal());
        if (!search->is_minference()) check_equal_heads(*input);
        rows = table_layers(arguments, *input);
        for (const std::filesystem::path& file : {arguments.output, arguments.report}) {
            if (!file.empty()) check_writable(file);
        }
    });
    Log log(world.rank() == 0, {});
    log.info(input->text());
    if (arguments.dry_run) {
        log.block(memory_text(*input, *search));
        return exit_code::done;
    }
    json mine;
    world.together([&] { mine = search_layers(*input, *search, options, world, log); });
    const json layers = gather_layers(mine, world);
    world.together([&] {
        if (world.rank() != 0) return;
        show(layers, *search, log);
        search->write_table(arguments.output, layers, rows);
        if (!arguments.report.empty()) {
            write_file_atomically(arguments.report, document_of(arguments, *search, layers).dump(2) + '\n');
        }
    });
    return exit_code::done;
}

}  // namespace sparseattn
