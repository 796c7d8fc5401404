// Prints one line for each method and input: a digest of the lists. The lines must not depend on the number of threads.
#include <cinttypes>
#include <cstdio>

#include "select/support.hpp"
#include "sparseattn/select/selector.hpp"

int main(int argc, char** argv) {
    using namespace sparseattn;
    using Exec = Kokkos::DefaultHostExecutionSpace;
    const Kokkos::ScopeGuard kokkos(argc, argv);
    const Exec exec;
    Workspace<Exec::memory_space> workspace;
    for (const test::Kind kind : test::every_kind) {
        const test::Problem<float> problem(4, 2, 64, {0, 1700, 1700, 2203}, {0, 2000, 2000, 2503}, kind, 401);
        const test::OnDevice<Exec, float> inputs(problem);
        for (const char* method :
             {"xattention:stride=8", "xattention:block=64,chunk_rows=40", "flexprefill:tau=0,min_budget=128",
              "flexprefill:tau=2,min_budget=128", "minference:adaptive_budget=0.2"}) {
            const auto layout =
                select<Exec, float>(exec, inputs.q(), inputs.k(), inputs.sequences, parse_selector(method), workspace);
            std::uint64_t digest = 14695981039346656037ULL;  // FNV-1a
            const auto add = [&](std::int64_t value) {
                digest = (digest ^ static_cast<std::uint64_t>(value)) * 1099511628211ULL;
            };
            for (const auto& head : test::head_lists(exec, layout)) {
                for (std::size_t row = 0; row < head.blocks.size(); ++row) {
                    for (const std::int32_t block : head.blocks[row]) add(block);
                    add(-1);
                    for (const std::int32_t key : head.keys[row]) add(key);
                    add(-2);
                }
            }
            std::printf("%d %s %zu %016" PRIx64 "\n", static_cast<int>(kind), method,
                        static_cast<std::size_t>(layout.columns.extent(0)), digest);
        }
    }
}
