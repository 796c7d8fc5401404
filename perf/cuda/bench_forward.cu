/// \file
/// Times the CUDA forward kernel over lengths and densities, beside a large bf16 matrix product and a copy in the same
/// run. Work is 4 d per kept (query, key) pair and head: whole blocks count whole, the diagonal block of a causal row
/// half. eff = density x dense time / sparse time, density = work / work of the dense call.
/// Usage: bench_forward [--json FILE] [--seconds S per case] [--quick | --dense]
/// --quick: two lengths; --dense: only dense calls, each after a second of rest, to set beside
/// perf/cuda/torch_forward.py.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <tuple>

#include "perf/cuda/bench.cuh"

using namespace sparseattn::cuda;
using namespace sparseattn::cuda::testing;

namespace {

double seconds_per_case = 0.15;
std::FILE* json = nullptr;

/// Median time of one call, in milliseconds. Each is timed in a run of calls of about `run_ms`, so that the clocks are
/// those of steady work.
constexpr double run_ms = 3;
template <class Call>
double time_run(const Call& call, int calls) {
    cudaEvent_t begin, end;
    SPARSEATTN_TEST_CUDA(cudaEventCreate(&begin));
    SPARSEATTN_TEST_CUDA(cudaEventCreate(&end));
    SPARSEATTN_TEST_CUDA(cudaEventRecord(begin));
    for (int i = 0; i < calls; ++i) call();
    SPARSEATTN_TEST_CUDA(cudaEventRecord(end));
    SPARSEATTN_TEST_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    SPARSEATTN_TEST_CUDA(cudaEventElapsedTime(&ms, begin, end));
    SPARSEATTN_TEST_CUDA(cudaEventDestroy(begin));
    SPARSEATTN_TEST_CUDA(cudaEventDestroy(end));
    return ms / calls;
}
template <class Call>
int calls_of(const Call& call) {
    call();  // warms up
    return std::max(1, static_cast<int>(run_ms / time_run(call, 1)));
}
double median(std::vector<double> times) {
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
}
template <class Call>
double steady_ms(const Call& call) {
    const int calls = calls_of(call);
    std::vector<double> times;
    for (double total = 0; times.size() < 3 || total < seconds_per_case * 1e3; total += times.back() * calls) {
        times.push_back(time_run(call, calls));
    }
    return median(times);
}
/// The same for two calls that take turns: clocks drift with temperature and power, and a ratio must not.
template <class First, class Second>
std::pair<double, double> time_both_ms(const First& first, const Second& second) {
    const int first_calls = calls_of(first), second_calls = calls_of(second);
    std::vector<double> first_times, second_times;
    for (double total = 0; first_times.size() < 3 || total < 2e3 * seconds_per_case;) {
        first_times.push_back(time_run(first, first_calls));
        second_times.push_back(time_run(second, second_calls));
        total += first_times.back() * first_calls + second_times.back() * second_calls;
    }
    return {median(first_times), median(second_times)};
}

/// FLOP of the kept pairs.
double work(const HostProblem& p) {
    return kept_pairs(p) * 4 * p.head_dim;
}

void bench(const Shape& shape, const std::vector<double>& densities) {
    const auto call = [](const DeviceProblem& device) {
        const Status status = forward(device.params);
        if (!status.ok()) {
            std::fprintf(stderr, "%s: %s\n", status.where, cudaGetErrorString(status.error));
            std::exit(1);
        }
    };
    const HostProblem dense_problem = build(shape, 1);
    const DeviceProblem dense(dense_problem, false, 0, 7);
    const double dense_work = work(dense_problem);
    for (const double density : densities) {
        const HostProblem p = build(shape, density);
        DeviceProblem device(p, false, 0, 7);
        device.params.layout.shared_heads = shape.shared ? shape.query_heads / shape.key_heads : 1;
        device.out.fill(0xff);
        double dense_ms = 0, ms = 0;
        if (density >= 1) {
            dense_ms = ms = steady_ms([&] { call(device); });
        } else {
            std::tie(dense_ms, ms) = time_both_ms([&] { call(dense); }, [&] { call(device); });
        }
        SPARSEATTN_TEST_CUDA(cudaDeviceSynchronize());
        std::vector<std::int32_t> tokens;  // a sample is checked, so that no wrong kernel is timed
        if (shape.length <= 24000) {
            for (int token = 13; token < shape.length; token += shape.length / 5) tokens.push_back(token);
        }
        const Comparison check = compare(p, device, tokens);
        const double flop = work(p);
        const double kept = flop / dense_work;
        const double eff = kept * dense_ms / ms;
        std::printf("n %6d Hq %2d Hkv %2d d %3d block %3d %s%s density %.3f %8.3f ms  %4.0f TFLOP/s  eff %.2f%s\n",
                    shape.length, shape.query_heads, shape.key_heads, shape.head_dim, shape.block,
                    shape.causal ? "causal" : "full  ", shape.shared ? " shared" : "", kept, ms, 1e-9 * flop / ms, eff,
                    check.ok() ? "" : (" WRONG: " + check.first).c_str());
        std::fflush(stdout);
        if (json != nullptr) {
            std::fprintf(json,
                         "{\"what\": \"forward\", \"n\": %d, \"query_heads\": %d, \"key_heads\": %d, \"head_dim\": %d, "
                         "\"block\": %d, \"causal\": %d, \"shared\": %d, \"density\": %.4f, \"ms\": %.4f, \"tflops\": "
                         "%.1f, \"eff\": %.3f, \"right\": %d}\n",
                         shape.length, shape.query_heads, shape.key_heads, shape.head_dim, shape.block, shape.causal,
                         shape.shared, kept, ms, 1e-9 * flop / ms, eff, check.ok());
        }
    }
}

/// One new query per sequence against all its keys; the floor is one read of keys and values.
void bench_decode(int sequences, int keys) {
    HostProblem p;
    p.query_heads = 32;
    p.key_heads = 8;
    for (int i = 0; i < sequences; ++i) add_sequence(p, 1, keys);
    p.head_list.assign(p.query_heads, 0);
    p.windows.assign(p.query_heads, {0, Window::everything, 0});
    make_lists(p, 1, true, 0, 0, 5);
    DeviceProblem device(p, false, 0, 7);
    bool served = true;
    const double ms = steady_ms([&] { served = forward(device.params).ok() && served; });
    SPARSEATTN_TEST_CUDA(cudaDeviceSynchronize());
    const double terabytes = 4e-12 * p.keys() * p.key_heads * p.head_dim;
    std::printf("decode: %d sequences of %d keys, Hq 32 Hkv 8 d 128: %.3f ms, %.2f TB/s of keys and values%s\n",
                sequences, keys, ms, 1e3 * terabytes / ms, served ? "" : " FAILED");
    if (json != nullptr) {
        std::fprintf(json, "{\"what\": \"decode\", \"sequences\": %d, \"keys\": %d, \"ms\": %.4f, \"tbs\": %.3f}\n",
                     sequences, keys, ms, 1e3 * terabytes / ms);
    }
}

}  // namespace

