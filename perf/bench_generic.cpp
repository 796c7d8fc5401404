// The implementation `generic` on the build's default execution space, a GPU where Kokkos has one: usage, turns and
// output in turns.hpp, columns in attention_case.hpp.
#include "attention_case.hpp"
#include "sparseattn/attention/detail/generic.hpp"

int main(int argc, char** argv) {
    using namespace sparseattn;
    using Exec = Kokkos::DefaultExecutionSpace;
    const Kokkos::ScopeGuard kokkos(argc, argv);
    const bench::Sgemm<Exec> sgemm(4096);
    return bench::run_cases(argc, argv, [&](const bench::Numbers& numbers) {
        const double seconds = numbers.get(0, 0.2);
        const auto attend = [](const Exec& exec, const auto& call, auto& workspace) {
            detail::generic_attention(exec, call, workspace);
        };
        const auto add = [&](const std::string& direction, const char* type, int d, bool causal, double density) {
            bench::add_case<Exec>({direction, type, d, 8192, 128, 8, 4, causal, density}, seconds, sgemm, attend);
        };
        benchmark::AddCustomContext("attention", concat("generic on ", Exec::name(), ", 8 query heads on 4 key heads"));
        for (const std::string direction : {"forward", "backward"}) {
            for (const int d : {32, 64, 96, 128, 256}) add(direction, "float", d, false, 1.0);
            for (const int d : {64, 128}) {
                add(direction, "float", d, true, 1.0);
                add(direction, "float", d, false, 0.1);
                add(direction, "bf16", d, false, 1.0);
            }
            add("gated_" + direction, "float", 128, true, 1.0);
        }
    });
}
