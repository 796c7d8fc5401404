// Selection on the CPU: its time against SGEMM and against the dense forward of the same run.
//
// usage: bench_selection [filter] [seconds per case] [head dimension] [query heads] [key/value heads]
// The filter is a regular expression on "n<length> <selector>". Every case alternates the selector, the dense causal
// forward and SGEMM and takes the best of each, so that a noisy machine disturbs all three alike. Columns: the
// selector's time, that as a share of the dense forward's, the share of the goal (1.5 / S for XAttention), the density
// selected, and the time of attention over the selected layout as a share of dense.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <regex>
#include <string>
#include <vector>

#include "sparseattn/attention/attention.hpp"
#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/select/selector.hpp"

namespace {

using namespace sparseattn;
using Exec = Kokkos::DefaultHostExecutionSpace;
using Mem = Exec::memory_space;

double seconds_of(const std::function<void()>& call) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    fence(Exec{}, "SparseAttn::bench");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Noise, and on it what real heads show: sinks, neighbours alike.
void fill(const Array3<float, Mem>& x, std::uint64_t seed, float structure) {
    const RandomStream noise(seed, RandomPurpose::test, 5), shape(1, RandomPurpose::test, 6);
    const std::size_t heads = x.extent(1), d = x.extent(2);
    Kokkos::parallel_for(
        "SparseAttn::bench.fill", Kokkos::RangePolicy<Exec>(Exec{}, 0, x.extent(0)), [=](std::size_t t) {
            for (std::size_t h = 0; h < heads; ++h) {
                for (std::size_t c = 0; c < d; ++c) {
                    const std::size_t i = (t * heads + h) * d + c;
                    const double wave = std::cos(1e-4 * static_cast<double>((c + 1) * t) + 6.28 * shape.uniform(c));
                    const double triangular = 2.449 * (noise.uniform(2 * i) - noise.uniform(2 * i + 1));
                    x(t, h, c) = static_cast<float>(triangular + structure * (t < 4 ? 2.0 : wave));
                }
            }
        });
}

// C = A B of 2048 x 2048 floats through the library's own BLAS path.
struct Sgemm {
    static constexpr int n = 2048;
    Array2<float, Mem> a{"a", n, n}, b{"b", n, n}, c{"c", n, n};
    Sgemm() {
        Kokkos::deep_copy(a, 0.5F);
        Kokkos::deep_copy(b, 0.25F);
    }
    double run() const {
        return seconds_of(
            [&] { detail::gemm<Exec, float>(Exec{}, detail::Op::none, detail::Op::none, 1.0F, a, b, 0.0F, c); });
    }
    static double work() { return 2.0 * n * n * n; }
};

struct Shape {
    int n, d, heads, kv_heads;
};

void run_case(const Shape& shape, const std::string& text, double seconds, const Sgemm& sgemm) {
    const Exec exec;
    const SelectorOptions options = parse_selector(text);
    const Sequences<Mem> sequences({0, shape.n});
    const Array3<float, Mem> q("q", shape.n, shape.heads, shape.d), k("k", shape.n, shape.kv_heads, shape.d);
    const Array3<float, Mem> v("v", shape.n, shape.kv_heads, shape.d), out("out", shape.n, shape.heads, shape.d);
    const Array2<float, Mem> lse("lse", shape.n, shape.heads);
    fill(q, 1, 1.0F);
    fill(k, 2, 1.0F);
    fill(v, 3, 0.0F);
    Workspace<Mem> workspace, selection_workspace;
    SelectionRoom<Mem> room;
    BlockLayout<Mem> selected;
    const BlockLayout<Mem> dense =
        build_layout(exec, sequences, 128, true, std::vector(shape.heads, HeadMode::dense()));
    const AttentionInputs<float, Mem> inputs{q, k, v};
    const auto attend = [&](const BlockLayout<Mem>& layout) {
        attention_forward<Exec, float>(exec, inputs, sequences, layout, {}, workspace, {out, lse});
    };
    const auto choose = [&] {
        select<Exec, float>(exec, HeadsView<const float, Mem>(q), HeadsView<const float, Mem>(k), sequences, options,
                            selection_workspace, {}, room, selected);
    };
    double select_time = 1e9, dense_time = 1e9, sparse_time = 1e9, gemm_time = 1e9, spent = 0;
    for (int round = 0; round < 2 || spent < seconds; ++round) {
        const double times[] = {seconds_of(choose), seconds_of([&] { attend(dense); }),
                                seconds_of([&] { attend(selected); }), sgemm.run()};
        select_time = std::min(select_time, times[0]);
        dense_time = std::min(dense_time, times[1]);
        sparse_time = std::min(sparse_time, times[2]);
        gemm_time = std::min(gemm_time, times[3]);
        for (const double time : times) spent += time;
    }
    const double work = 4.0 * shape.d * shape.heads * 0.5 * shape.n * (shape.n + 1.0);
    const auto* xattention = std::get_if<XAttentionOptions>(&options);
    char goal[32] = "-";
    if (xattention) {
        std::snprintf(goal, sizeof goal, "%.2f", select_time / dense_time * xattention->stride / 1.5);
    }
    std::printf("n%-7d %-42s %9.2f %8.4f %8s %8.3f %8.3f %9.1f %8.2f %8.2f\n", shape.n, text.c_str(), 1e3 * select_time,
                select_time / dense_time, goal, statistics(exec, sequences, selected).density(),
                sparse_time / dense_time, 1e3 * dense_time, work / dense_time / (Sgemm::work() / gemm_time),
                static_cast<double>(selection_workspace.capacity()) / (1 << 20));
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    const std::regex filter(argc > 1 ? argv[1] : ".*");
    const double seconds = argc > 2 ? std::atof(argv[2]) : 2;
    const int d = argc > 3 ? std::atoi(argv[3]) : 128, heads = argc > 4 ? std::atoi(argv[4]) : 2;
    const int kv_heads = argc > 5 ? std::atoi(argv[5]) : 1;
    const Sgemm sgemm;
    double best = 1e9;
    for (int i = 0; i < 5; ++i) best = std::min(best, sgemm.run());
    std::printf("threads %d, d %d, heads %d/%d, fp32, causal; SGEMM %.0f GFLOP/s\n", concurrency(Exec{}), d, heads,
                kv_heads, Sgemm::work() / best * 1e-9);
    std::printf("%-8s %-42s %9s %8s %8s %8s %8s %9s %8s %8s\n", "length", "selector", "ms", "of dense", "of goal",
                "density", "sparse", "dense ms", "of sgemm", "MiB");
    for (const int n : {4096, 16384, 32768}) {
        for (const char* text :
             {"xattention:stride=8", "xattention:stride=16", "xattention:stride=16,threshold=0.95", "flexprefill",
              "flexprefill:gamma=0.95", "minference:adaptive_budget=0.1", "streaming"}) {
            char name[96];
            std::snprintf(name, sizeof name, "n%d %s", n, text);
            if (!std::regex_search(name, filter)) continue;
            run_case({n, d, heads, kv_heads}, text, seconds, sgemm);
        }
    }
}
