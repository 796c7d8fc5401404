#pragma once
/// \file
/// Gated backward problems: two backward problems with the same tokens and their own lists, as the branches of one
/// call, and the reference put together from theirs.

#include <utility>

#include "tests/cuda/problem_backward.cuh"

namespace sparseattn::cuda::testing {

/// Gradients go to those of `full`.
struct GatedProblem {
    BackwardProblem full, sparse;
    std::vector<float> gates;
    Buffer<float> gate, dgate;
    Buffer<unsigned char> workspace;
    GatedBackwardParams params;

    GatedProblem(const HostProblem& full_host, const HostProblem& sparse_host, std::vector<float> values, bool fused,
                 int gap, std::uint32_t seed, bool deterministic)
        : full(full_host, fused, gap, seed, deterministic),
          sparse(sparse_host, fused, gap, seed, deterministic),
          gates(std::move(values)),
          gate(gates),
          dgate(gates.size()) {
        static_cast<Problem&>(params) = full.params;
        params.transposed = full.params.transposed;
        params.sparse = sparse.params.layout;
        params.sparse_transposed = sparse.params.transposed;
        params.gate = gate.data();
        params.full_out = full.params.out;
        params.sparse_out = sparse.params.out;
        params.dout = full.params.dout;
        params.full_lse = full.params.lse;
        params.sparse_lse = sparse.params.lse;
        params.dq = full.params.dq;
        params.dk = full.params.dk;
        params.dv = full.params.dv;
        params.dgate = dgate.data();
        params.deterministic = deterministic;
        workspace = Buffer<unsigned char>(gated_backward_workspace(params));
        workspace.fill(0xff);
        params.workspace = workspace.data();
        params.workspace_bytes = workspace.size();
    }
    float weight(int branch, int head) const { return branch == 0 ? gates[head] : 1 - gates[head]; }

    /// Makes what was saved of branches without weight NaN: nothing may read it.
    void poison_closed_branches() {
        for (const int branch : {0, 1}) {
            BackwardProblem& problem = branch == 0 ? full : sparse;
            const HostProblem& p = problem.host;
            auto out = problem.forward.out.host();
            auto lse = problem.forward.lse.host();
            const std::size_t stride = problem.params.out.token_stride;
            for (int head = 0; head < p.query_heads; ++head) {
                if (weight(branch, head) != 0) continue;
                for (int token = 0; token < p.queries(); ++token) {
                    lse[static_cast<std::size_t>(token) * p.query_heads + head] = NAN;
                    for (int c = 0; c < p.head_dim; ++c) out[token * stride + head * p.head_dim + c] = NAN;
                }
            }
            problem.forward.out = Buffer<__nv_bfloat16>(out);
            problem.forward.lse = Buffer<float>(lse);
        }
        params.full_out.data = full.forward.out.data();
        params.sparse_out.data = sparse.forward.out.data();
        params.full_lse.data = full.forward.lse.data();
        params.sparse_lse.data = sparse.forward.lse.data();
    }
};

/// The weighted sum of the branches' references. Writes the forward's results where the problem keeps them.
struct GatedReference {
    BackwardReference sum;  // its gradients and their scales
    std::vector<double> dgate, dgate_scale;

    explicit GatedReference(const GatedProblem& problem) : sum(problem.full, weights(problem, 0)) {
        const BackwardReference sparse(problem.sparse, weights(problem, 1));
        add(sum.dq, sparse.dq), add(sum.dq_scale, sparse.dq_scale);
        add(sum.dk, sparse.dk), add(sum.dk_scale, sparse.dk_scale);
        add(sum.dv, sparse.dv), add(sum.dv_scale, sparse.dv_scale);
        const std::size_t heads = problem.gates.size();
        dgate.assign(heads, 0), dgate_scale.assign(heads, 0);
        for (std::size_t i = 0; i < sum.delta.size(); ++i) {
            const int head = static_cast<int>(i % heads);
            if (problem.weight(0, head) == 0 || problem.weight(1, head) == 0) continue;
            dgate[head] += sum.delta[i] - sparse.delta[i];
            dgate_scale[head] += sum.delta_scale[i] + sparse.delta_scale[i];
        }
    }

    /// What is wrong with a dgate; empty: nothing. out is kept in bf16.
    std::string compare(const std::vector<float>& have) const {
        for (std::size_t head = 0; head < have.size(); ++head) {
            const double bound = 1.02 * 0x1p-9 * dgate_scale[head];
            if (std::fabs(have[head] - dgate[head]) <= bound) continue;
            char text[120];
            std::snprintf(text, sizeof text, "dgate %zu is %.6g, reference %.6g, bound %.2g", head, have[head],
                          dgate[head], bound);
            return text;
        }
        return "";
    }

  private:
    static std::vector<float> weights(const GatedProblem& problem, int branch) {
        std::vector<float> result;
        for (int head = 0; head < problem.full.host.query_heads; ++head) {
            result.push_back(problem.weight(branch, head));
        }
        return result;
    }
    static void add(std::vector<double>& sum, const std::vector<double>& other) {
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
    }
};

}  // namespace sparseattn::cuda::testing
