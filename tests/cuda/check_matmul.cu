// Checks cuda/matmul on a device against sums in double: transpositions, odd sizes and addresses, both result types,
// repeated bits, no allocation and no waiting in a steady call. With --time also prints rates of products of a decoder.
// Exit code 1 when something is wrong, 77 without a device that it serves.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/matmul.hpp"

namespace cu = sparseattn::cuda;

namespace {

void require_ok(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

template <class T>
T* device_array(std::size_t count) {
    T* pointer = nullptr;
    require_ok(cudaMalloc(&pointer, count * sizeof(T)), "cudaMalloc");
    return pointer;
}

__host__ __device__ float to_float(std::uint16_t bits) {
    const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}
__host__ __device__ std::uint32_t mix(std::uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352dU;
    x = (x ^ (x >> 15)) * 0x846ca68bU;
    return x ^ (x >> 16);
}

// Numbers in (-1, 1) with 8 significant bits.
__global__ void fill(std::uint16_t* values, std::int64_t count, std::uint32_t seed) {
    const std::int64_t i = blockIdx.x * std::int64_t{256} + threadIdx.x;
    if (i >= count) return;
    const float value =
        (static_cast<float>(mix(static_cast<std::uint32_t>(i) * 2654435761U + seed) >> 8) - 8388608.0F) / 8388608.0F;
    std::uint32_t word;
    memcpy(&word, &value, sizeof word);
    values[i] = static_cast<std::uint16_t>(word >> 16);
}

// wanted = alpha op(a) op(b) + beta old, and what rounding may change it by.
struct Wanted {
    double value, slack;
};
__global__ void product(cu::MatmulParams p, const void* old, bool old_is_bf16, Wanted* wanted) {
    const std::int64_t at = blockIdx.x * std::int64_t{256} + threadIdx.x;
    if (at >= p.m * p.n) return;
    const std::int64_t i = at / p.n, j = at % p.n;
    const auto* a = static_cast<const std::uint16_t*>(p.a);
    const auto* b = static_cast<const std::uint16_t*>(p.b);
    double sum = 0, size = 0;
    for (std::int64_t l = 0; l < p.k; ++l) {
        const double x = to_float(a[p.transpose_a ? l * p.m + i : i * p.k + l]);
        const double y = to_float(b[p.transpose_b ? j * p.k + l : l * p.n + j]);
        sum += x * y;
        size += fabs(x * y);
    }
    const double product = p.alpha * sum;
    double value = product;
    if (p.beta != 0) {
        value += p.beta * (old_is_bf16 ? to_float(static_cast<const std::uint16_t*>(old)[at])
                                       : static_cast<const float*>(old)[at]);
    }
    // Tensor cores cut where they add: one unit of fp32 for every few terms. With beta the product may be rounded on
    // its own.
    const double sums = (static_cast<double>(p.k) / 8 + 8) * 1.2e-7 * fabs(p.alpha) * size;
    const double rounding = p.result == cu::MatmulResult::bf16 ? 1.0 / 255 : 1.2e-7;
    const double rounded = fabs(value) + (p.beta != 0 ? fabs(product) : 0.0);
    wanted[at] = {value, sums + rounding * rounded + 1e-30};
}

constexpr std::int64_t most = 3 << 20;
struct Arrays {
    std::uint16_t* a = device_array<std::uint16_t>(most + 16);
    std::uint16_t* b = device_array<std::uint16_t>(most + 16);
    float* c = device_array<float>(most + 16);
    float* old = device_array<float>(most + 16);
    Wanted* wanted = device_array<Wanted>(most);
    std::uint8_t* workspace = device_array<std::uint8_t>(cu::matmul_workspace);
    cudaStream_t stream = nullptr;
};

struct Case {
    std::int64_t m, n, k;
    int shift;  // elements that every array begins off its alignment
};

unsigned blocks(std::int64_t count) {
    return static_cast<unsigned>((count + 255) / 256);
}

cu::MatmulParams params_of(const Case& c, const Arrays& on, int flags) {
    cu::MatmulParams p;
    p.m = c.m, p.n = c.n, p.k = c.k;
    p.transpose_a = (flags & 1) != 0, p.transpose_b = (flags & 2) != 0;
    p.result = (flags & 4) != 0 ? cu::MatmulResult::fp32 : cu::MatmulResult::bf16;
    p.beta = (flags & 8) != 0 ? 1.0F : 0.0F;
    p.alpha = (flags & 8) != 0 ? 1.0F : 1.5F;
    p.a = on.a + c.shift, p.b = on.b + c.shift;
    p.c = p.result == cu::MatmulResult::bf16 ? static_cast<void*>(reinterpret_cast<std::uint16_t*>(on.c) + c.shift)
                                             : static_cast<void*>(on.c + c.shift);
    p.workspace = on.workspace;
    p.stream = on.stream;
    return p;
}

// Worst error in units of what is allowed.
double check(const Case& c, const Arrays& on, int flags) {
    const cu::MatmulParams p = params_of(c, on, flags);
    const bool half = p.result == cu::MatmulResult::bf16;
    const std::size_t count = static_cast<std::size_t>(c.m * c.n), bytes = count * (half ? 2 : 4);
    std::vector<std::uint8_t> first(bytes), second(bytes);
    for (auto* result : {&first, &second}) {
        // Not-a-numbers where the old content must not be read.
        if (p.beta == 0) {
            require_ok(cudaMemset(p.c, 0xff, bytes), "cudaMemset");
        } else if (half) {
            fill<<<blocks(c.m * c.n), 256>>>(static_cast<std::uint16_t*>(p.c), c.m * c.n, 3);
        } else {
            require_ok(cudaMemset(p.c, 0x3e, bytes), "cudaMemset");  // 0.18...
        }
        require_ok(cudaMemcpy(on.old, p.c, bytes, cudaMemcpyDeviceToDevice), "cudaMemcpy");
        require_ok(cudaDeviceSynchronize(), "old");
        if (const cu::MatmulStatus status = cu::matmul(p); !status.ok()) {
            std::printf("FAILED: %s: %s\n", status.where, status.reason);
            return 1e30;
        }
        require_ok(cudaStreamSynchronize(on.stream), "matmul");
        require_ok(cudaMemcpy(result->data(), p.c, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    }
    if (first != second) {
        std::printf("FAILED: two calls differ\n");
        return 1e30;
    }
    product<<<blocks(c.m * c.n), 256>>>(p, on.old, half, on.wanted);
    std::vector<Wanted> wanted(count);
    require_ok(cudaMemcpy(wanted.data(), on.wanted, count * sizeof(Wanted), cudaMemcpyDeviceToHost), "product");
    double worst = 0;
    for (std::size_t i = 0; i < count; ++i) {
        float got;
        if (half) {
            std::uint16_t bits;
            std::memcpy(&bits, &first[2 * i], 2);
            got = to_float(bits);
        } else {
            std::memcpy(&got, &first[4 * i], 4);
        }
        const double error = std::fabs(got - wanted[i].value) / wanted[i].slack;
        worst = std::isfinite(error) ? std::max(worst, error) : 1e30;
    }
    return worst;
}

bool check_cases(const Arrays& on) {
    const Case cases[] = {{1, 1, 1, 0},       {3, 5, 7, 0},       {17, 33, 65, 1},      {64, 259, 1, 0},
                          {512, 259, 256, 0}, {259, 256, 511, 0}, {128, 128, 128, 1},   {1000, 1000, 72, 3},
                          {1, 2048, 513, 0},  {2048, 1, 129, 0},  {1024, 768, 1024, 0}, {300, 520, 4096, 8},
                          {64, 64, 16384, 0}, {1536, 1536, 8, 4}};
    bool fine = true;
    double worst = 0;
    int count = 0;
    for (const Case& c : cases) {
        for (int flags = 0; flags < 16; ++flags) {
            const double error = check(c, on, flags);
            worst = std::max(worst, error);
            ++count;
            if (error <= 1) continue;
            fine = false;
            std::printf("FAILED: m %lld n %lld k %lld shift %d flags %d: %.3g of what is allowed\n",
                        static_cast<long long>(c.m), static_cast<long long>(c.n), static_cast<long long>(c.k), c.shift,
                        flags, error);
        }
    }
    std::printf("%d products: worst error %.3f of what rounding allows\n", count, worst);
    return fine;
}

// A call that waits or allocates cannot be recorded in a graph.
bool check_capture(const Arrays& on) {
    bool fine = true;
    for (int flags = 0; flags < 16; ++flags) {
        const cu::MatmulParams p = params_of({1024, 768, 1024, 0}, on, flags);
        std::size_t before = 0, after = 0, total = 0;
        require_ok(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
        cudaGraph_t graph = nullptr;
        require_ok(cudaStreamBeginCapture(on.stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
        const cu::MatmulStatus status = cu::matmul(p);
        const cudaError_t ended = cudaStreamEndCapture(on.stream, &graph);
        if (!status.ok() || ended != cudaSuccess) {
            std::printf("FAILED: flags %d in a graph: %s %s, %s\n", flags, status.where, status.reason,
                        cudaGetErrorString(ended));
            fine = false;
        }
        if (graph != nullptr) require_ok(cudaGraphDestroy(graph), "cudaGraphDestroy");
        require_ok(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
        if (after < before && status.ok()) {
            std::printf("note: flags %d: device memory went from %zu to %zu free bytes\n", flags, before, after);
        }
    }
    std::printf("steady calls in a graph: %s\n", fine ? "yes" : "NO");
    return fine;
}

bool check_errors(const Arrays& on) {
    cu::MatmulParams p = params_of({4, 4, 4, 0}, on, 0);
    p.workspace = on.workspace + 1;
    const bool workspace = std::strcmp(cu::matmul(p).where, "workspace") == 0;
    p = params_of({0, 4, 4, 0}, on, 0);
    const bool extent = !cu::matmul(p).ok();
    std::printf("errors name the argument: %s\n", workspace && extent ? "yes" : "NO");
    return workspace && extent;
}

void time_products(const Arrays& on) {
    const std::int64_t t = 8192, hidden = 2048, inner = 8192, qkv = 3072, vocabulary = 32000, block = 512;
    const struct {
        const char* name;
        std::int64_t m, n, k;
        int flags;
    } products[] = {
        {"qkv forward", t, qkv, hidden, 2},
        {"o forward, adds", t, hidden, hidden, 2 | 8},
        {"gate_up forward", t, 2 * inner, hidden, 2},
        {"down forward, adds", t, hidden, inner, 2 | 8},
        {"gate_up dx", t, hidden, 2 * inner, 0},
        {"gate_up dw, fp32 adds", 2 * inner, hidden, t, 1 | 4 | 8},
        {"down dw, fp32 adds", hidden, inner, t, 1 | 4 | 8},
        {"logits, fp32", block, vocabulary, hidden, 2 | 4},
        {"head dw, fp32 adds", vocabulary, hidden, block, 1 | 4 | 8},
    };
    auto* a = device_array<std::uint16_t>(static_cast<std::size_t>(t * 2 * inner));
    auto* b = device_array<std::uint16_t>(static_cast<std::size_t>(t * 2 * inner));
    auto* c = device_array<float>(static_cast<std::size_t>(t * 2 * inner));
    fill<<<blocks(t * 2 * inner), 256>>>(a, t * 2 * inner, 1);
    fill<<<blocks(t * 2 * inner), 256>>>(b, t * 2 * inner, 2);
    cudaEvent_t start, end;
    require_ok(cudaEventCreate(&start), "cudaEventCreate");
    require_ok(cudaEventCreate(&end), "cudaEventCreate");
    for (const auto& product : products) {
        cu::MatmulParams p = params_of({product.m, product.n, product.k, 0}, on, product.flags);
        p.a = a, p.b = b, p.c = c;
        std::vector<float> times;
        for (int i = 0; i < 12; ++i) {
            require_ok(cudaEventRecord(start, on.stream), "cudaEventRecord");
            if (const cu::MatmulStatus status = cu::matmul(p); !status.ok()) {
                std::printf("%s: %s: %s\n", product.name, status.where, status.reason);
                return;
            }
            require_ok(cudaEventRecord(end, on.stream), "cudaEventRecord");
            require_ok(cudaEventSynchronize(end), product.name);
            float milliseconds = 0;
            require_ok(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
            if (i >= 2) times.push_back(milliseconds);
        }
        std::sort(times.begin(), times.end());
        const double median = times[times.size() / 2];
        std::printf("%-22s m %6lld n %6lld k %6lld: %7.1f us, %6.1f TFLOP/s\n", product.name,
                    static_cast<long long>(p.m), static_cast<long long>(p.n), static_cast<long long>(p.k),
                    1000 * median, 2e-9 * static_cast<double>(p.m * p.n * p.k) / median);
    }
}

}  // namespace

int main(int argc, char** argv) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 || cu::device_major() < 8) {
        std::printf("skipped: no device of compute capability 8.0 or later\n");
        return 77;
    }
    Arrays on;
    require_ok(cudaStreamCreateWithFlags(&on.stream, cudaStreamNonBlocking), "cudaStreamCreate");
    fill<<<blocks(most + 16), 256>>>(on.a, most + 16, 11);
    fill<<<blocks(most + 16), 256>>>(on.b, most + 16, 12);
    require_ok(cudaDeviceSynchronize(), "fill");
    const bool fine = check_cases(on) & check_capture(on) & check_errors(on);
    if (argc > 1 && std::strcmp(argv[1], "--time") == 0) time_products(on);
    std::printf(fine ? "check_matmul: all right\n" : "check_matmul: WRONG\n");
    return fine ? 0 : 1;
}
