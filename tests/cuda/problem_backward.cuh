#pragma once
/// \file
/// Backward problems for the programs that check and time the CUDA kernels: the transposed lists, random dout, the
/// forward's results, and an fp64 reference on the device from the closed form, pair by pair.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/cuda/reference.cuh"

namespace sparseattn::cuda::testing {

/// The lists seen from the key blocks, or (`singles`) the single keys seen from the keys.
struct HostTransposed {
    std::vector<std::int64_t> offsets;
    std::vector<std::int32_t> rows;

    HostTransposed(const HostProblem& p, bool singles) {
        const auto& begin = singles ? p.key_offsets : p.key_block_begin;
        const auto& entry_offsets = singles ? p.single_offsets : p.offsets;
        const auto& entries = singles ? p.singles : p.columns;
        const std::size_t columns = static_cast<std::size_t>(begin.back());
        offsets.resize(p.lists * columns + 1);
        const auto each = [&](const auto& visit) {
            for (int list = 0; list < p.lists; ++list) {
                for (int row = 0; row < p.rows(); ++row) {
                    const int sequence = p.row_sequence[row];
                    const std::size_t entry = static_cast<std::size_t>(list) * p.rows() + row;
                    for (std::int64_t at = entry_offsets[entry]; at < entry_offsets[entry + 1]; ++at) {
                        visit(list * columns + begin[sequence] + entries[at], row - p.row_begin[sequence]);
                    }
                }
            }
        };
        each([&](std::size_t column, int) { ++offsets[column + 1]; });
        for (std::size_t i = 1; i < offsets.size(); ++i) offsets[i] += offsets[i - 1];
        rows.resize(static_cast<std::size_t>(offsets.back()));
        std::vector<std::int64_t> next(offsets.begin(), offsets.end() - 1);
        each([&](std::size_t column, int row) { rows[static_cast<std::size_t>(next[column]++)] = row; });
    }
};

/// What the reference needs of every (query, head): [tokens * Hq].
struct ReferenceRows {
    Buffer<double> lse, delta, absolute;  // absolute: sum over channels of |dout out|, the scale of delta's error
};

/// lse, delta and its scale of every query; one block of 256 threads each, shared memory n_k doubles.
static __global__ void reference_delta(BackwardParams p, const double* out, double* delta, double* absolute) {
    const std::int64_t token = blockIdx.x;
    const int head = blockIdx.y;
    if (threadIdx.x != 0) return;
    const auto* dout =
        static_cast<const __nv_bfloat16*>(p.dout.data) + token * p.dout.token_stride + head * p.dout.head_stride;
    const double* o = out + (token * p.query_heads + head) * p.head_dim;
    double sum = 0, size = 0;
    for (int c = 0; c < p.head_dim; ++c) {
        const double term = static_cast<double>(__bfloat162float(dout[c])) * o[c];
        sum += term;
        size += fabs(term);
    }
    delta[token * p.query_heads + head] = sum;
    absolute[token * p.query_heads + head] = size;
}

/// P, dS and the scale of dS's error of one (query, key) pair, times the head's weight.
struct Pair {
    double probability, dscore, error;
};
struct PairPlace {  // tokens in the packed batch, numbers in the sequence
    int sequence, i, j, head;
};
inline __device__ Pair reference_pair(const BackwardParams& p, const float* weights, const PairPlace& at,
                                      const double* lse, const double* delta, const double* absolute) {
    const int query_token = p.batch.query_offsets[at.sequence] + at.i;
    const int key_token = p.batch.key_offsets[at.sequence] + at.j;
    const int queries = p.batch.query_offsets[at.sequence + 1] - p.batch.query_offsets[at.sequence];
    const int keys = p.batch.key_offsets[at.sequence + 1] - p.batch.key_offsets[at.sequence];
    const TokenRule rule{queries, keys, p.layout.causal, p.layout.windows[at.head]};
    const std::int64_t entry = static_cast<std::int64_t>(p.layout.head_list[at.head]) * p.layout.rows +
                               p.layout.row_begin[at.sequence] + at.i / p.layout.block;
    bool kept =
        find(p.layout.columns, p.layout.offsets[entry], p.layout.offsets[entry + 1], at.j / p.layout.block) >= 0;
    if (!kept && p.layout.key_offsets != nullptr) {
        kept = find(p.layout.keys, p.layout.key_offsets[entry], p.layout.key_offsets[entry + 1], at.j) >= 0;
    }
    if (!kept || !rule.visible(at.i, at.j)) return {0, 0, 0};
    const int key_head = at.head / (p.query_heads / p.key_heads);
    const auto vector = [](const Heads& array, std::int64_t token, int head) {
        return static_cast<const __nv_bfloat16*>(array.data) + token * array.token_stride + head * array.head_stride;
    };
    const auto* q = vector(p.query, query_token, at.head);
    const auto* k = vector(p.key, key_token, key_head);
    const auto* v = vector(p.value, key_token, key_head);
    const auto* o = vector(p.dout, query_token, at.head);
    double score = 0, dprobability = 0;
    for (int c = 0; c < p.head_dim; ++c) {
        score += static_cast<double>(__bfloat162float(q[c])) * __bfloat162float(k[c]);
        dprobability += static_cast<double>(__bfloat162float(o[c])) * __bfloat162float(v[c]);
    }
    const std::int64_t row = static_cast<std::int64_t>(query_token) * p.query_heads + at.head;
    const double probability = weights[at.head] * exp(score * p.scale - lse[row]);
    const double dscore = probability * (dprobability - delta[row]);
    return {probability, dscore, 2 * fabs(dscore) + probability * absolute[row]};
}

/// The tokens that a reference kernel's blocks (x) stand for, and memory for their terms.
struct Sample {
    const std::int32_t* tokens = nullptr;  // packed numbers; null: token x
    double* scratch = nullptr;             // [x, y, size]; null: shared memory
    std::int64_t size = 0;

