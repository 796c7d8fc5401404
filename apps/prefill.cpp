// sparseattn-prefill: compares selection methods on a model and text, or on attention tensors.
#include <CLI/CLI.hpp>

#include "sparseattn/app/command_line.hpp"
#include "sparseattn/app/prefill_program.hpp"

namespace {

void add_options(CLI::App& parser, sparseattn::PrefillArguments& arguments, int& samples) {
    const auto positive = CLI::Range(1, 1 << 30);
    parser.add_option("input", arguments.input, "Checkpoint, run, or file of attention tensors")
        ->required()
        ->type_name("PATH");
    parser
        .add_option("-m,--method", arguments.methods,
                    "Method with its options, may be given again; default: each with its defaults")
        ->allow_extra_args(false)
        ->type_name("NAME:KEY=VALUE,...");
    parser.add_flag("--share-groups", arguments.share_groups,
                    "Heads of a key/value group share the union of their lists");
    parser.add_option("--layers", arguments.layers, "Layers to compare in; default: all")->type_name("0,3,7-9");
    parser.add_option("-l,--length", arguments.lengths, "Tokens of text, may be given again; default: 8192")
        ->allow_extra_args(false)
        ->delimiter(',')
        ->type_name("N");
    parser
        .add_option("--data", arguments.data, "Token data set to take text from; default: the checkpoint's data.path")
        ->type_name("FILE");
    parser.add_flag("--train-split", arguments.train_split, "Text of the training split");
    parser
        .add_option("--text", arguments.text, "Text file in place of a data set, may be given again; models of bytes")
        ->allow_extra_args(false)
        ->type_name("FILE");
    parser.add_flag("--documents", arguments.documents,
                    "Every document a sequence of its own; default: all text is one sequence");
    parser.add_option("--samples", samples, "Stretches of text per length; default: 1")
        ->check(positive)
        ->type_name("N");
    parser
        .add_option("--capture", arguments.capture,
                    "Write query, key and value of the first stretch to an attention tensors file")
        ->type_name("FILE");
    parser.add_option("--capture-layers", arguments.capture_layers, "Layers to capture; default: all")
        ->type_name("0,3,7-9");
    parser
        .add_option("-o,--output", arguments.output,
                    "Write the attention tensors file with out, lse and layout of each method added; may be the input")
        ->type_name("FILE");
    parser.add_option("--repeats", arguments.repeats, "Timed rounds, after one that is not; times are medians")
        ->check(positive)
        ->capture_default_str()
        ->type_name("N");
    parser
        .add_option("--sampled-queries", arguments.sampled_queries,
                    "Queries at which attention mass and next tokens are compared")
        ->check(positive)
        ->capture_default_str()
        ->type_name("N");
    parser.add_option("--implementation", arguments.implementation, "Attention kernel")
        ->check(CLI::IsMember({"automatic", "reference", "generic", "host", "cuda"}))
        ->capture_default_str()
        ->type_name("NAME");
    parser
        .add_option("--precision", arguments.precision,
                    "Storage of weights and activations: fp32 or bf16; default: as the run, of tensors fp32")
        ->check(CLI::IsMember({"fp32", "bf16"}))
        ->type_name("NAME");
    parser.add_option("--json", arguments.json, "Write all figures, layer by layer and head by head")
        ->type_name("FILE");
    parser.add_option("--pictures", arguments.pictures, "Draw the layouts: an SVG file per layer and method")
        ->type_name("DIR");
    parser.add_option("--picture-layers", arguments.picture_layers, "Layers to draw; default: all that are compared")
        ->type_name("0,3,7-9");
    parser.add_option("--picture-heads", arguments.picture_heads, "Query heads to draw; default: all")
        ->type_name("0,3,7-9");
    parser.add_flag("-n,--dry-run", arguments.dry_run, "Check everything, print the memory plan, and stop");
}

}  // namespace

int main(int argc, char** argv) {
    using namespace sparseattn;
    const ProgramText text = {
        "sparseattn-prefill",
        "Compares selection methods with full attention: what they keep, what they lose, what they cost. Runs as one "
        "process.",
        "  sparseattn-prefill -l 8192 -l 32768 runs/train          every method, the run's own text\n"
        "  sparseattn-prefill -m xattention:stride=8,threshold=0.95 -m minference:table=heads.json --json r.json "
        "runs/a\n"
        "  sparseattn-prefill --text novel.txt --samples 4 --capture qkv.h5 --capture-layers 0,5 runs/train\n"
        "  sparseattn-prefill -o results.h5 qkv.h5                 tensors of any model; results written back",
        "Methods: full, streaming, xattention, flexprefill, minference; their options: docs/selection.md. Full "
        "attention\n"
        "is always measured: the others are compared with it. Tables: minference:table=FILE, "
        "xattention:thresholds=FILE."};
    return run_guarded(text.name, [&] {
        CommandLine line(text);
        PrefillArguments arguments;
        int samples = 0;
        add_options(line.parser(), arguments, samples);
        if (!line.parse(argc, argv)) return 0;
        if (samples > 0) arguments.samples = samples;
        const Runtime runtime(argc, argv);
        return prefill_program(arguments, runtime);
    });
}
