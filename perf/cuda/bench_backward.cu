/// \file
/// Times the CUDA backward kernels over lengths and densities, beside a large bf16 matrix product and a copy in the same
/// run. Work is 10 d per kept (query, key) pair and head: whole blocks count whole, the diagonal block of a causal row
/// half. eff = density x dense time / sparse time, dense being the faster of the two modes, density = work / work of the
/// dense call. Times are those of the whole call: preparation, passes, conversion.
/// Usage: bench_backward [--json FILE] [--seconds S per case] [--quick | --all]

#include "perf/cuda/bench.cuh"
#include "tests/cuda/problem_backward.cuh"

using namespace sparseattn::cuda;
using namespace sparseattn::cuda::testing;

namespace {

double seconds_per_case = 0.1;
std::FILE* json = nullptr;

void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s: %s\n", status.where, cudaGetErrorString(status.error));
    std::exit(1);
}

void bench(const Shape& shape, const std::vector<double>& densities) {
    double dense_ms = 0, dense_work = 0;
    for (const double density : densities) {
        const HostProblem p = build(shape, density);
        double ms[2];  // any order, fixed order
        for (const bool deterministic : {false, true}) {
            BackwardProblem problem(p, false, 0, 7, deterministic);
            require(forward(problem.forward.params));
            problem.poison();
            ms[deterministic] = time_ms(seconds_per_case, [&] { require(backward(problem.params)); });
            SPARSEATTN_TEST_CUDA(cudaDeviceSynchronize());
        }
        const double flop = kept_pairs(p) * 10 * p.head_dim;
        if (density >= 1) dense_ms = std::min(ms[0], ms[1]), dense_work = flop;
        const double kept = dense_work > 0 ? flop / dense_work : density;
        std::printf("n %6d Hq %2d Hkv %2d d %3d block %3d %s density %.3f", shape.length, shape.query_heads,
                    shape.key_heads, shape.head_dim, shape.block, shape.causal ? "causal" : "full  ", kept);
        for (const bool deterministic : {false, true}) {
            const double eff = dense_work > 0 ? kept * dense_ms / ms[deterministic] : 0;
            std::printf("  %s %8.3f ms %4.0f TFLOP/s eff %.2f", deterministic ? "fixed" : "any",
                        ms[deterministic], 1e-9 * flop / ms[deterministic], eff);
            if (json != nullptr) {
                std::fprintf(json,
                             "{\"what\": \"backward\", \"n\": %d, \"query_heads\": %d, \"key_heads\": %d, \"head_dim\": "
                             "%d, \"block\": %d, \"causal\": %d, \"density\": %.4f, \"deterministic\": %d, \"ms\": "
                             "%.4f, \"tflops\": %.1f, \"eff\": %.3f}\n",
                             shape.length, shape.query_heads, shape.key_heads, shape.head_dim, shape.block,
                             shape.causal, kept, deterministic, ms[deterministic], 1e-9 * flop / ms[deterministic],
                             eff);
            }
        }
        std::printf("\n");
        std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char** argv) {
    bool quick = false, all = false;
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--quick") == 0)
            quick = true;
        else if (std::strcmp(argv[i], "--all") == 0)
            all = true;
        else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc)
            json = std::fopen(argv[++i], "w");
        else if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds_per_case = std::atof(argv[++i]);
        else {
            std::fprintf(stderr, "usage: %s [--json FILE] [--seconds S] [--quick | --all]\n", argv[0]);
            return 2;
        }
    }
    cudaDeviceProp device{};
    SPARSEATTN_TEST_CUDA(cudaGetDeviceProperties(&device, 0));
    std::printf("%s\n", device.name);
    print_ceilings("before", json);
    const std::vector<double> densities = {1, 0.5, 0.25, 0.1, 0.05};
    const std::vector<double> few = {1, 0.1};
    // head counts so that the dense call takes some milliseconds
    const std::vector<std::pair<int, int>> sizes =
        quick ? std::vector<std::pair<int, int>>{{16384, 16}}
              : std::vector<std::pair<int, int>>{{16384, 16}, {32768, 16}, {65536, 8}};
    for (const auto& [length, heads] : sizes) {
        for (const bool causal : {false, true}) {
            for (const int block : {128, 64}) {
                bench({length, heads, heads / 4, 128, block, causal, false}, quick || causal ? few : densities);
            }
        }
    }
    bench({16384, 16, 4, 64, 128, false, false}, few);
    bench({16384, 16, 4, 64, 64, false, false}, few);
    if (all) {
        bench({131072, 8, 2, 128, 128, false, false}, densities);
        bench({131072, 8, 2, 128, 64, false, false}, densities);
    }
    print_ceilings("after", json);
    if (json != nullptr) std::fclose(json);
    return 0;
}