    __device__ int token() const { return tokens == nullptr ? static_cast<int>(blockIdx.x) : tokens[blockIdx.x]; }
    __device__ double* terms(double* shared) const {
        const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * gridDim.y + blockIdx.y;
        return scratch == nullptr ? shared : scratch + place * size;
    }
};

/// dQ [x, y, d] of query x of the sample and head y. 2 n_k terms.
static __global__ void reference_dquery(BackwardParams p, const float* weights, const double* lse, const double* delta,
                                        const double* absolute, double* dq, double* bound, Sample sample) {
    extern __shared__ double shared_terms[];
    double* terms = sample.terms(shared_terms);
    const int token = sample.token(), head = blockIdx.y, key_head = head / (p.query_heads / p.key_heads);
    int sequence = 0;
    while (p.batch.query_offsets[sequence + 1] <= token) ++sequence;
    const int i = token - p.batch.query_offsets[sequence];
    const int key_token = p.batch.key_offsets[sequence], keys = p.batch.key_offsets[sequence + 1] - key_token;
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        const Pair pair = reference_pair(p, weights, {sequence, i, j, head}, lse, delta, absolute);
        terms[2 * j] = pair.dscore;
        terms[2 * j + 1] = pair.error;
    }
    __syncthreads();
    const auto* k = static_cast<const __nv_bfloat16*>(p.key.data) + key_head * p.key.head_stride;
    for (int c = threadIdx.x; c < p.head_dim; c += blockDim.x) {
        double sum = 0, size = 0;
        for (int j = 0; j < keys; ++j) {
            const double value = __bfloat162float(k[(key_token + j) * p.key.token_stride + c]);
            sum += terms[2 * j] * value;
            size += terms[2 * j + 1] * fabs(value);
        }
        const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * p.query_heads + head) * p.head_dim + c;
        dq[at] = sum * p.scale;
        bound[at] = size * p.scale;
    }
}

