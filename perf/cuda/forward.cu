/// \file
/// Forward calls: dense (the list of all blocks) and block-sparse. Work is 4 d per kept (query, key) pair and head.

#include "perf/cuda/shapes.cuh"
#include "tests/cuda/reference.cuh"

namespace sparseattn::cuda::bench {
namespace {

using testing::DeviceProblem;

/// A problem on the device with the row that describes it.
struct Case {
    HostProblem host;
    DeviceProblem device;
    Row row;
    double work;

    Case(const Options& options, const Shape& shape, const Lists& lists)
        : host(build(shape, lists, options.kernel)),
          device(host, false, 0, 7),
          row(row_of("forward", shape, lists)),
          work(kept_pairs(host) * 4 * shape.head_dim) {
        device.out.fill(0xff);
    }
    std::function<void()> call() {
        return [this] { require(forward(device.params)); };
    }
    void report(Report& report, double ms, double dense_ms, double dense_work) {
        row.density = work / dense_work;
        row.eff = row.density * dense_ms / ms;
        row.goal_eff = goal_eff(row);
        row.goal_tflops = goal_tflops(row);
        report_time(report, ms);
    }
    /// Against the same call without single keys.
    void report_singles(Report& report, double ms, const Case& without, double without_ms) {
        const Row& r = row;
        row.density = work / (2.0 * r.length * r.length * r.head_dim * r.query_heads);  // of causal dense work
        row.times = ms / without_ms;
        row.eff = work / without.work / row.times;
        report_time(report, ms);
    }

  private:
    void report_time(Report& report, double ms) {
        row.ms = ms;
        row.tflops = 1e-9 * work / ms;
        row.wrong = testing::compare(host, device, some_tokens(row.length)).first;
        report.row(row);
    }
};

void sweep(const Options& options, Report& report, const Sweep& sweep) {
    Case dense[2] = {{options, sweep.shape, {128}}, {options, sweep.shape, {64}}};
    for (Case& dense_case : dense) {
        const char* why = "";
        const Kernel kernel = forward_kernel(dense_case.device.params, &why);
        dense_case.row.kernel = name(kernel);
        if (kernel == Kernel::none) return report.not_served(dense_case.row, why);
    }
    const std::vector<double> dense_ms = time_in_turns(options, {dense[0].call(), dense[1].call()});
    const int fastest = dense_ms[0] <= dense_ms[1] ? 0 : 1;
    const double dense_work = dense[0].work;
    for (const int i : {0, 1}) dense[i].report(report, dense_ms[i], dense_ms[fastest], dense[i].work);
    for (const Lists& lists : sweep.lists) {
        Case sparse(options, sweep.shape, lists);
        sparse.row.kernel = name(forward_kernel(sparse.device.params));
        const auto ms = time_in_turns(options, {dense[fastest].call(), sparse.call()});
        sparse.report(report, ms[1], ms[0], dense_work);
    }
}

}  // namespace

void bench_forward(const Options& options, Report& report) {
    for (const Sweep& each : sweeps(options)) sweep(options, report, each);
}

/// Vertical lines beside lists of a tenth of the blocks; 1000 are MInference's default. eff = 1: single keys cost what
/// keys in blocks cost.
void bench_singles(const Options& options, Report& report) {
    for (const int length : {16384, 65536}) {
        if (!wanted(options, length)) continue;
        const int heads = length <= 32768 ? 16 : 8;
        const Shape shape{length, heads, heads / 4, 128, true};
        for (const int block : {128, 64}) {
            Case without(options, shape, {block, false, false, 0.1});
            for (const int lines : {0, 32, 160, 1000}) {
                Case lined(options, shape, {block, false, false, 0.1, lines});
                lined.row.what = "singles";
                const char* why = "";
                const Kernel kernel = forward_kernel(lined.device.params, &why);
                lined.row.kernel = name(kernel);
                if (kernel == Kernel::none) return report.not_served(lined.row, why);
                const auto ms = time_in_turns(options, {without.call(), lined.call()});
                lined.report_singles(report, ms[1], without, ms[0]);
            }
        }
    }
}

}  // namespace sparseattn::cuda::bench
