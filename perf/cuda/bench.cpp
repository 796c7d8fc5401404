// cuda_bench: times the CUDA kernels and sets the goals beside them.

#include "perf/cuda/bench.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <sstream>

namespace {

using namespace sparseattn::cuda;
using namespace sparseattn::cuda::bench;

struct Part {
    const char* name;
    void (*run)(const Options&, Report&);
};
constexpr Part parts[] = {{"forward", bench_forward},
                          {"singles", bench_singles},
                          {"backward", bench_backward},
                          {"decode", bench_decode},
                          {"select", bench_select}};

constexpr int lengths[] = {16384, 32768, 65536, 131072};

std::string part_names() {
    std::string names;
    for (const Part& part : parts) names += (names.empty() ? "" : ",") + std::string(part.name);
    return names;
}

std::string usage() {
    return "usage: cuda_bench [options]\n\n"
           "  --only LIST      parts to run, of " +
           part_names() +
           " (default: all)\n"
           "  --length LIST    only shapes of these lengths, of 16384,32768,65536,131072\n"
           "  --quick          two lengths, densities 1 and 0.1: under a minute\n"
           "  --dense          only the lists of all blocks\n"
           "  --kernel NAME    hopper or ampere instead of the door's choice\n"
           "  --seconds S      of measuring, per call (default 0.15; with --quick 0.05)\n"
           "  --rest S         sleep before each measurement, to let the card cool (default 0)\n"
           "  --json FILE      every row as one line of JSON\n"
           "  --help           this text\n\n"
           "Work is that of the kept pairs (whole blocks whole, the diagonal block of a causal row half). eff = "
           "density x\n"
           "time of the fastest dense call of the shape / time, the two taking turns; singles: work per time, that of "
           "the call\n"
           "without single keys = 1; select: share of the dense forward's time. Goals are those for one H200.\n"
           "Exit code 0: done; 1: a sampled result is wrong; 2: options, or no device; 3: file; 70: CUDA.\n";
}

[[noreturn]] void refuse(const std::string& message) {
    std::fprintf(stderr, "cuda_bench: %s\n(--help lists the options)\n", message.c_str());
    std::exit(2);
}

double number(const std::string& option, const std::string& text, double least) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool good = !text.empty() && *end == '\0' && std::isfinite(value) && value >= least && value <= 600;
    if (!good) {
        std::ostringstream must;
        must << option << " is " << text << ", must be a number of seconds in " << least << "..600";
        refuse(must.str());
    }
    return value;
}

std::vector<std::string> part_list(const std::string& text) {
    std::vector<std::string> result;
    std::istringstream in(text);
    for (std::string word; std::getline(in, word, ',');) {
        const bool known =
            std::any_of(std::begin(parts), std::end(parts), [&](const Part& p) { return p.name == word; });
        if (!known) refuse("--only is " + text + ", must be a list of " + part_names() + ", separated by commas");
        result.push_back(word);
    }
    if (result.empty()) refuse("--only is empty, must be a list of " + part_names());
    return result;
}

std::vector<int> length_list(const std::string& text) {
    std::vector<int> result;
    std::istringstream in(text);
    for (std::string word; std::getline(in, word, ',');) {
        const auto known = std::find_if(std::begin(lengths), std::end(lengths),
                                        [&](int length) { return std::to_string(length) == word; });
        if (known == std::end(lengths)) {
            refuse("--length is " + text + ", must be a list of 16384, 32768, 65536 and 131072, separated by commas");
        }
        result.push_back(*known);
    }
    if (result.empty()) refuse("--length is empty, must be a list of 16384, 32768, 65536 and 131072");
    return result;
}

Kernel kernel_named(const std::string& text) {
    for (const Kernel kernel : {Kernel::hopper, Kernel::ampere}) {
        if (text == name(kernel)) return kernel;
    }
    refuse("--kernel is " + text + ", must be hopper or ampere");
}

Options parse(int argc, char** argv) {
    Options options;
    bool seconds_given = false;
    for (int i = 1; i < argc; ++i) {
        const std::string option = argv[i];
        if (option == "--help" || option == "-h") {
            std::fputs(usage().c_str(), stdout);
            std::exit(0);
        } else if (option == "--quick") {
            options.quick = true;
            continue;
        } else if (option == "--dense") {
            options.dense = true;
            continue;
        }
        const bool takes_value = option == "--only" || option == "--length" || option == "--kernel" ||
                                 option == "--seconds" || option == "--rest" || option == "--json";
        if (!takes_value) refuse("unknown option " + option);
        if (i + 1 == argc) refuse(option + " needs a value");
        const std::string value = argv[++i];
        if (option == "--only") options.only = part_list(value);
        if (option == "--length") options.lengths = length_list(value);
        if (option == "--kernel") options.kernel = kernel_named(value);
        if (option == "--seconds") options.seconds = number(option, value, 0.001);
        if (option == "--rest") options.rest = number(option, value, 0);
        if (option == "--json") options.json = value;
        seconds_given = seconds_given || option == "--seconds";
    }
    if (options.quick && !seconds_given) options.seconds = 0.05;
    return options;
}

}  // namespace

namespace sparseattn::cuda::bench {
bool wanted(const Options& options, int length) {
    const auto& all = options.lengths;
    return all.empty() || std::find(all.begin(), all.end(), length) != all.end();
}
}  // namespace sparseattn::cuda::bench

int main(int argc, char** argv) {
    const Options options = parse(argc, argv);
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::fputs("cuda_bench: no CUDA device\n", stderr);
        return 2;
    }
    const auto begin = std::chrono::steady_clock::now();
    Report report(options.json);
    report.device();
    bench_ceilings(report, "before");
    for (const Part& part : parts) {
        const auto& only = options.only;
        if (only.empty() || std::find(only.begin(), only.end(), part.name) != only.end()) part.run(options, report);
    }
    bench_ceilings(report, "after");
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    std::printf("%d rows below their goal, %d wrong, %.0f s\n", report.below_goal(), report.wrong(), took.count());
    return report.wrong() == 0 ? 0 : 1;
}
