// sparseattn-eval: loss of a checkpoint with dense, sparse and deployed heads.
#include <CLI/CLI.hpp>

#include "sparseattn/app/command_line.hpp"
#include "sparseattn/app/eval_program.hpp"
#include "sparseattn/app/runtime.hpp"

int main(int argc, char** argv) {
    using namespace sparseattn;
    const ProgramText text = {
        "sparseattn-eval",
        "Measures a checkpoint's loss with every head dense, every gate closed, and the gates as deployed.",
        "  sparseattn-eval runs/train                          newest checkpoint of a run, its own data set\n"
        "  mpirun -n 2 sparseattn-eval --data other.h5 --packs 64 step_000000001000\n"
        "  sparseattn-eval --local 128 --json runs/train",
        "Settings that are not given are those the checkpoint was trained with."};
    return run_guarded(text.name, [&] {
        CommandLine line(text);
        EvalArguments arguments;
        CLI::App& parser = line.parser();
        parser.add_option("checkpoint", arguments.checkpoint, "Checkpoint, folder of checkpoints, or run")
            ->required()
            ->type_name("DIR");
        parser.add_option("--data", arguments.data, "Token data set; default: the checkpoint's data.path")
            ->type_name("FILE");
        parser.add_option("--masks", arguments.options.masks, "Head masks (TSV) in place of the checkpoint's gates")
            ->type_name("FILE");
        parser.add_option("--packs", arguments.options.packs, "Packs to measure; 0: all of the split")
            ->check(CLI::Range(0, 2147483647))
            ->capture_default_str()
            ->type_name("N");
        parser.add_flag("--train-split", arguments.options.train_split, "Measure on the training split");
        parser.add_option("--sequence-length", arguments.options.sequence_length, "Tokens per pack")
            ->check(CLI::Range(1, 2147483647))
            ->type_name("N");
        parser.add_option("--sink", arguments.options.sink, "First tokens that streaming heads see")
            ->check(CLI::Range(0, 2147483647))
            ->type_name("N");
        parser.add_option("--local", arguments.options.local, "Last tokens that streaming heads see")
            ->check(CLI::Range(1, 2147483647))
            ->type_name("N");
        parser.add_option("--granularity", arguments.granularity, "Window edges: token or block")
            ->check(CLI::IsMember({"token", "block"}))
            ->type_name("NAME");
        parser.add_option("--sparse-branch", arguments.options.sparse_branch, "Attention of closed gates")
            ->type_name("NAME:KEY=VALUE,...");
        parser.add_option("--block", arguments.options.block, "Edge of an attention block")
            ->check(CLI::IsMember({64, 128}))
            ->type_name("N");
        parser.add_option("--implementation", arguments.implementation, "Attention kernel")
            ->check(CLI::IsMember({"automatic", "reference", "generic", "host", "cuda"}))
            ->capture_default_str()
            ->type_name("NAME");
        parser.add_option("--precision", arguments.precision, "Storage of weights and activations: fp32 or bf16")
            ->check(CLI::IsMember({"fp32", "bf16"}))
            ->type_name("NAME");
        parser.add_flag("--json", arguments.json, "Print JSON instead of a table");
        if (!line.parse(argc, argv)) return 0;
        const Runtime runtime(argc, argv);
        return eval_program(arguments, runtime);
    });
}
