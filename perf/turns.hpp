#pragma once
// What the benchmarks share: calls timed in turns with their ceiling, a row of Google Benchmark for each case.
//
// usage: PROGRAM [--benchmark_filter=REGEX] [--benchmark_out=FILE] [...] [seconds per case]
//
// Google Benchmark has the cases, the filter and the output. The loop is not its own, which times one call: a case
// alternates its call with the ceiling and with whatever else it is compared to, so that a noisy machine, or a clock
// that wanders, disturbs all of them alike. So a case is one iteration, whose time is set by hand; what is printed as
// CPU time is that of all turns.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "sparseattn/core/gemm.hpp"
#include "sparseattn/core/rng.hpp"

namespace sparseattn::bench {

/// Seconds of one of `times` calls.
template <class Exec>
double seconds_of(const std::function<void()>& call, int times) {
    fence(Exec{}, "SparseAttn::bench");
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) call();
    fence(Exec{}, "SparseAttn::bench");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / times;
}

/// Seconds that each of `calls` takes, from 3 to 50 turns of about `seconds` in all. On a CPU, where noise only adds,
/// the best turn's; on a device, whose clock moves both ways, the median. There a short call is repeated within its
/// turn, so that launches overlap as they do in a program.
template <class Exec>
std::vector<double> in_turns(double seconds, const std::vector<std::function<void()>>& calls) {
    std::vector<int> repeats;
    for (const auto& call : calls) {
        const double once = seconds_of<Exec>(call, 1);  // and a first call to grow workspaces
        repeats.push_back(host_accessible<Exec> ? 1 : std::clamp(static_cast<int>(3e-3 / once), 1, 20));
    }
    std::vector<std::vector<double>> times(calls.size());
    double spent = 0;
    for (int turn = 0; turn < 3 || (spent < seconds && turn < 50); ++turn) {
        for (std::size_t i = 0; i < calls.size(); ++i) {
            times[i].push_back(seconds_of<Exec>(calls[i], repeats[i]));
            spent += times[i].back() * repeats[i];
        }
    }
    std::vector<double> typical;
    for (std::vector<double>& all : times) {
        const auto place = all.begin() + static_cast<std::ptrdiff_t>(host_accessible<Exec> ? 0 : all.size() / 2);
        std::nth_element(all.begin(), place, all.end());
        typical.push_back(*place);
    }
    return typical;
}

template <class T>
struct Fill {
    T* data;
    RandomStream stream;
    // Triangular: cheap, zero mean, unit variance.
    KOKKOS_FUNCTION void operator()(std::int64_t i) const {
        data[i] = T(static_cast<float>(2.449 * (stream.uniform(2 * i) - stream.uniform(2 * i + 1))));
    }
};
template <class Exec, class View>
void fill(const View& view, std::uint64_t seed) {
    using T = typename View::non_const_value_type;
    Kokkos::parallel_for(
        "SparseAttn::bench.fill",
        Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(Exec{}, 0, static_cast<std::int64_t>(view.span())),
        Fill<T>{view.data(), RandomStream(seed, RandomPurpose::test, 3)});
}

/// The ceiling: C = A B of n x n floats through the library's own path to the BLAS.
template <class Exec>
class Sgemm {
  public:
    explicit Sgemm(std::size_t n) : a_("a", n, n), b_("b", n, n), c_("c", n, n) {
        fill<Exec>(a_, 1);
        fill<Exec>(b_, 2);
    }
    void run() const { detail::gemm<Exec, float>(Exec{}, detail::Op::none, detail::Op::none, 1.0F, a_, b_, 0.0F, c_); }
    [[nodiscard]] double work() const {
        const auto n = static_cast<double>(a_.extent(0));
        return 2 * n * n * n;
    }

  private:
    Array2<float, typename Exec::memory_space> a_, b_, c_;
};

/// Registers a case: `measure` runs it, adds its counters to the state and returns the seconds of its call.
template <class Measure>
void add_case(const std::string& name, const Measure& measure) {
    benchmark::RegisterBenchmark(name.c_str(),
                                 [measure](benchmark::State& state) {
                                     for (auto _ : state) state.SetIterationTime(measure(state));
                                 })
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
}

/// What Google Benchmark leaves of a command line: numbers, with defaults for those that are not given.
struct Numbers {
    std::vector<double> given;
    [[nodiscard]] double get(std::size_t i, double standard) const { return i < given.size() ? given[i] : standard; }
    [[nodiscard]] int get(std::size_t i, int standard) const {
        return i < given.size() ? static_cast<int>(given[i]) : standard;
    }
};

/// The programs' main: `add(numbers)` registers the cases. Returns 2 for arguments that are not understood.
inline int run_cases(int argc, char** argv, const std::function<void(const Numbers&)>& add) {
    std::vector<char*> arguments(argv, argv + argc);
    char tabular[] = "--benchmark_counters_tabular=true";
    arguments.insert(arguments.begin() + 1, tabular);
    int count = static_cast<int>(arguments.size());
    benchmark::Initialize(&count, arguments.data());
    Numbers numbers;
    for (int i = 1; i < count; ++i) {
        char* end = nullptr;
        numbers.given.push_back(std::strtod(arguments[i], &end));
        if (end != arguments[i] && *end == '\0') continue;
        std::fprintf(stderr, "%s: '%s' is neither a number nor an option of Google Benchmark\n", argv[0], arguments[i]);
        return 2;
    }
    add(numbers);
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}

}  // namespace sparseattn::bench
