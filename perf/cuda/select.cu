/// \file
/// Block selection, lists included, beside the dense causal forward of the same run. XAttention's work is that of the
/// strided products that causality leaves, 1 / S of the dense score product; FlexPrefill's and MInference's that of the
/// last queries with all keys, once.

#include "perf/cuda/shapes.cuh"
#include "tests/cuda/problem_profile.cuh"
#include "tests/cuda/problem_select.cuh"

namespace sparseattn::cuda::bench {
namespace {

using testing::DeviceProblem;
using testing::ProfileCase;
using testing::ProfileProblem;
using testing::SelectCase;
using testing::SelectProblem;

struct Selector {
    int block, stride;
};

void select_row(const Options& options, Report& report, const Shape& shape, const Selector& selector,
                const std::function<void()>& dense) {
    SelectCase select_case{};
    select_case.name = "bench";
    select_case.queries = select_case.keys = {shape.length};
    select_case.query_heads = shape.query_heads;
    select_case.key_heads = shape.key_heads;
    select_case.head_dim = shape.head_dim;
    select_case.block = selector.block;
    select_case.stride = selector.stride;
    select_case.thresholds = {0.9};
    SelectProblem problem(select_case, 17);
    problem.params.masses = nullptr;
    Row row = row_of("select", shape, {selector.block});
    row.stride = selector.stride;
    const char* why = "";
    const Kernel kernel = xattention_kernel(problem.params, &why);
    row.kernel = name(kernel);
    if (kernel == Kernel::none) return report.not_served(row, why);
    const std::vector<double> ms = time_in_turns(options, {dense, [&] { require(xattention(problem.params)); }});
    const double rows = problem.host.rows();
    const double kept = static_cast<double>(problem.offsets.host()[problem.heads.size() * problem.host.rows()]);
    row.density = kept / (shape.query_heads * rows * (rows + 1) / 2);
    row.ms = ms[1];
    row.tflops = 1e-9 * shape.length * shape.length / selector.stride * shape.head_dim * shape.query_heads / ms[1];
    row.share = ms[1] / ms[0];
    row.goal_share = selector.stride == 16 ? 0.04 : 0;
    report.row(row);
}

/// `aware`: FlexPrefill's heads all look at block means, the dearer of its two patterns; else none does.
void profile_row(const Options& options, Report& report, const Shape& shape, const char* method, int block, bool aware,
                 const std::function<void()>& dense) {
    ProfileCase profile{"bench",         {shape.length}, {shape.length}, shape.query_heads,
                        shape.key_heads, shape.head_dim, block};
    profile.gamma = 0.9;
    profile.tau = aware ? 1 : 0;
    profile.least = 512;
    profile.columns = 1000;
    profile.distances = 6096;
    const bool flex = std::string(method) == "flexprefill";
    const ProfileProblem problem(profile, 17);
    Row row = row_of(method, shape, {block});
    row.lists = !flex ? "" : aware ? "pairs" : "profile";
    const char* why = "";
    const Kernel kernel = flex ? flexprefill_kernel(problem.flex, &why) : minference_kernel(problem.minference, &why);
    row.kernel = name(kernel);
    if (kernel == Kernel::none) return report.not_served(row, why);
    const std::vector<double> ms = time_in_turns(
        options, {dense, [&] { require(flex ? flexprefill(problem.flex) : minference(problem.minference)); }});
    const double rows = problem.host.rows();
    const double kept = static_cast<double>(problem.offsets.host()[problem.heads.size() * problem.host.rows()]);
    row.density = kept / (shape.query_heads * rows * (rows + 1) / 2);
    row.ms = ms[1];
    row.tflops = 2e-9 * shape.length * (flex ? block : 64) * shape.head_dim * shape.query_heads / ms[1];
    row.share = ms[1] / ms[0];
    row.goal_share = shape.length >= 65536 ? 0.04 : 0;
    report.row(row);
}

}  // namespace

void bench_select(const Options& options, Report& report) {
    const std::vector<int> lengths =
        options.quick ? std::vector<int>{16384, 65536} : std::vector<int>{16384, 32768, 65536, 131072};
    for (const int length : lengths) {
        if (!wanted(options, length)) continue;
        const Shape shape{length, 16, 4, 128, true};
        const HostProblem host = build(shape, {128}, options.kernel);
        DeviceProblem device(host, false, 0, 7);
        const auto dense = [&] { require(forward(device.params)); };
        for (const Selector& selector : {Selector{128, 16}, {64, 16}, {128, 8}}) {
            select_row(options, report, shape, selector, dense);
        }
        profile_row(options, report, shape, "flexprefill", 128, false, dense);
        profile_row(options, report, shape, "flexprefill", 128, true, dense);
        profile_row(options, report, shape, "minference", 64, false, dense);
    }
}

}  // namespace sparseattn::cuda::bench
