// Selection on the CPU: its time against SGEMM and against the dense forward of the same turns. Usage, turns and output
// in turns.hpp.
//
// usage: bench_selection [--benchmark_...] [seconds per case] [head dimension] [query heads] [key/value heads]
// Cases are named "n<length> <selector>"; their time is the selector's. Counters: that as a share of the dense causal
// forward's, and of the goal (1.5 / S for XAttention); the density selected; the time of attention over the selected
// layout as a share of dense; that of the dense forward in seconds and its rate as a share of SGEMM's; workspace.
#include "sparseattn/attention/attention.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/select/selector.hpp"
#include "turns.hpp"

namespace {

using namespace sparseattn;
using Exec = Kokkos::DefaultHostExecutionSpace;
using Mem = Exec::memory_space;

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

struct Shape {
    int n, d, heads, kv_heads;
};

double measure(benchmark::State& state, const Shape& shape, const std::string& text, double seconds,
               const bench::Sgemm<Exec>& sgemm) {
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
    const std::vector<double> times = bench::in_turns<Exec>(
        seconds, {choose, [&] { attend(dense); }, [&] { attend(selected); }, [&] { sgemm.run(); }});
    const double work = 4.0 * shape.d * shape.heads * 0.5 * shape.n * (shape.n + 1.0), of_dense = times[0] / times[1];
    state.counters["of dense %"] = 100 * of_dense;
    if (const auto* xattention = std::get_if<XAttentionOptions>(&options)) {
        state.counters["of goal %"] = 100 * of_dense * xattention->stride / 1.5;
    }
    state.counters["density %"] = 100 * statistics(exec, sequences, selected).density();
    state.counters["sparse of dense %"] = 100 * times[2] / times[1];
    state.counters["dense s"] = times[1];
    state.counters["dense of SGEMM %"] = 100 * work / times[1] / (sgemm.work() / times[3]);
    state.counters["SGEMM"] = sgemm.work() / times[3];
    state.counters["MiB"] = static_cast<double>(selection_workspace.capacity()) / (1 << 20);
    return times[0];
}

}  // namespace

int main(int argc, char** argv) {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    const bench::Sgemm<Exec> sgemm(2048);
    return bench::run_cases(argc, argv, [&](const bench::Numbers& numbers) {
        const double seconds = numbers.get(0, 2.0);
        const int d = numbers.get(1, 128), heads = numbers.get(2, 2), kv_heads = numbers.get(3, 1);
        benchmark::AddCustomContext("selection", concat(concurrency(Exec{}), " threads, d ", d, ", ", heads,
                                                        " query heads on ", kv_heads, ", fp32, causal"));
        for (const int n : {4096, 16384, 32768}) {
            for (const std::string text :
                 {"xattention:stride=8", "xattention:stride=16", "xattention:stride=16,threshold=0.95", "flexprefill",
                  "flexprefill:gamma=0.95", "minference:adaptive_budget=0.1", "streaming"}) {
                bench::add_case(concat("n", n, ' ', text), [=, &sgemm](benchmark::State& state) {
                    return measure(state, {n, d, heads, kv_heads}, text, seconds, sgemm);
                });
            }
        }
    });
}
