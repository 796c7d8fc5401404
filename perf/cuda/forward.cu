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
        row.ms = ms;
        row.tflops = 1e-9 * work / ms;
        row.density = work / dense_work;
        row.eff = row.density * dense_ms / ms;
        row.goal_eff = goal_eff(row);
        row.goal_tflops = goal_tflops(row);
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

}  // namespace sparseattn::cuda::bench
