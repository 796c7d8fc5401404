// Recall of planted needles by method and density: bench_needles [tokens] [samples].
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "select/needles.hpp"

int main(int argc, char** argv) {
    using namespace sparseattn;
    using Exec = Kokkos::DefaultExecutionSpace;
    const Kokkos::ScopeGuard kokkos(argc, argv);
    const auto argument = [&](int i, int standard) { return argc > i ? std::atoi(argv[i]) : standard; };
    const int tokens = argument(1, 8192), count = argument(2, 4);
    if (tokens < 2048 || count < 1) {
        std::fputs("bench_needles [tokens >= 2048] [samples >= 1]\n", stderr);
        return 2;
    }
    const test::NeedleKind kinds[] = {{16, 16, false}, {16, 1, false}, {4, 16, true}};
    std::vector<test::Needles> samples[3];
    double least = 1;
    for (int k = 0; k < 3; ++k) {
        for (int s = 0; s < count; ++s) {
            samples[k].emplace_back(tokens, 64, kinds[k], 900 + s);
            least = std::min(least, samples[k].back().least_share());
        }
    }
    std::printf(
        "%d tokens, %d samples, one head of dimension 64. Sixteen queries in a row give their needle at least\n"
        "%.2f of their exact attention. Needles: 16 of 16 keys, 16 of one key, asked for all over the second\n"
        "half; 4 of 16 keys, asked for by the last 64 queries.\n\n",
        tokens, count, least);
    std::printf("%-40s %17s %17s %17s\n", "", "16 keys", "one key", "from the end");
    std::printf("%-40s", "method");
    for (int k = 0; k < 3; ++k) std::printf(" %8s %8s", "recall", "density");
    std::printf("\n");
    for (const char* method :
         {"full", "streaming:sink=64,local=1024", "xattention:stride=8,threshold=0.5",
          "xattention:stride=8,threshold=0.8", "xattention:stride=8,threshold=0.9",
          "xattention:stride=8,threshold=0.95", "xattention:stride=16,threshold=0.8",
          "xattention:stride=16,threshold=0.9", "xattention:stride=16,threshold=0.95", "flexprefill:gamma=0.8",
          "flexprefill:gamma=0.9", "flexprefill:gamma=0.95", "minference:adaptive_budget=0.05",
          "minference:adaptive_budget=0.1", "minference:adaptive_budget=0.2"}) {
        std::printf("%-40s", method);
        for (const auto& kind : samples) {
            const test::NeedleResult result = test::find_needles(Exec(), method, kind);
            std::printf(" %8.3f %8.3f", result.recall, result.density);
        }
        std::printf("\n");
    }
}
