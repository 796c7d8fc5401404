#pragma once
/// \file
/// The gradients of a few tokens against fp64, for problems too long to check whole. lse and out are those that the
/// forward kernel stored (which is checked by itself): they are what the backward pass starts from.

#include "tests/cuda/problem_backward.cuh"

namespace sparseattn::cuda::testing {

/// lse, dout . out and its scale of every query and head, from what is stored.
static __global__ void stored_rows(BackwardParams p, double* lse, double* delta, double* absolute) {
    const std::int64_t count = static_cast<std::int64_t>(p.batch.queries) * p.query_heads;
    for (std::int64_t row = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; row < count;
         row += std::int64_t{gridDim.x} * blockDim.x) {
        const std::int64_t token = row / p.query_heads, head = row % p.query_heads;
        const auto* out =
            static_cast<const __nv_bfloat16*>(p.out.data) + token * p.out.token_stride + head * p.out.head_stride;
        const auto* dout =
            static_cast<const __nv_bfloat16*>(p.dout.data) + token * p.dout.token_stride + head * p.dout.head_stride;
        double sum = 0, size = 0;
        for (int c = 0; c < p.head_dim; ++c) {
            const double term = static_cast<double>(__bfloat162float(dout[c])) * __bfloat162float(out[c]);
            sum += term;
            size += fabs(term);
        }
        lse[row] = p.lse.data[token * p.lse.token_stride + head * p.lse.head_stride];
        delta[row] = sum;
        absolute[row] = size;
    }
}

/// The first thing wrong with dq, dk or dv of the given tokens (packed numbers, the same for queries and keys), or "".
inline std::string wrong_gradient(const BackwardProblem& problem, const std::vector<std::int32_t>& tokens) {
    const HostProblem& p = problem.host;
    const std::size_t rows = static_cast<std::size_t>(p.queries()) * p.query_heads;
    const auto count = static_cast<unsigned>(tokens.size());
    Buffer<double> lse(rows), delta(rows), absolute(rows);
    stored_rows<<<1024, 256>>>(problem.params, lse.data(), delta.data(), absolute.data());
    SPARSEATTN_TEST_CUDA(cudaGetLastError());

    std::int64_t longest = 1;
    for (std::size_t s = 0; s + 1 < p.key_offsets.size(); ++s) {
        longest = std::max<std::int64_t>(
            {longest, p.key_offsets[s + 1] - p.key_offsets[s], p.query_offsets[s + 1] - p.query_offsets[s]});
    }
    const Buffer<std::int32_t> token_buffer(tokens);
    const Buffer<float> weights(std::vector<float>(static_cast<std::size_t>(p.query_heads), 1.0f));
    const Buffer<double> scratch(count * static_cast<std::size_t>(p.query_heads) * 3 * longest);
    const Sample sample{token_buffer.data(), scratch.data(), 3 * longest};
    const std::size_t query_size = static_cast<std::size_t>(count) * p.query_heads * p.head_dim;
    const std::size_t key_size = static_cast<std::size_t>(count) * p.key_heads * p.head_dim;
    Buffer<double> dq(query_size), dq_scale(query_size);
    Buffer<double> dk(key_size), dk_scale(key_size), dv(key_size), dv_scale(key_size);
    reference_dquery<<<dim3(count, p.query_heads), 256>>>(problem.params, weights.data(), lse.data(), delta.data(),
                                                          absolute.data(), dq.data(), dq_scale.data(), sample);
    reference_dkeys<<<dim3(count, p.key_heads), 256>>>(problem.params, weights.data(), lse.data(), delta.data(),
                                                       absolute.data(), dk.data(), dk_scale.data(), dv.data(),
                                                       dv_scale.data(), sample);
    SPARSEATTN_TEST_CUDA(cudaGetLastError());

    const auto check = [&](const char* name, const Heads& array, int heads, const Buffer<double>& want,
                           const Buffer<double>& scale) {
        const std::int64_t width = static_cast<std::int64_t>(heads) * p.head_dim;
        auto have = rows_of(static_cast<const __nv_bfloat16*>(array.data), array.token_stride, width, token_buffer);
        have.resize(have.size() + static_cast<std::size_t>(width), __float2bfloat16(NAN));  // no stray write here
        const Heads packed{nullptr, width, p.head_dim};
        return compare_gradient(name, have, packed, static_cast<int>(count), heads, p.head_dim, want.host(),
                                scale.host())
            .first;
    };
    for (const std::string& wrong : {check("dq", problem.params.dq, p.query_heads, dq, dq_scale),
                                     check("dk", problem.params.dk, p.key_heads, dk, dk_scale),
                                     check("dv", problem.params.dv, p.key_heads, dv, dv_scale)}) {
        if (!wrong.empty()) return wrong;
    }
    return "";
}

}  // namespace sparseattn::cuda::testing
