#pragma once
/// \file
/// Selection problems on the device, and an fp64 oracle of XAttention's masses.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/select.hpp"
#include "tests/cuda/problem.cuh"

namespace sparseattn::cuda::testing {

struct SelectCase {
    const char* name;
    std::vector<int> queries, keys;
    int query_heads, key_heads, head_dim, block, stride;
    bool causal = true, reversed = true;
    bool fused = false;              // query and key in one buffer
    bool every_other = false;        // only heads 0, 2, 4, ... are estimated
    bool force = true;               // sink and recent
    std::vector<double> thresholds;  // in turn over the estimated heads
    float spread = 4;
};

/// Inputs, outputs and workspace of one case. Lists past the estimated ones: one, empty.
struct SelectProblem {
    HostProblem host;
    SelectCase shape;
    std::vector<std::int32_t> heads;
    std::vector<double> thresholds;
    Buffer<__nv_bfloat16> tokens, key_tokens;
    Buffer<std::int32_t> query_offsets, key_offsets, row_begin, row_sequence, columns;
    Buffer<std::int64_t> offsets;
    Buffer<float> masses;
    Buffer<unsigned char> workspace;
    XAttentionParams params;

    SelectProblem(const SelectCase& c, std::uint32_t seed) : shape(c) {
        host.block = c.block;
        host.head_dim = c.head_dim;
        for (std::size_t s = 0; s < c.queries.size(); ++s) add_sequence(host, c.queries[s], c.keys[s]);
        for (int h = 0; h < c.query_heads; h += c.every_other ? 2 : 1) {
            heads.push_back(h);
            thresholds.push_back(c.thresholds[heads.size() % c.thresholds.size()]);
        }
        query_offsets = Buffer<std::int32_t>(host.query_offsets);
        key_offsets = Buffer<std::int32_t>(host.key_offsets);
        row_begin = Buffer<std::int32_t>(host.row_begin);
        row_sequence = Buffer<std::int32_t>(host.row_sequence);
        make_tokens(seed);
        std::int64_t room = 0;
        for (std::size_t s = 0; s < c.queries.size(); ++s) {
            room += std::int64_t{host.row_begin[s + 1] - host.row_begin[s]} * ((c.keys[s] + c.block - 1) / c.block);
        }
        columns = Buffer<std::int32_t>(room * heads.size() + 1);
        offsets = Buffer<std::int64_t>((heads.size() + 1) * host.rows() + 1);
        for (const int keys : c.keys)
            params.mass_stride = std::max<std::int64_t>(params.mass_stride, (keys + c.block - 1) / c.block);
        masses = Buffer<float>(heads.size() * host.rows() * params.mass_stride + 1);
        set_params();
        workspace = Buffer<unsigned char>(xattention_workspace(params));
        params.workspace = workspace.data();
        params.workspace_bytes = workspace.size();
    }
    int lists() const { return static_cast<int>(heads.size()) + 1; }
    void poison() {
        workspace.fill(0xff);
        offsets.fill(0xff);
        columns.fill(0xff);
        masses.fill(0xff);
    }

