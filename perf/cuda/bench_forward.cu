/// \file
/// Times the CUDA forward kernel over lengths and densities, beside a large bf16 matrix product and a copy in the same
/// run. Work is 4 d per kept (query, key) pair and head: whole blocks count whole, the diagonal block of a causal row
/// half. eff = density x dense time / sparse time, density = work / work of the dense call.
/// Usage: bench_forward [--json FILE] [--seconds S per case] [--quick | --dense]
/// --quick: two lengths; --dense: only dense calls, each after a second of rest, to set beside
/// perf/cuda/torch_forward.py.

#include <cublas_v2.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <tuple>

#include "tests/cuda/problem.cuh"

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
double time_ms(const Call& call) {
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

void print_ceilings(const char* when) {
    constexpr int n = 8192;
    Buffer<__nv_bfloat16> a(n * std::size_t{n}), b(n * std::size_t{n}), c(n * std::size_t{n});
    fill_random<<<1024, 256>>>(a.data(), n * std::int64_t{n}, 1, 1);
    fill_random<<<1024, 256>>>(b.data(), n * std::int64_t{n}, 2, 1);
    cublasHandle_t handle;
    if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) std::exit(70);
    const float one = 1, zero = 0;
    const double gemm = time_ms([&] {
        if (cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a.data(), CUDA_R_16BF, n, b.data(),
                         CUDA_R_16BF, n, &zero, c.data(), CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                         CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
            std::exit(70);
        }
    });
    cublasDestroy(handle);
    constexpr std::size_t bytes = std::size_t{1} << 31;
    Buffer<unsigned char> from(bytes), to(bytes);
    from.fill(3);
    const double copy = time_ms(
        [&] { SPARSEATTN_TEST_CUDA(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice)); });
    std::printf("%s: gemm 8192 bf16 %.0f TFLOP/s, copy %.2f TB/s (read + written)\n", when, 2e-9 * n * n * n / gemm,
                2e-9 * bytes / copy);
    if (json != nullptr) {
        std::fprintf(json, "{\"what\": \"ceilings\", \"when\": \"%s\", \"gemm_tflops\": %.1f, \"copy_tbs\": %.3f}\n",
                     when, 2e-9 * n * n * n / gemm, 2e-9 * bytes / copy);
    }
}

struct Shape {
    int length, query_heads, key_heads, head_dim, block;
    bool causal, shared;
};

HostProblem build(const Shape& shape, double density) {
    HostProblem p;
    p.head_dim = shape.head_dim;
    p.block = shape.block;
    p.query_heads = shape.query_heads;
    p.key_heads = shape.key_heads;
    p.causal = shape.causal;
    add_sequence(p, shape.length, shape.length);
    const int group = shape.query_heads / shape.key_heads;
    p.lists = density >= 1 ? 1 : shape.shared ? shape.key_heads : shape.query_heads;
    for (int head = 0; head < p.query_heads; ++head) {
        p.head_list.push_back(density >= 1 ? 0 : shape.shared ? head / group : head);
        p.windows.push_back({0, Window::everything, 0});
    }
    make_lists(p, density, shape.causal, 0, 0, 5);
    return p;
}

/// FLOP of the kept pairs.
double work(const HostProblem& p) {
    double blocks = 0;
    for (int head = 0; head < p.query_heads; ++head) {
        for (int row = 0; row < p.rows(); ++row) {
            const std::int64_t entry = static_cast<std::int64_t>(p.head_list[head]) * p.rows() + row;
            const auto begin = p.offsets[entry], end = p.offsets[entry + 1];
            blocks += static_cast<double>(end - begin);
            if (p.causal && end > begin && p.columns[end - 1] == row) blocks -= 0.5;
        }
    }
    return blocks * p.block * p.block * 4 * p.head_dim;
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
            dense_ms = ms = time_ms([&] { call(device); });
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
        return 0;
    }
    print_ceilings("before");
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
    print_ceilings("after");
    if (json != nullptr) std::fclose(json);
    return 0;
}