/// dK and dV [x, y, d] of key x of the sample and key head y. 3 n_q terms.
static __global__ void reference_dkeys(BackwardParams p, const float* weights, const double* lse, const double* delta,
                                       const double* absolute, double* dk, double* dk_bound, double* dv,
                                       double* dv_bound, Sample sample) {
    extern __shared__ double shared_terms[];
    double* terms = sample.terms(shared_terms);
    const int token = sample.token(), key_head = blockIdx.y, group = p.query_heads / p.key_heads;
    int sequence = 0;
    while (p.batch.key_offsets[sequence + 1] <= token) ++sequence;
    const int j = token - p.batch.key_offsets[sequence];
    const int query_token = p.batch.query_offsets[sequence];
    const int queries = p.batch.query_offsets[sequence + 1] - query_token;
    double key_sum = 0, key_size = 0, value_sum = 0, value_size = 0;
    const int c = threadIdx.x;
    for (int head = key_head * group; head < (key_head + 1) * group; ++head) {
        __syncthreads();
        for (int i = threadIdx.x; i < queries; i += blockDim.x) {
            const Pair pair = reference_pair(p, weights, {sequence, i, j, head}, lse, delta, absolute);
            terms[3 * i] = pair.probability;
            terms[3 * i + 1] = pair.dscore;
            terms[3 * i + 2] = pair.error;
        }
        __syncthreads();
        if (c >= p.head_dim) continue;
        const auto* q = static_cast<const __nv_bfloat16*>(p.query.data) + head * p.query.head_stride;
        const auto* o = static_cast<const __nv_bfloat16*>(p.dout.data) + head * p.dout.head_stride;
        for (int i = 0; i < queries; ++i) {
            if (terms[3 * i] == 0) continue;
            const double query = __bfloat162float(q[(query_token + i) * p.query.token_stride + c]);
            const double dout = __bfloat162float(o[(query_token + i) * p.dout.token_stride + c]);
            value_sum += terms[3 * i] * dout;
            value_size += terms[3 * i] * fabs(dout);
            key_sum += terms[3 * i + 1] * query;
            key_size += terms[3 * i + 2] * fabs(query);
        }
    }
    if (c >= p.head_dim) return;
    const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * p.key_heads + key_head) * p.head_dim + c;
    dk[at] = key_sum * p.scale;
    dk_bound[at] = key_size * p.scale;
    dv[at] = value_sum;
    dv_bound[at] = value_size;
}

/// A problem with everything that the backward pass takes, on the device. Gradients have `gap` unused elements after
/// each token and a whole token after the last, to see stray writes.
struct BackwardProblem {
    const HostProblem& host;
    DeviceProblem forward;
    Buffer<__nv_bfloat16> dout, dq, dk, dv;
    Buffer<std::int64_t> offsets, single_offsets;
    Buffer<std::int32_t> rows, single_rows;
    Buffer<unsigned char> workspace;
    BackwardParams params;