  private:
    void make_tokens(std::uint32_t seed) {
        const std::int64_t d = shape.head_dim, width = shape.fused ? (shape.query_heads + shape.key_heads) * d : 0;
        const std::int64_t query_width = shape.fused ? width : shape.query_heads * d;
        const std::int64_t key_width = shape.fused ? width : shape.key_heads * d;
        tokens = Buffer<__nv_bfloat16>(host.queries() * query_width + 8);
        key_tokens = Buffer<__nv_bfloat16>(host.keys() * key_width + 8);
        fill_random<<<256, 256>>>(tokens.data(), tokens.size(), seed, shape.spread);
        fill_random<<<256, 256>>>(key_tokens.data(), key_tokens.size(), seed + 1, shape.spread);
        SPARSEATTN_TEST_CUDA(cudaGetLastError());
        const bool one = shape.fused && host.queries() == host.keys();
        params.query = {tokens.data(), query_width, d};
        params.key = {one ? tokens.data() + shape.query_heads * d : key_tokens.data(), key_width, d};
    }
    void set_params() {
        params.query_heads = shape.query_heads;
        params.key_heads = shape.key_heads;
        params.head_dim = shape.head_dim;
        params.block = shape.block;
        params.stride = shape.stride;
        params.scale = static_cast<float>(1 / (std::sqrt(static_cast<double>(shape.head_dim)) * shape.stride));
        params.causal = shape.causal;
        params.reversed = shape.reversed;
        params.keep_sink = params.keep_recent = shape.force;
        params.batch = {static_cast<int>(shape.queries.size()), host.queries(), host.keys(), query_offsets.data(),
                        key_offsets.data()};
        params.host_query_offsets = host.query_offsets.data();
        params.host_key_offsets = host.key_offsets.data();
        params.estimated = static_cast<int>(heads.size());
        params.heads = heads.data();
        params.thresholds = thresholds.data();
        params.target = {host.rows(), row_begin.data(), row_sequence.data(), lists(), offsets.data(), columns.data()};
        params.masses = masses.data();
    }
};

/// scores[i, j] in fp64 for one head of one sequence; tokens past the sequence's end count as zero.
static __global__ void strided_scores(Heads query, Heads key, int head, int key_head, int query_begin, int queries,
                                      int key_begin, int keys, int stride, bool reversed, int head_dim, double* scores,
                                      int rows, int columns) {
    for (std::int64_t item = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; item < std::int64_t{rows} * columns;
         item += std::int64_t{gridDim.x} * blockDim.x) {
        const int i = static_cast<int>(item / columns), j = static_cast<int>(item % columns);
        double sum = 0;
        for (int s = 0; s < stride; ++s) {
            const int q = i * stride + (reversed ? stride - 1 - s : s), k = j * stride + s;
            if (q >= queries || k >= keys) continue;
            const auto* a = static_cast<const __nv_bfloat16*>(query.data) + (query_begin + q) * query.token_stride +
                            head * query.head_stride;
            const auto* b = static_cast<const __nv_bfloat16*>(key.data) + (key_begin + k) * key.token_stride +
                            key_head * key.head_stride;
            for (int c = 0; c < head_dim; ++c) {
                sum += static_cast<double>(__bfloat162float(a[c])) * static_cast<double>(__bfloat162float(b[c]));
            }
        }
        scores[item] = sum;
    }
}

/// Masses [rows of the sequence, blocks] of one head of one sequence.
inline std::vector<double> reference_masses(const SelectProblem& p, int head, int sequence) {
    const XAttentionParams& x = p.params;
    const int query_begin = p.host.query_offsets[sequence], queries = p.host.query_offsets[sequence + 1] - query_begin;
    const int key_begin = p.host.key_offsets[sequence], keys = p.host.key_offsets[sequence + 1] - key_begin;
    const int rows = (queries + x.stride - 1) / x.stride, columns = (keys + x.stride - 1) / x.stride;
    const int blocks = (keys + x.block - 1) / x.block, per_block = x.block / x.stride;
    std::vector<double> result(static_cast<std::size_t>((queries + x.block - 1) / x.block) * blocks, 0.0);
    if (rows == 0 || columns == 0) return result;
    Buffer<double> scores(static_cast<std::size_t>(rows) * columns);
    strided_scores<<<1024, 128>>>(x.query, x.key, head, head / (x.query_heads / x.key_heads), query_begin, queries,
                                  key_begin, keys, x.stride, x.reversed, x.head_dim, scores.data(), rows, columns);
    const std::vector<double> a = scores.host();
    for (int i = 0; i < rows; ++i) {
        const int last = std::min((i + 1) * x.stride, queries) + keys - queries;
        const int end = x.causal ? (last + x.stride - 1) / x.stride : columns;
        double top = -INFINITY, total = 0;
        for (int j = 0; j < end; ++j) top = std::max(top, a[static_cast<std::size_t>(i) * columns + j]);
        std::vector<double> sums(blocks, 0.0);
        for (int j = 0; j < end; ++j) {
            const double e = std::exp((a[static_cast<std::size_t>(i) * columns + j] - top) * x.scale);
            sums[j / per_block] += e;
            total += e;
        }
        for (int b = 0; b < blocks; ++b)
            result[static_cast<std::size_t>(i / per_block) * blocks + b] += sums[b] / total;
    }
    return result;
}

}  // namespace sparseattn::cuda::testing
