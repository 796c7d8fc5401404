#pragma once
/// \file
/// An fp64 reference of the forward pass on the device, which walks keys one by one, and the comparison with it.

#include "tests/cuda/problem.cuh"

namespace sparseattn::cuda::testing {

/// Position of `value` in the ascending list [begin, end) of `entries`, or -1.
inline __device__ std::int64_t find(const std::int32_t* entries, std::int64_t begin, std::int64_t end,
                                    std::int32_t value) {
    while (begin < end) {
        const std::int64_t middle = (begin + end) / 2;
        if (entries[middle] == value) return middle;
        if (entries[middle] < value)
            begin = middle + 1;
        else
            end = middle;
    }
    return -1;
}

/// fp64 attention of the queries tokens[blockIdx.x] (packed numbers) and head blockIdx.y: out[x][y][d], the weighted
/// mean of |value| (scale of rounding errors) and lse. One thread block each; a double per key in shared memory, or in
/// `scratch` ([tokens, Hq, scratch_keys]) where that is too small.
static __global__ void reference_forward(ForwardParams p, const std::int32_t* tokens, double* out, double* magnitude,
                                         double* lse, double* scratch, std::int64_t scratch_keys) {
    extern __shared__ double shared_weight[];
    double* weight = shared_weight;
    if (scratch != nullptr) {
        weight = scratch + (static_cast<std::int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * scratch_keys;
    }
    __shared__ double reduced[256];
    const int token = tokens[blockIdx.x], head = blockIdx.y, key_head = head / (p.query_heads / p.key_heads);
    int sequence = 0;
    while (p.batch.query_offsets[sequence + 1] <= token) ++sequence;
    const int i = token - p.batch.query_offsets[sequence];
    const int key_token = p.batch.key_offsets[sequence];
    const int keys = p.batch.key_offsets[sequence + 1] - key_token;
    const int queries = p.batch.query_offsets[sequence + 1] - p.batch.query_offsets[sequence];
    const TokenRule rule{queries, keys, p.layout.causal, p.layout.windows[head]};
    const std::int64_t entry = static_cast<std::int64_t>(p.layout.head_list[head]) * p.layout.rows +
                               p.layout.row_begin[sequence] + i / p.layout.block;
    const auto* q =
        static_cast<const __nv_bfloat16*>(p.query.data) + token * p.query.token_stride + head * p.query.head_stride;
    const auto* k = static_cast<const __nv_bfloat16*>(p.key.data) + key_head * p.key.head_stride;
    const auto* v = static_cast<const __nv_bfloat16*>(p.value.data) + key_head * p.value.head_stride;
    double highest = -INFINITY;
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        bool kept =
            find(p.layout.columns, p.layout.offsets[entry], p.layout.offsets[entry + 1], j / p.layout.block) >= 0;
        if (!kept && p.layout.key_offsets != nullptr) {
            kept = find(p.layout.keys, p.layout.key_offsets[entry], p.layout.key_offsets[entry + 1], j) >= 0;
        }
        double score = -INFINITY;
        if (kept && rule.visible(i, j)) {
            score = 0;
            for (int c = 0; c < p.head_dim; ++c) {
                score += static_cast<double>(__bfloat162float(q[c])) *
                         __bfloat162float(k[(key_token + j) * p.key.token_stride + c]);
            }
            score *= p.scale;
        }
        weight[j] = score;
        highest = fmax(highest, score);
    }
    const auto reduce = [&](double value, bool maximum) {
        __syncthreads();
        reduced[threadIdx.x] = value;
        __syncthreads();
        double result = reduced[0];
        for (unsigned t = 1; t < blockDim.x; ++t) result = maximum ? fmax(result, reduced[t]) : result + reduced[t];
        return result;
    };
    highest = reduce(highest, true);
    double sum = 0;
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        weight[j] = highest == -INFINITY ? 0 : exp(weight[j] - highest);
        sum += weight[j];
    }
    sum = reduce(sum, false);
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * p.query_heads + head;
    for (int c = threadIdx.x; c < p.head_dim; c += blockDim.x) {
        double total = 0, absolute = 0;
        for (int j = 0; j < keys; ++j) {
            if (weight[j] == 0) continue;
            const double value = __bfloat162float(v[(key_token + j) * p.value.token_stride + c]);
            total += weight[j] * value;
            absolute += weight[j] * fabs(value);
        }
        out[row * p.head_dim + c] = sum > 0 ? total / sum : 0;
        magnitude[row * p.head_dim + c] = sum > 0 ? absolute / sum : 0;
    }
    if (threadIdx.x == 0) lse[row] = sum > 0 ? highest + log(sum) : -INFINITY;
}