    BackwardProblem(const HostProblem& p, bool fused, int gap, std::uint32_t seed, bool deterministic)
        : host(p), forward(p, fused, gap - gap % 8, seed) {
        static_cast<Problem&>(params) = forward.params;
        params.out = forward.params.out;
        params.lse = forward.params.lse;
        params.deterministic = deterministic;
        const HostTransposed transposed(p, false);
        offsets = Buffer<std::int64_t>(transposed.offsets);
        rows = Buffer<std::int32_t>(transposed.rows);
        params.transposed = {offsets.data(), rows.data(), nullptr, nullptr};
        if (!p.single_offsets.empty()) {
            const HostTransposed singles(p, true);
            single_offsets = Buffer<std::int64_t>(singles.offsets);
            single_rows = Buffer<std::int32_t>(singles.rows);
            params.transposed.key_offsets = single_offsets.data();
            params.transposed.key_rows = single_rows.data();
        }
        const auto heads = [&](Buffer<__nv_bfloat16>& buffer, int tokens, int count) {
            const std::int64_t stride = static_cast<std::int64_t>(count) * p.head_dim + gap;
            buffer = Buffer<__nv_bfloat16>(static_cast<std::size_t>((tokens + 1) * stride));
            return Heads{buffer.data(), stride, p.head_dim};
        };
        params.dq = heads(dq, p.queries(), p.query_heads);
        params.dk = heads(dk, p.keys(), p.key_heads);
        params.dv = heads(dv, p.keys(), p.key_heads);
        const std::int64_t stride = static_cast<std::int64_t>(p.query_heads) * p.head_dim;
        dout = Buffer<__nv_bfloat16>(static_cast<std::size_t>((p.queries() + not_numbers) * stride));
        dout.fill(0xff);
        if (p.queries() > 0) fill_random<<<1024, 256>>>(dout.data(), p.queries() * stride, seed * 5 + 3, 1.1f);
        params.dout = {dout.data(), stride, p.head_dim};
        workspace = Buffer<unsigned char>(backward_workspace(params));
        workspace.fill(0xff);
        params.workspace = workspace.data();
        params.workspace_bytes = workspace.size();
        SPARSEATTN_TEST_CUDA(cudaGetLastError());
    }
    void poison() {
        dq.fill(0xff);
        dk.fill(0xff);
        dv.fill(0xff);
    }
};

/// One gradient beside its reference; tokens [skip_begin, skip_end) are not looked at.
struct GradientError {
    double worst = 0, relative = 0;  // of the bound; of the norm
    double norm = 0;                 // of the reference
    std::string first;
};
inline GradientError compare_gradient(const char* name, const std::vector<__nv_bfloat16>& have, const Heads& array,
                                      int tokens, int heads, int head_dim, const std::vector<double>& want,
                                      const std::vector<double>& scale, std::size_t skip_begin = 0,
                                      std::size_t skip_end = 0) {
    GradientError result;
    double error2 = 0, norm2 = 0;
    char text[200];
    const std::size_t used = static_cast<std::size_t>(heads) * head_dim, stride = array.token_stride;
    for (std::size_t token = 0; token <= static_cast<std::size_t>(tokens); ++token) {
        for (std::size_t i = 0; i < stride && (token < skip_begin || token >= skip_end); ++i) {
            const double got = __bfloat162float(have[token * stride + i]);
            if (token == static_cast<std::size_t>(tokens) || i >= used) {
                if (!std::isnan(got) && result.first.empty()) result.first = std::string(name) + ": stray write";
                continue;
            }
            const double reference = want[token * used + i];
            const double error = std::fabs(got - reference);
            const double bound = 1.02 * 0x1p-8 * (std::fabs(reference) + scale[token * used + i]) + 1e-6;
            if (!(error / bound <= result.worst)) result.worst = error / bound;
            error2 += error * error;
            norm2 += reference * reference;
            if (!(error <= bound) && result.first.empty()) {
                std::snprintf(text, sizeof text,
                              "%s token %zu head %zu channel %zu is %.6g, reference %.6g, bound %.2g", name, token,
                              i / head_dim, i % head_dim, got, reference, bound);
                result.first = text;
            }
        }
    }
    result.norm = std::sqrt(norm2);
    result.relative = std::sqrt(error2) / (norm2 > 0 ? result.norm : 1);
    return result;
}

/// The reference of a whole problem, with each head's probabilities times a weight (default 1). Writes the forward's
/// results, rounded, where the problem keeps them.
struct BackwardReference {
    std::vector<double> dq, dq_scale, dk, dk_scale, dv, dv_scale;
    std::vector<double> delta, delta_scale;  // [T_q, Hq]

