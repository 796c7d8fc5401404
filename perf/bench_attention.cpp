// Attention on the CPU (`host`): usage, turns and output in turns.hpp, columns in attention_case.hpp.
#include "attention_case.hpp"
#include "sparseattn/attention/detail/host.hpp"

int main(int argc, char** argv) {
    using namespace sparseattn;
    using Exec = Kokkos::DefaultHostExecutionSpace;
    const Kokkos::ScopeGuard kokkos(argc, argv);
    const bench::Sgemm<Exec> sgemm(2048);
    return bench::run_cases(argc, argv, [&](const bench::Numbers& numbers) {
        const double seconds = numbers.get(0, 0.5);
        const auto attend = [](const Exec& exec, const auto& call, auto& workspace) {
            detail::host_attention(exec, call, workspace);
        };
        const auto add = [&](const std::string& direction, const char* type, int d, int n, int block, double density) {
            bench::add_case<Exec>({direction, type, d, n, block, 4, 2, true, density}, seconds, sgemm, attend);
        };
        benchmark::AddCustomContext("attention", concat("host, kernels ", detail::host_attention_isa(), ", ",
                                                        concurrency(Exec{}), " threads, 4 query heads on 2 key heads"));
        for (const std::string direction : {"forward", "backward"}) {
            for (const int d : {64, 128}) {
                for (const int n : {1024, 4096, 16384}) {
                    for (const double density : {1.0, 0.5, 0.1}) add(direction, "float", d, n, 64, density);
                }
            }
            for (const double density : {1.0, 0.1}) {
                add(direction, "float", 128, 8192, 128, density);
                add(direction, "bf16", 128, 4096, 64, density);
            }
            for (const char* type : {"float", "bf16"}) add("gated_" + direction, type, 128, 4096, 64, 1.0);
        }
    });
}
