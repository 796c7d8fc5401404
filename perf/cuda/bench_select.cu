/// \file
/// Times the CUDA selection beside the dense causal forward. Arguments: longest sequence (131072), seconds a case
/// (0.2).

#include "perf/cuda/bench_select.cuh"

using namespace sparseattn::cuda;
using namespace sparseattn::cuda::testing;

int main(int argc, char** argv) {
    const int longest = argc > 1 ? std::atoi(argv[1]) : 131072;
    const double seconds = argc > 2 ? std::atof(argv[2]) : 0.2;
    print_ceilings("before", nullptr);
    for (int length = 16384; length <= longest; length *= 2) {
        double dense = 0;
        {
            const HostProblem host = build({length, 16, 4, 128, 128, true, true}, 1);
            DeviceProblem device(host, false, 0, 3);
            dense = time_ms(seconds, [&] {
                if (!forward(device.params).ok()) std::exit(70);
            });
        }
        for (const int block : {128, 64}) {
            for (const int stride : {16, 8}) {
                bench_selection(length, 16, 4, 128, block, stride, 0.9, dense, seconds, nullptr);
            }
        }
    }
    return 0;
}
