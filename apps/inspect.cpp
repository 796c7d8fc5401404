// sparseattn-inspect: shows what a checkpoint or a token data set holds.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "sparseattn/app/command_line.hpp"
#include "sparseattn/app/exit_codes.hpp"
#include "sparseattn/app/run_files.hpp"
#include "sparseattn/app/runtime.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/io/inspect.hpp"

int main(int argc, char** argv) {
    using namespace sparseattn;
    const ProgramText text = {
        "sparseattn-inspect", "Shows what a checkpoint or a token data set holds. Runs as one process.",
        "  sparseattn-inspect runs/train                       newest checkpoint of a run\n"
        "  sparseattn-inspect --verify step_000000001000          every byte against its checksum\n"
        "  sparseattn-inspect --head-map runs/train\n"
        "  sparseattn-inspect --json cpp.h5",
        "Without options: step, deck, files and tensors, or the splits of a data set."};
    return run_guarded(text.name, [&] {
        CommandLine line(text);
        std::filesystem::path path;
        InspectOptions options;
        bool json = false;
        bool deck = false;
        bool head_map = false;
        line.parser().add_option("path", path, "Checkpoint, run or data set")->required()->type_name("PATH");
        line.parser().add_flag("--verify", options.verify,
                               "Read every byte against the checksums; damage is exit code 3");
        line.parser().add_flag("--statistics", options.statistics,
                               "Norm, smallest, largest and non-finite values of each tensor");
        CLI::Option* json_flag = line.parser().add_flag("--json", json, "The same as JSON");
        line.parser().add_flag("--deck", deck, "Only the deck stored in the checkpoint")->excludes(json_flag);
        line.parser()
            .add_flag("--head-map", head_map, "Only the deployed gates, layers by key/value heads")
            ->excludes(json_flag);
        if (!line.parse(argc, argv)) return 0;
        if (std::filesystem::is_directory(path)) path = locate_checkpoint(path);
        if (head_map) {
            const HeadMap map = deployed_head_map(path);
            if (map.values.empty())
                throw CheckpointError(path.string() + " has no gates: it was trained in mode dense");
            std::printf("%s", head_map_text(map).c_str());
            return 0;
        }
        const nlohmann::json document = inspect(path, options);
        if (deck) {
            if (!document.contains("deck")) throw FileError(path.string() + " holds no deck, must be a checkpoint");
            std::printf("%s", document.value("deck", std::string()).c_str());
            return 0;
        }
        std::printf("%s\n", (json ? document.dump(2) : inspect_text(document)).c_str());
        const bool damaged =
            document.contains("verify") && document["verify"].is_object() && !document["verify"].value("ok", true);
        return damaged ? exit_code::file : exit_code::done;
    });
}
