// What selection really takes at 128k tokens, one group of heads: resident memory against the stated bound. The peak is
// the process', so this is a program of its own.
#include <gmock/gmock.h>

#include <fstream>

#include "select/support.hpp"
#include "sparseattn/select/selector.hpp"

namespace sparseattn::test {
namespace {

using Exec = Kokkos::DefaultHostExecutionSpace;
using Mem = Exec::memory_space;

double resident(const std::string& key) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with(key + ":")) return 1024.0 * std::stod(line.substr(key.size() + 1));
    }
    return 0;
}

double layout_bytes(const BlockLayout<Mem>& layout) {
    return static_cast<double>(layout.columns.size() * sizeof(std::int32_t) + layout.offsets.size() * 8 +
                               layout.keys.size() * 4 + layout.key_offsets.size() * 8);
}

TEST(SelectionMemory, StaysWithinTheBoundAt128kTokens) {
    constexpr int n = 131072, d = 64, heads = 2;
    const Exec exec;
    const Problem<float> problem(heads, 1, d, {0, n}, {0, n}, Kind::spikes, 71);
    const OnDevice<Exec, float> inputs(problem);
    // Loads the BLAS and its buffers.
    const Problem<float> small(heads, 1, d, {0, 4096}, {0, 4096}, Kind::spikes, 72);
    const OnDevice<Exec, float> warm(small);
    const std::vector<std::string> methods = {"xattention", "minference",
                                              "flexprefill"};  // by their bounds: peaks only rise
    for (const std::string& method : methods) {
        Workspace<Mem> workspace;
        select<Exec, float>(exec, warm.q(), warm.k(), warm.sequences, parse_selector(method), workspace);
    }
    double most = 0;
    for (const std::string& method : methods) {
        const SelectorOptions options = parse_selector(method);
        const std::size_t bound = selection_bytes<Exec, float>(inputs.sequences, heads, 1, d, options);
        const double before = resident("VmRSS");
        ASSERT_GT(before, 0);
        Workspace<Mem> workspace;
        const auto layout = select<Exec, float>(exec, inputs.q(), inputs.k(), inputs.sequences, options, workspace);
        EXPECT_EQ(workspace.capacity(), bound) << method;
        most = std::max(most, static_cast<double>(bound) + 2 * layout_bytes(layout));
        const double grown = resident("VmHWM") - before;
        EXPECT_LT(grown, 1.05 * most + (8 << 20)) << method;
        RecordProperty("grown_" + method, concat(grown / (1 << 20), " MiB"));
        std::printf("%s: %.1f MiB resident, bound %.1f MiB, layout %.1f MiB\n", method.c_str(), grown / (1 << 20),
                    static_cast<double>(bound) / (1 << 20), layout_bytes(layout) / (1 << 20));
        // Far from n^2 / S^2 scores of one head, let alone n^2.
        EXPECT_LT(static_cast<double>(bound), 0.6 * 4.0 * (n / 16) * (n / 16)) << method;
    }
}

}  // namespace
}  // namespace sparseattn::test
