// sparseattn-convert: makes token data sets.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "sparseattn/app/command_line.hpp"
#include "sparseattn/app/runtime.hpp"
#include "sparseattn/io/text_import.hpp"

int main(int argc, char** argv) {
    using namespace sparseattn;
    const ProgramText text = {
        "sparseattn-convert", "Makes a token data set for sparseattn-train. Runs as one process.",
        "  sparseattn-convert text -o cpp.h5 --extension .hpp --extension .h /usr/include\n"
        "  sparseattn-convert text -o notes.h5 --validation 0.1 notes/ more.txt",
        "text: any files and folders; every file is a document, every byte a token (vocabulary 259 with bos, eos, "
        "pad).\n"
        "Empty, binary and repeated files are left out and counted. The output appears when it is complete."};
    return run_guarded(text.name, [&] {
        CommandLine line(text);
        CLI::App* mode = line.parser().add_subcommand("text", "Files and folders of text, bytes as tokens");
        line.parser().require_subcommand(0, 1);
        std::vector<std::filesystem::path> inputs;
        std::filesystem::path output;
        TextImportOptions options;
        mode->add_option("inputs", inputs, "Files, and folders with all that is in them")
            ->required()
            ->type_name("PATH");
        mode->add_option("-o,--output", output, "Data set to write")->required()->type_name("FILE");
        mode->add_option("--validation", options.validation_fraction, "Share of the documents kept for validation")
            ->check(CLI::Range(0.0, 1.0))
            ->capture_default_str()
            ->type_name("SHARE");
        mode->add_option("--seed", options.seed, "Chooses which documents these are")
            ->capture_default_str()
            ->type_name("N");
        mode->add_option("--extension", options.extensions, "Only files whose name ends in this; may be given again")
            ->allow_extra_args(false)
            ->type_name("TEXT");
        mode->add_option("--max-file-bytes", options.max_file_bytes, "Larger files are left out")
            ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 50))
            ->capture_default_str()
            ->type_name("BYTES");
        mode->add_flag("--keep-binary", options.keep_binary, "Take files with zero bytes too");
        mode->add_flag("--follow-symlinks", options.follow_symlinks, "Follow symbolic links inside folders");
        if (!line.parse(argc, argv)) return 0;
        if (!mode->parsed()) line.fail("what to convert is missing, must be: sparseattn-convert text ...");
        const TextImportReport report = import_text(inputs, output, options);
        std::printf("%s", report.text().c_str());
        return 0;
    });
}
