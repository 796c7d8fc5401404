#include "sparseattn/app/eval_program.hpp"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "sparseattn/app/deck.hpp"
#include "sparseattn/app/exit_codes.hpp"
#include "sparseattn/app/options.hpp"
#include "sparseattn/app/run_files.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/io/checkpoint.hpp"

namespace sparseattn {
namespace {

std::string result_text(const EvaluationResult& result, const std::filesystem::path& checkpoint) {
    TextTable table({"heads", "loss, nats per token", "over dense"});
    const auto add = [&](const char* name, double loss) {
        if (!std::isnan(loss)) table.add_row({name, format_number(loss, 6), format_number(loss / result.dense, 5)});
    };
    add("all dense", result.dense);
    add(("all " + result.sparse_branch).c_str(), result.sparse);
    add("gates as deployed", result.deployed);
    std::string text = concat(checkpoint.string(), ", step ", result.step, ", precision ", to_string(result.precision),
                              '\n', table.text());
    if (!std::isnan(result.deployed_sparsity)) {
        text += concat("head sparsity as deployed ", format_number(result.deployed_sparsity), '\n');
    }
    return text + concat(result.labels, " labels in ", result.packs, " packs, ", format_duration(result.seconds), '\n');
}

}  // namespace

int eval_program(EvalArguments arguments, const Runtime& runtime) {
    const Communicator& world = runtime.world();
    EvaluationOptions& options = arguments.options;
    std::optional<TokenDataset> data;
    world.together([&] {
        options.checkpoint = locate_checkpoint(arguments.checkpoint);
        options.implementation = parse_implementation(arguments.implementation);
        if (!arguments.precision.empty()) options.precision = parse_precision(arguments.precision);
        if (!arguments.granularity.empty()) options.granularity = parse_granularity(arguments.granularity);
        if (arguments.data.empty()) {
            const std::string deck = CheckpointReader(options.checkpoint).meta().deck;
            arguments.data = Deck::parse(deck, "deck of " + options.checkpoint.string()).text("data.path");
        }
        data = TokenDataset::open(arguments.data);
    });
    const EvaluationResult result = evaluate_checkpoint(options, *data, world);
    if (world.rank() == 0) {
        const std::string text =
            arguments.json ? result.to_json().dump(2) + '\n' : result_text(result, options.checkpoint);
        std::fputs(text.c_str(), stdout);
        std::fflush(stdout);
    }
    return exit_code::done;
}

}  // namespace sparseattn