/// rows[x] = row tokens[x] of an array whose rows are `stride` apart and `width` long. One thread block a row.
template <class T>
__global__ void gather_rows(const T* from, std::int64_t stride, std::int64_t width, const std::int32_t* tokens,
                            T* rows) {
    for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) {
        rows[blockIdx.x * width + i] = from[tokens[blockIdx.x] * stride + i];
    }
}
template <class T>
std::vector<T> rows_of(const T* from, std::int64_t stride, std::int64_t width, const Buffer<std::int32_t>& tokens) {
    Buffer<T> rows(tokens.size() * static_cast<std::size_t>(width));
    gather_rows<<<static_cast<unsigned>(tokens.size()), 256>>>(from, stride, width, tokens.data(), rows.data());
    SPARSEATTN_TEST_CUDA(cudaGetLastError());
    return rows.host();
}

/// Shared memory of a reference kernel that wants `bytes`; 0 when the device has less, and `scratch` is to be used.
template <class Function>
int reference_shared_memory(const Function& kernel, std::size_t bytes) {
    bytes = (bytes + 15) / 16 * 16;          // the compiler reads doubles in pairs, past an odd end too
    constexpr std::size_t most = 160 << 10;  // of every device from compute capability 8.0 on, but for a few small ones
    if (bytes > most) return 0;
    SPARSEATTN_TEST_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    return static_cast<int>(bytes);
}

/// How far results are from the reference.
struct Comparison {
    double worst = 0;      // |out - ref| over the bound of bf16 rounding (of out and of the probabilities)
    double relative = 0;   // ||out - ref|| / ||ref||
    double lse_error = 0;  // largest |lse - ref|
    std::string first;     // the first value outside its bound
    bool ok() const { return first.empty(); }
};

/// Compares out and lse of the given queries with the reference. The bound on out is that of its rounding to bf16
/// (2^-8) plus that of rounding each probability (2^-8 of the weighted mean of |value|), and 2 % for everything in
/// fp32.
inline Comparison compare(const HostProblem& p, const DeviceProblem& device, const std::vector<std::int32_t>& tokens) {
    Comparison result;
    if (tokens.empty()) return result;
    const std::size_t rows = tokens.size() * p.query_heads;
    Buffer<std::int32_t> token_buffer(tokens);
    Buffer<double> out(rows * p.head_dim), magnitude(rows * p.head_dim), lse(rows);
    int longest = 1;
    for (std::size_t s = 0; s + 1 < p.key_offsets.size(); ++s) {
        longest = std::max(longest, p.key_offsets[s + 1] - p.key_offsets[s]);
    }
    const int bytes = reference_shared_memory(reference_forward, longest * sizeof(double));
    const Buffer<double> scratch(bytes > 0 ? 0 : rows * longest);
    reference_forward<<<dim3(static_cast<unsigned>(tokens.size()), p.query_heads), 256, bytes>>>(
        device.params, token_buffer.data(), out.data(), magnitude.data(), lse.data(), scratch.data(), longest);
    SPARSEATTN_TEST_CUDA(cudaGetLastError());
    SPARSEATTN_TEST_CUDA(cudaDeviceSynchronize());
    const auto want = out.host(), scale = magnitude.host(), want_lse = lse.host();
    const auto have = rows_of(device.out.data(), device.params.out.token_stride,
                              static_cast<std::int64_t>(p.query_heads) * p.head_dim, token_buffer);
    const auto have_lse = rows_of(device.lse.data(), p.query_heads, p.query_heads, token_buffer);
    double error2 = 0, norm2 = 0;
    char text[200];
    for (std::size_t x = 0; x < tokens.size(); ++x) {
        for (int head = 0; head < p.query_heads; ++head) {
            const std::size_t row = x * p.query_heads + head;
            const double got_lse = have_lse[row];
            const bool none = std::isinf(want_lse[row]);
            const double lse_error = none ? (got_lse == want_lse[row] ? 0 : 1) : std::fabs(got_lse - want_lse[row]);
            if (!(lse_error <= result.lse_error)) result.lse_error = lse_error;
            if (!(lse_error <= 2e-5 + 2e-6 * std::fabs(none ? 0 : want_lse[row])) && result.first.empty()) {
                std::snprintf(text, sizeof text, "lse token %d head %d is %.8g, reference %.8g", tokens[x], head,
                              got_lse, want_lse[row]);
                result.first = text;
            }
            for (int c = 0; c < p.head_dim; ++c) {
                const double reference = want[row * p.head_dim + c];
                const double got = __bfloat162float(have[row * p.head_dim + c]);
                const double error = std::fabs(got - reference);
                const double bound = 1.02 * 0x1p-8 * (std::fabs(reference) + scale[row * p.head_dim + c]) + 1e-30;
                if (!(error / bound <= result.worst)) result.worst = error / bound;
                error2 += error * error;
                norm2 += reference * reference;
                if (!(error <= bound) && result.first.empty()) {
                    std::snprintf(text, sizeof text,
                                  "out token %d head %d channel %d is %.6g, reference %.6g, bound %.2g", tokens[x],
                                  head, c, got, reference, bound);
                    result.first = text;
                }
            }
        }
    }
    result.relative = norm2 > 0 ? std::sqrt(error2 / norm2) : 0;
    if (norm2 == 0 && result.first.empty()) result.first = "the reference is zero: nothing was compared";
    return result;
}

}  // namespace sparseattn::cuda::testing
