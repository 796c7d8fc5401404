// The goals of the CUDA kernels (one H200, bf16, d 128).

#include <cmath>

#include "perf/cuda/bench.hpp"

namespace sparseattn::cuda::bench {
namespace {

constexpr int lengths[4] = {16384, 32768, 65536, 131072};
constexpr double densities[4] = {0.5, 0.25, 0.1, 0.05};
using Table = double[4][4];  // by length, by density
constexpr Table forward_128 = {{.94, .92, .86, .78}, {.95, .94, .91, .86}, {.95, .95, .93, .91}, {.96, .95, .95, .93}};
constexpr Table backward_128 = {{.91, .87, .77, .65}, {.93, .91, .85, .77}, {.94, .93, .90, .85}, {.94, .94, .92, .90}};
constexpr Table forward_64 = {{.83, .81, .78, .73}, {.83, .83, .81, .78}, {.84, .83, .82, .81}, {.84, .84, .83, .82}};
constexpr Table backward_64 = {{.70, .68, .62, .55}, {.71, .70, .67, .62}, {.71, .71, .69, .67}, {.72, .71, .71, .69}};

// Random lists keep a density near the one asked for, and causal ones the diagonal on top.
bool near(double density, double asked) {
    return density > 0.9 * asked && density < 1.3 * asked;
}

}  // namespace

double goal_eff(const Row& row) {
    if (row.head_dim != 128 || (row.what != "forward" && row.what != "backward")) return 0;
    const bool forward = row.what == "forward";
    const Table& table = row.block == 128 ? (forward ? forward_128 : backward_128) : forward ? forward_64 : backward_64;
    const int length = row.causal ? row.length / 2 : row.length;  // a causal row sees half the keys
    for (int l = 0; l < 4; ++l) {
        for (int d = 0; d < 4; ++d) {
            if (lengths[l] == length && near(row.density, densities[d])) return table[l][d];
        }
    }
    return 0;
}

double goal_tflops(const Row& row) {
    if (row.head_dim != 128 || row.block != 128) return 0;
    const bool dense = row.density >= 1;
    const bool tenth_at_64k = row.length == 65536 && !row.causal && near(row.density, 0.1);
    if (row.what == "forward") return dense ? (row.causal ? 620 : 650) : tenth_at_64k ? 620 : 0;
    if (row.what == "backward") return dense ? 540 : tenth_at_64k ? 520 : 0;
    return 0;
}

}  // namespace sparseattn::cuda::bench
