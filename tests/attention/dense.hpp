#pragma once
// Attention written down a second time, independently of the library: an explicit mask over all pairs of the packed
// batch and plain loops. With R = double it checks the reference; with R = bf16 every intermediate result is rounded as
// a framework computing in that type would, which says how much error the type itself brings.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn::testing {

/// keep[(h * queries + i) * keys + j] over packed token numbers.
using Mask = std::vector<char>;

/// The mask that host lists, windows and causality stand for, by asking every pair.
template <class Mem>
Mask expand_mask(const Sequences<Mem>& sequences, int block, bool causal, const HostLists& lists,
                 const std::vector<std::int32_t>& head_list, const std::vector<Window>& windows) {
    const std::int64_t queries = sequences.queries(), keys = sequences.keys();
    const auto has = [](const std::vector<std::int32_t>& all, std::int64_t from, std::int64_t to, int value) {
        return std::find(all.begin() + from, all.begin() + to, value) != all.begin() + to;
    };
    std::int64_t rows = 0;
    std::vector<std::int64_t> first_row;
    for (int s = 0; s < sequences.count(); ++s) {
        first_row.push_back(rows);
        rows += (sequences.query_length(s) + block - 1) / block;
    }
    Mask keep(head_list.size() * queries * keys, 0);
    for (std::size_t h = 0; h < head_list.size(); ++h) {
        for (int s = 0; s < sequences.count(); ++s) {
            const std::int64_t n_q = sequences.query_length(s), n_k = sequences.key_length(s);
            for (std::int64_t i = 0; i < n_q; ++i) {
                const std::int64_t row = head_list[h] * rows + first_row[s] + i / block, own = i + n_k - n_q;
                for (std::int64_t j = 0; j < n_k; ++j) {
                    const bool listed =
                        has(lists.columns, lists.offsets[row], lists.offsets[row + 1], static_cast<int>(j / block)) ||
                        (!lists.keys.empty() &&
                         has(lists.keys, lists.key_offsets[row], lists.key_offsets[row + 1], static_cast<int>(j)));
                    const bool windowed =
                        j < windows[h].sink || j > own - windows[h].local || i >= n_q - windows[h].dense_tail;
                    const std::int64_t at = (static_cast<std::int64_t>(h) * queries + sequences.query_offsets()[s] + i);
                    keep[at * keys + sequences.key_offsets()[s] + j] =
                        listed && windowed && (!causal || j <= own) ? 1 : 0;
                }
            }
        }
    }
    return keep;
}

/// Packed arrays [tokens, heads, head_dim], dense.
struct DenseProblem {
    std::int64_t queries, keys, heads, kv_heads, head_dim;
    double scale;
    std::vector<double> query, key, value, dout;
};
struct DenseResult {
    std::vector<double> out, lse, dquery, dkey, dvalue;
};

/// `weight`, one per head, multiplies dout; a head of weight 0 is left out (out 0, lse -inf).
template <class R>
DenseResult dense_attention(const DenseProblem& p, const Mask& keep, const std::vector<double>& weight) {
    const auto rounded = [](double x) { return static_cast<double>(R(x)); };
    const std::int64_t d = p.head_dim, group = p.heads / p.kv_heads;
    DenseResult r;
    r.out.assign(p.query.size(), 0.0);
    r.lse.assign(p.queries * p.heads, -std::numeric_limits<double>::infinity());
    r.dquery.assign(p.query.size(), 0.0);
    r.dkey.assign(p.key.size(), 0.0);
    r.dvalue.assign(p.key.size(), 0.0);
    const auto dot = [&](const double* a, const double* b) {
        double sum = 0;
        for (std::int64_t c = 0; c < d; ++c) sum += a[c] * b[c];
        return sum;
    };
    std::vector<double> s(p.keys), dp(p.keys);
    for (std::int64_t h = 0; h < p.heads; ++h) {
        for (std::int64_t i = 0; weight[h] != 0 && i < p.queries; ++i) {
            const char* kept = &keep[(h * p.queries + i) * p.keys];
            const std::int64_t q_at = (i * p.heads + h) * d;
            const auto kv_at = [&](std::int64_t j) { return (j * p.kv_heads + h / group) * d; };
            double sum = 0, largest = -std::numeric_limits<double>::infinity(), delta = 0;
            for (std::int64_t j = 0; j < p.keys; ++j) {
                if (!kept[j]) continue;
                s[j] = rounded(p.scale * dot(&p.query[q_at], &p.key[kv_at(j)]));
                largest = std::max(largest, s[j]);
            }
            if (std::isinf(largest)) continue;
            for (std::int64_t j = 0; j < p.keys; ++j) sum += kept[j] ? std::exp(s[j] - largest) : 0.0;
            r.lse[i * p.heads + h] = largest + std::log(sum);
            for (std::int64_t j = 0; j < p.keys; ++j) {
                if (!kept[j]) continue;
                s[j] = rounded(std::exp(s[j] - largest) / sum);
                dp[j] = rounded(weight[h] * dot(&p.dout[q_at], &p.value[kv_at(j)]));
                delta += s[j] * dp[j];
                for (std::int64_t c = 0; c < d; ++c) {
                    r.out[q_at + c] += s[j] * p.value[kv_at(j) + c];
                    r.dvalue[kv_at(j) + c] += s[j] * weight[h] * p.dout[q_at + c];
                }
            }
            for (std::int64_t j = 0; j < p.keys; ++j) {
                if (!kept[j]) continue;
                const double ds = rounded(s[j] * (dp[j] - delta));
                for (std::int64_t c = 0; c < d; ++c) {
                    r.dquery[q_at + c] += p.scale * ds * p.key[kv_at(j) + c];
                    r.dkey[kv_at(j) + c] += p.scale * ds * p.query[q_at + c];
                }
            }
        }
    }
    for (auto* all : {&r.out, &r.dquery, &r.dkey, &r.dvalue}) {
        for (double& x : *all) x = rounded(x);
    }
    return r;
}

/// Gated attention as the sum of two dense ones.
struct DenseGatedResult {
    DenseResult full, sparse, sum;
    std::vector<double> dgate;
};
template <class R>
DenseGatedResult dense_gated_attention(const DenseProblem& p, const Mask& full, const Mask& sparse,
                                       const std::vector<double>& gate) {
    DenseGatedResult r;
    std::vector<double> rest;
    for (const double z : gate) rest.push_back(1 - z);
    r.full = dense_attention<R>(p, full, gate);
    r.sparse = dense_attention<R>(p, sparse, rest);
    r.sum = r.full;
    r.dgate.assign(p.heads, 0.0);
    for (std::size_t e = 0; e < p.query.size(); ++e) {
        const std::size_t h = e / p.head_dim % p.heads;
        r.sum.out[e] = static_cast<double>(R(gate[h] * r.full.out[e] + rest[h] * r.sparse.out[e]));
        r.sum.dquery[e] = static_cast<double>(R(r.full.dquery[e] + r.sparse.dquery[e]));
        if (gate[h] != 0 && gate[h] != 1) r.dgate[h] += p.dout[e] * (r.full.out[e] - r.sparse.out[e]);
    }
    for (std::size_t e = 0; e < p.key.size(); ++e) {
        r.sum.dkey[e] = static_cast<double>(R(r.full.dkey[e] + r.sparse.dkey[e]));
        r.sum.dvalue[e] = static_cast<double>(R(r.full.dvalue[e] + r.sparse.dvalue[e]));
    }
    return r;
}

}  // namespace sparseattn::testing