int main(int argc, char** argv) {
    bool quick = false, dense = false;
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--quick") == 0)
            quick = true;
        else if (std::strcmp(argv[i], "--dense") == 0)
            dense = true;
        else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc)
            json = std::fopen(argv[++i], "w");
        else if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds_per_case = std::atof(argv[++i]);
        else {
            std::fprintf(stderr, "usage: %s [--json FILE] [--seconds S] [--quick | --dense]\n", argv[0]);
            return 2;
        }
    }
    cudaDeviceProp device{};
    SPARSEATTN_TEST_CUDA(cudaGetDeviceProperties(&device, 0));
    int driver = 0, runtime = 0;
    SPARSEATTN_TEST_CUDA(cudaDriverGetVersion(&driver));
    SPARSEATTN_TEST_CUDA(cudaRuntimeGetVersion(&runtime));
    std::printf("%s, driver CUDA %d, runtime CUDA %d\n", device.name, driver, runtime);
    if (dense) {
        for (const Shape& shape : {Shape{16384, 16, 4, 128, 128, false, false},
                                   {16384, 16, 4, 128, 128, true, false},
                                   {65536, 4, 1, 128, 128, false, false},
                                   {65536, 4, 1, 128, 128, true, false},
                                   {16384, 16, 4, 64, 128, false, false}}) {
            std::this_thread::sleep_for(std::chrono::seconds(1));
            bench(shape, {1});
        }
        bench_decode(1, 65536);
        bench_decode(8, 32768);
        return 0;
    }
    print_ceilings("before", json);
    const std::vector<double> densities = {1, 0.5, 0.25, 0.1, 0.05};
    // head counts so that the dense call takes some milliseconds
    const std::vector<std::pair<int, int>> sizes =
        quick ? std::vector<std::pair<int, int>>{{16384, 16}, {65536, 4}}
              : std::vector<std::pair<int, int>>{{16384, 16}, {32768, 16}, {65536, 8}, {131072, 8}};
    for (const auto& [length, heads] : sizes) {
        for (const bool causal : {false, true}) {
            for (const int block : {128, 64}) bench({length, heads, heads / 4, 128, block, causal, false}, densities);
        }
    }
    bench({16384, 16, 4, 128, 64, false, true}, densities);  // heads of a group share a list
    bench({16384, 16, 16, 128, 128, false, false}, {1, 0.1});
    bench({16384, 16, 4, 64, 128, false, false}, densities);
    bench({16384, 16, 4, 64, 128, true, false}, {1});
    if (!quick) bench({16384, 16, 4, 64, 64, false, false}, densities);
    bench_decode(1, 65536);
    bench_decode(8, 32768);
    print_ceilings("after", json);
    if (json != nullptr) std::fclose(json);
    return 0;
}
