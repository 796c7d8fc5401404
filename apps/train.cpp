// sparseattn-train: trains a decoder with learned head sparsity.
#include "sparseattn/app/train_program.hpp"

int main(int argc, char** argv) {
    using namespace sparseattn;
    const ProgramText text = {
        "sparseattn-train", "Trains a LLaMA-family decoder whose attention heads learn which of them may stream.",
        "  mpirun -n 2 sparseattn-train -i inputs/quickstart.toml\n"
        "  sparseattn-train -i deck.toml -n                          check the deck, show the memory plan\n"
        "  sparseattn-train -i deck.toml -d runs/b train.max_steps=200\n"
        "  sparseattn-train -r latest -d runs/b                      go on from the newest checkpoint",
        "The run's folder gets log.txt, metrics.csv, evaluation.csv, checkpoints/, head_masks.tsv and report.html.\n"
        "Signals: USR1, TERM, INT write a checkpoint and stop (exit code 75), USR2 writes one and goes on."};
    return run_guarded(text.name, [&] {
        CommandLine line(text);
        RunOptions run;
        line.add_run_options(run);
        line.add_print_reference();
        if (!line.parse(argc, argv)) return 0;
        const Runtime runtime(argc, argv);
        return train_program(run, runtime);
    });
}