    explicit BackwardReference(const BackwardProblem& problem, std::vector<float> weight_values = {}) {
        const HostProblem& p = problem.host;
        weight_values.resize(static_cast<std::size_t>(p.query_heads), 1.0f);
        const Buffer<float> weights(weight_values);
        const std::size_t rows = static_cast<std::size_t>(p.queries()) * p.query_heads;
        const std::size_t key_rows = static_cast<std::size_t>(p.keys()) * p.key_heads;
        Buffer<double> out(rows * p.head_dim), magnitude(rows * p.head_dim), lse(rows), delta_rows(rows),
            absolute(rows);
        int longest = 1;
        for (std::size_t s = 0; s + 1 < p.key_offsets.size(); ++s) {
            longest = std::max(
                {longest, p.key_offsets[s + 1] - p.key_offsets[s], p.query_offsets[s + 1] - p.query_offsets[s]});
        }
        const int bytes = 3 * longest * static_cast<int>(sizeof(double));
        for (const void* kernel :
             {reinterpret_cast<const void*>(reference_forward), reinterpret_cast<const void*>(reference_dquery),
              reinterpret_cast<const void*>(reference_dkeys)}) {
            SPARSEATTN_TEST_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
        }
        Buffer<double> a(rows * p.head_dim), b(rows * p.head_dim), c(key_rows * p.head_dim), d(key_rows * p.head_dim),
            e(key_rows * p.head_dim), f(key_rows * p.head_dim);
        if (p.queries() > 0) {
            std::vector<std::int32_t> tokens(static_cast<std::size_t>(p.queries()));
            for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i);
            Buffer<std::int32_t> token_buffer(tokens);
            const dim3 grid(static_cast<unsigned>(p.queries()), p.query_heads);
            reference_forward<<<grid, 256, bytes>>>(problem.forward.params, token_buffer.data(), out.data(),
                                                    magnitude.data(), lse.data(), nullptr, 0);
            SPARSEATTN_TEST_CUDA(cudaGetLastError());
            store_forward(problem, out.host(), lse.host());
            reference_delta<<<grid, 32>>>(problem.params, out.data(), delta_rows.data(), absolute.data());
            reference_dquery<<<grid, 256, bytes>>>(problem.params, weights.data(), lse.data(), delta_rows.data(),
                                                   absolute.data(), a.data(), b.data(), Sample{});
            SPARSEATTN_TEST_CUDA(cudaGetLastError());
        }
        if (p.keys() > 0) {
            reference_dkeys<<<dim3(static_cast<unsigned>(p.keys()), p.key_heads), 256, bytes>>>(
                problem.params, weights.data(), lse.data(), delta_rows.data(), absolute.data(), c.data(), d.data(),
                e.data(), f.data(), Sample{});
            SPARSEATTN_TEST_CUDA(cudaGetLastError());
        }
        SPARSEATTN_TEST_CUDA(cudaDeviceSynchronize());
        dq = a.host(), dq_scale = b.host(), dk = c.host(), dk_scale = d.host(), dv = e.host(), dv_scale = f.host();
        delta = delta_rows.host(), delta_scale = absolute.host();
    }

  private:
    static void store_forward(const BackwardProblem& problem, const std::vector<double>& out,
                              const std::vector<double>& lse) {
        const HostProblem& p = problem.host;
        const std::size_t stride = problem.params.out.token_stride, used = out.size() / p.queries();
        std::vector<__nv_bfloat16> rounded(problem.forward.out.size());
        std::vector<float> rounded_lse(problem.forward.lse.size());
        for (std::size_t i = 0; i < out.size(); ++i) {
            rounded[i / used * stride + i % used] = __float2bfloat16(static_cast<float>(out[i]));
        }
        for (std::size_t i = 0; i < lse.size(); ++i) rounded_lse[i] = static_cast<float>(lse[i]);
        SPARSEATTN_TEST_CUDA(
            cudaMemcpy(problem.forward.out.data(), rounded.data(), rounded.size() * 2, cudaMemcpyHostToDevice));
        SPARSEATTN_TEST_CUDA(
            cudaMemcpy(problem.forward.lse.data(), rounded_lse.data(), rounded_lse.size() * 4, cudaMemcpyHostToDevice));
    }
};

}  // namespace sparseattn::cuda::testing
