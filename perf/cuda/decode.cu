/// \file
/// Decode: one new query per sequence against its keys. The floor is one read of the kept keys and values.

#include "perf/cuda/shapes.cuh"
#include "tests/cuda/reference.cuh"

namespace sparseattn::cuda::bench {
namespace {

using testing::DeviceProblem;

HostProblem build_decode(const Options& options, int sequences, int keys, double density) {
    HostProblem p;
    p.kernel = options.kernel;
    p.query_heads = 32;
    p.key_heads = 8;
    for (int i = 0; i < sequences; ++i) testing::add_sequence(p, 1, keys);
    p.lists = density >= 1 ? 1 : p.key_heads;
    p.shared_heads = p.query_heads / p.lists;
    for (int head = 0; head < p.query_heads; ++head) {
        p.head_list.push_back(head / p.shared_heads);
        p.windows.push_back({0, Window::everything, 0});
    }
    testing::make_lists(p, density, true, 0, 0, 5);
    return p;
}

void decode(const Options& options, Report& report, int sequences, int keys) {
    double dense_ms = 0, dense_entries = 0;
    for (const double density : {1.0, 0.1}) {
        if (options.dense && density < 1) continue;
        const HostProblem p = build_decode(options, sequences, keys, density);
        DeviceProblem device(p, false, 0, 7);
        device.out.fill(0xff);
        Row row;
        row.what = "decode";
        row.length = keys;
        row.sequences = sequences;
        row.query_heads = p.query_heads;
        row.key_heads = p.key_heads;
        row.head_dim = p.head_dim;
        row.block = p.block;
        row.causal = p.causal;
        row.lists = "shared";
        const char* why = "";
        const Kernel kernel = forward_kernel(device.params, &why);
        row.kernel = name(kernel);
        if (kernel == Kernel::none) {
            report.not_served(row, why);
            continue;
        }
        row.ms = time_in_turns(options, {[&] { require(forward(device.params)); }})[0];
        const double entries = static_cast<double>(p.columns.size()) * p.key_heads / p.lists;
        if (density >= 1) {
            dense_ms = row.ms;
            dense_entries = entries;
        }
        row.density = entries / dense_entries;
        row.tflops = 1e-9 * entries * p.block * (p.query_heads / p.key_heads) * 4 * p.head_dim / row.ms;
        row.terabytes = 1e-9 * entries * p.block * p.head_dim * 2 * sizeof(__nv_bfloat16) / row.ms;
        row.eff = row.density * dense_ms / row.ms;
        std::vector<std::int32_t> tokens;
        for (int token = 0; token < p.queries(); token += 1 + p.queries() / 5) tokens.push_back(token);
        row.wrong = testing::compare(p, device, tokens).first;
        report.row(row);
    }
}

}  // namespace

void bench_decode(const Options& options, Report& report) {
    decode(options, report, 1, 65536);
    decode(options, report, 8, 32768);
    if (!options.quick) {
        decode(options, report, 1, 131072);
        decode(options, report, 64, 8192);
    }
}

}  // namespace sparseattn::cuda::bench
