/// \file
/// Backward calls, whole (preparation, passes, conversion), with dQ summed in a fixed order and in any. Work is 10 d
/// per kept (query, key) pair and head.

#include "perf/cuda/shapes.cuh"
#include "tests/cuda/sample_backward.cuh"

namespace sparseattn::cuda::bench {
namespace {

using testing::BackwardProblem;

/// A problem on the device, timed with both orders.
struct Case {
    HostProblem host;
    BackwardProblem problem;
    BackwardParams any;
    testing::Buffer<unsigned char> any_workspace;
    Row row;
    double work;

    Case(const Options& options, const Shape& shape, const Lists& lists)
        : host(build(shape, lists, options.kernel)),
          problem(host, false, 0, 7, true),
          row(row_of("backward", shape, lists)),
          work(kept_pairs(host) * 10 * shape.head_dim) {
        problem.params.density = static_cast<float>(lists.density);
        any = problem.params;
        any.deterministic = false;
        any_workspace = testing::Buffer<unsigned char>(backward_workspace(any));
        any.workspace = any_workspace.data();
        any.workspace_bytes = any_workspace.size();
    }
    /// The forward's results that the backward pass starts from.
    void prepare() {
        require(forward(problem.forward.params));
        problem.poison();
    }
    std::function<void()> call(bool fixed) {
        return [this, fixed] { require(backward(fixed ? problem.params : any)); };
    }
    void report(Report& report, bool fixed, double ms, double dense_ms, double dense_work) {
        row.order = fixed ? "fixed" : "any";
        row.kernel = name(backward_kernel(fixed ? problem.params : any));
        row.ms = ms;
        row.tflops = 1e-9 * work / ms;
        row.density = work / dense_work;
        row.eff = row.density * dense_ms / ms;
        row.goal_eff = goal_eff(row);
        row.goal_tflops = goal_tflops(row);
        problem.poison();
        call(fixed)();
        row.wrong = testing::wrong_gradient(problem, some_tokens(row.length));
        report.row(row);
    }
};

void sweep(const Options& options, Report& report, const Sweep& sweep) {
    Case dense[2] = {{options, sweep.shape, {128}}, {options, sweep.shape, {64}}};
    std::vector<std::function<void()>> dense_calls;
    for (Case& dense_case : dense) {
        const char* why = "";
        if (backward_kernel(dense_case.problem.params, &why) == Kernel::none) {
            return report.not_served(dense_case.row, why);
        }
        dense_case.prepare();
        for (const bool fixed : {false, true}) dense_calls.push_back(dense_case.call(fixed));
    }
    const std::vector<double> dense_ms = time_in_turns(options, dense_calls);
    const auto fastest = std::min_element(dense_ms.begin(), dense_ms.end()) - dense_ms.begin();
    for (std::size_t i = 0; i < dense_calls.size(); ++i) {
        Case& each = dense[i / 2];
        each.report(report, i % 2 == 1, dense_ms[i], dense_ms[fastest], each.work);
    }
    const double dense_work = dense[0].work;
    for (const Lists& lists : sweep.lists) {
        Case sparse(options, sweep.shape, lists);
        sparse.prepare();
        const auto ms = time_in_turns(options, {dense_calls[fastest], sparse.call(false), sparse.call(true)});
        for (const bool fixed : {false, true}) sparse.report(report, fixed, ms[fixed ? 2 : 1], ms[0], dense_work);
    }
}

}  // namespace

void bench_backward(const Options& options, Report& report) {
    for (const Sweep& each : sweeps(options)) sweep(options, report, each);
}

}  // namespace sparseattn::cuda::bench
