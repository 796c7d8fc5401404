// sparseattn-search-heads: patterns or thresholds per head, searched on captured attention tensors.
#include <CLI/CLI.hpp>

#include "sparseattn/app/command_line.hpp"
#include "sparseattn/app/runtime.hpp"
#include "sparseattn/app/search_program.hpp"

namespace {

void add_options(CLI::App& parser, sparseattn::SearchArguments& arguments) {
    parser.add_option("samples", arguments.inputs, "Files of attention tensors (sparseattn-prefill --capture)")
        ->required()
        ->type_name("FILE");
    parser
        .add_option("-m,--method", arguments.method,
                    "minference: a pattern for each head; xattention: a threshold for each head")
        ->type_name("NAME:KEY=VALUE,...");
    parser.add_option("-o,--output", arguments.output, "Table to write: JSON for minference, text for xattention")
        ->type_name("FILE");
    parser.add_option("--report", arguments.report, "Everything that was measured, as JSON")->type_name("FILE");
    parser
        .add_option("--candidate", arguments.candidates,
                    "minference: a pattern to try, may be given again; default: the public ones")
        ->allow_extra_args(false)
        ->type_name("TYPE:FIRST,SECOND");
    parser.add_flag("--as-given", arguments.as_given, "minference: candidates' sizes as they are, whatever they cost");
    parser.add_option("--max-error", arguments.max_error, "xattention: relative output error of a head at most")
        ->type_name("SHARE");
    parser.add_option("--density", arguments.density, "Share of the query-key pairs that a head keeps at most")
        ->type_name("SHARE");
    parser.add_option("--steps", arguments.steps, "xattention: thresholds are multiples of 2^-N; default: 10")
        ->type_name("N");
    parser.add_option("--layers", arguments.layers, "Layers to search; default: all of the first file")
        ->type_name("0,3,7-9");
    parser
        .add_option("--model-layers", arguments.model_layers,
                    "Layers of the table, the others get the default; default: up to the last one searched")
        ->type_name("N");
    parser.add_option("--implementation", arguments.implementation, "Attention kernel")
        ->check(CLI::IsMember({"automatic", "reference", "generic", "host"}))
        ->capture_default_str()
        ->type_name("NAME");
    parser.add_flag("-n,--dry-run", arguments.dry_run, "Check everything, print what memory it takes, and stop");
}

}  // namespace

int main(int argc, char** argv) {
    using namespace sparseattn;
    const ProgramText text = {
        "sparseattn-search-heads",
        "Searches what each attention head needs, on queries, keys and values of some samples.",
        "  sparseattn-search-heads -m minference -o table.json --report search.json qkv1.h5 qkv2.h5\n"
        "  sparseattn-search-heads -m minference --density 0.1 --candidate stream_llm:64,1024 "
        "--candidate vertical_and_slash:500,500 -o table.json qkv.h5\n"
        "  mpirun -n 4 sparseattn-search-heads -m xattention:stride=8 --max-error 0.05 -o thresholds.tsv qkv.h5",
        "minference: candidates compete at equal cost: their sizes are fitted to --density, or to what the first\n"
        "candidate keeps; the smallest output error wins. Use with minference:table=FILE.\n"
        "xattention: the smallest threshold that meets --max-error, or the largest that meets --density, by "
        "bisection.\n"
        "Use with xattention:thresholds=FILE. The ranks of a job share the layers."};
    return run_guarded(text.name, [&] {
        CommandLine line(text);
        SearchArguments arguments;
        add_options(line.parser(), arguments);
        if (!line.parse(argc, argv)) return 0;
        const Runtime runtime(argc, argv);
        return search_program(arguments, runtime);
    });
}
