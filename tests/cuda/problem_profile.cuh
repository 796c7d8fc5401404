#pragma once
/// \file
/// FlexPrefill and MInference problems on the device, and what both methods keep by their definitions in fp64.

#include <cmath>
#include <numeric>

#include "cuda/select.hpp"
#include "tests/cuda/problem.cuh"

namespace sparseattn::cuda::testing {

struct ProfileCase {
    const char* name;
    std::vector<int> queries, keys;
    int query_heads, key_heads, head_dim, block;
    bool every_other = false;  // only heads 0, 2, 4, ... are estimated
    float spread = 2.5F;
    // FlexPrefill
    double gamma = 0.9, tau = 0.1;
    int least = 256, most = 0;
    bool interleaved = false;
    // MInference
    int columns = 200, distances = 300;
    double share = 0;  // above 0: adaptive budget
};

/// Key blocks and single keys of each (list, row).
struct Lists {
    std::vector<std::vector<int>> blocks, keys;
};

/// Inputs, outputs and workspaces. Lists past the estimated ones: one, empty.
struct ProfileProblem {
    HostProblem host;
    ProfileCase shape;
    std::vector<std::int32_t> heads, columns_kept, distances_kept;
    Buffer<__nv_bfloat16> query, key;
    Buffer<std::int32_t> query_offsets, key_offsets, row_begin, row_sequence, columns, keys;
    Buffer<std::int64_t> offsets, single_offsets;
    Buffer<unsigned char> workspace;
    FlexPrefillParams flex;
    MInferenceParams minference;

    ProfileProblem(const ProfileCase& c, std::uint32_t seed) : shape(c) {
        host.block = c.block;
        for (std::size_t s = 0; s < c.queries.size(); ++s) add_sequence(host, c.queries[s], c.keys[s]);
        for (int h = 0; h < c.query_heads; h += c.every_other ? 2 : 1) heads.push_back(h);
        query = Buffer<__nv_bfloat16>(std::size_t(host.queries()) * c.query_heads * c.head_dim + 8);
        key = Buffer<__nv_bfloat16>(std::size_t(host.keys()) * c.key_heads * c.head_dim + 8);
        fill_random<<<256, 256>>>(query.data(), query.size(), seed, c.spread);
        fill_random<<<256, 256>>>(key.data(), key.size(), seed + 1, c.spread);
        SPARSEATTN_TEST_CUDA(cudaGetLastError());
        query_offsets = Buffer<std::int32_t>(host.query_offsets);
        key_offsets = Buffer<std::int32_t>(host.key_offsets);
        row_begin = Buffer<std::int32_t>(host.row_begin);
        row_sequence = Buffer<std::int32_t>(host.row_sequence);
        offsets = Buffer<std::int64_t>((heads.size() + 1) * host.rows() + 1);
        single_offsets = Buffer<std::int64_t>((heads.size() + 1) * host.rows() + 1);
        std::int64_t blocks = 0, longest = 0;
        for (std::size_t s = 0; s < c.queries.size(); ++s) {
            blocks += std::int64_t{host.row_begin[s + 1] - host.row_begin[s]} * ((c.keys[s] + c.block - 1) / c.block);
            longest = std::max<std::int64_t>(longest, c.keys[s]);
        }
        const std::int64_t most =
            std::min<std::int64_t>(longest, std::max(30, c.share > 0 ? int(0.2 * c.share * longest) : c.columns));
        columns = Buffer<std::int32_t>(blocks * heads.size() + 1);
        keys = Buffer<std::int32_t>(most * host.rows() * heads.size() + 1);
        columns_kept.assign(heads.size(), c.columns);
        distances_kept.assign(heads.size(), c.distances);
        set(flex);
        set(minference);
        flex.gamma = c.gamma;
        flex.tau = c.tau;
        flex.least = c.least;
        flex.most = c.most;
        flex.interleaved = c.interleaved;
        minference.columns = columns_kept.data();
        minference.distances = distances_kept.data();
        minference.column_share = 0.2 * c.share;
        minference.distance_share = 0.8 * c.share;
        minference.key_offsets = single_offsets.data();
        minference.keys = keys.data();
        const std::size_t bytes = std::max(flexprefill_workspace(flex), minference_workspace(minference));
        workspace = Buffer<unsigned char>(bytes);
        flex.workspace = minference.workspace = workspace.data();
        flex.workspace_bytes = minference.workspace_bytes = bytes;
    }
    void poison() const {
        workspace.fill(0xff);
        offsets.fill(0xff);
        single_offsets.fill(0xff);
        columns.fill(0xff);
        keys.fill(0xff);
    }
    /// What the last call wrote; `single`: also the single keys.
    [[nodiscard]] Lists lists(bool single) const {
        Lists result;
        const auto read = [&](const Buffer<std::int64_t>& from, const Buffer<std::int32_t>& entries,
                              std::vector<std::vector<int>>& to) {
            const auto at = from.host();
            const auto entry = entries.host();
            for (std::size_t i = 0; i + 1 < at.size(); ++i) {
                const bool sane =
                    at[0] == 0 && at[i] <= at[i + 1] && at[i + 1] < static_cast<std::int64_t>(entry.size());
                if (!sane) {
                    to.assign(at.size() - 1, {-2});
                    return;
                }
                to.emplace_back(entry.begin() + at[i], entry.begin() + at[i + 1]);
            }
        };
        read(offsets, columns, result.blocks);
        if (single) read(single_offsets, keys, result.keys);
        return result;
    }

  private:
    void set(SelectionParams& p) {
        p.query_heads = shape.query_heads;
        p.key_heads = shape.key_heads;
        p.head_dim = shape.head_dim;
        p.block = shape.block;
        p.query = {query.data(), std::int64_t{shape.query_heads} * shape.head_dim, shape.head_dim};
        p.key = {key.data(), std::int64_t{shape.key_heads} * shape.head_dim, shape.head_dim};
        p.batch = {static_cast<int>(shape.queries.size()), host.queries(), host.keys(), query_offsets.data(),
                   key_offsets.data()};
        p.host_query_offsets = host.query_offsets.data();
        p.host_key_offsets = host.key_offsets.data();
        p.estimated = static_cast<int>(heads.size());
        p.heads = heads.data();
        p.target = {host.rows(),    row_begin.data(), row_sequence.data(), static_cast<int>(heads.size()) + 1,
                    offsets.data(), columns.data()};
    }
};

/// One head of one sequence in fp64.
struct ProfileOracle {
    const ProfileCase& c;
    int n_q, n_k, d, B;
    std::vector<double> q, k;                    // [n_q, d], [n_k, d]
    std::vector<double> v, s;                    // mass by key, by distance
    std::vector<std::vector<int>> blocks, keys;  // by row

    ProfileOracle(const ProfileProblem& p, const std::vector<__nv_bfloat16>& query,
                  const std::vector<__nv_bfloat16>& key, int head, int key_head, int sequence)
        : c(p.shape), d(c.head_dim), B(c.block) {
        const int q0 = p.host.query_offsets[sequence], k0 = p.host.key_offsets[sequence];
        n_q = p.host.query_offsets[sequence + 1] - q0;
        n_k = p.host.key_offsets[sequence + 1] - k0;
        const auto copy = [&](const std::vector<__nv_bfloat16>& from, int first, int count, int heads, int h) {
            std::vector<double> to;
            to.reserve(std::size_t(count) * d);
            for (int t = first; t < first + count; ++t) {
                for (int i = 0; i < d; ++i) to.push_back(__bfloat162float(from[(std::size_t(t) * heads + h) * d + i]));
            }
            return to;
        };
        q = copy(query, q0, n_q, c.query_heads, head);
        k = copy(key, k0, n_k, c.key_heads, key_head);
    }
    int rows() const { return (n_q + B - 1) / B; }
    int key_blocks() const { return (n_k + B - 1) / B; }
    int end_key(int row) const { return std::min((row + 1) * B, n_q) + n_k - n_q; }
    static double dot(const double* a, const double* b, int d) {
        double sum = 0;
        for (int i = 0; i < d; ++i) sum += a[i] * b[i];
        return sum;
    }
    void look(int tail) {
        v.assign(n_k, 0);
        s.assign(n_k, 0);
        tail = std::min(tail, n_q);
        std::vector<double> p(n_k);
        for (int r = 0; r < tail; ++r) {
            const int end = n_k - tail + r + 1;
            double top = -INFINITY, total = 0;
            for (int j = 0; j < end; ++j) {
                p[j] = dot(&q[std::size_t(n_q - tail + r) * d], &k[std::size_t(j) * d], d) / std::sqrt(double(d));
                top = std::max(top, p[j]);
            }
            for (int j = 0; j < end; ++j) total += p[j] = std::exp(p[j] - top);
            for (int j = 0; j < end; ++j) {
                v[j] += p[j] / total;
                s[end - 1 - j] += p[j] / total;
            }
        }
    }
    static std::vector<int> order(const std::vector<double>& mass) {
        std::vector<int> result(mass.size());
        std::iota(result.begin(), result.end(), 0);
        std::stable_sort(result.begin(), result.end(), [&](int a, int b) { return mass[a] > mass[b]; });
        return result;
    }
    static int prefix(const std::vector<double>& mass, double required, std::vector<bool>* taken = nullptr) {
        double held = 0;
        int count = 0;
        for (const int i : order(mass)) {
            if (held >= required) break;
            held += mass[i];
            ++count;
            if (taken != nullptr) (*taken)[i] = true;
        }
        return count;
    }
    static std::vector<bool> largest(const std::vector<double>& mass, int wanted) {
        std::vector<bool> kept(mass.size());
        const auto by = order(mass);
        for (int i = 0; i < std::min<int>(wanted, static_cast<int>(mass.size())); ++i) kept[by[i]] = true;
        return kept;
    }
    std::vector<double> mean(const std::vector<double>& x, int begin, int end) const {
        std::vector<double> sum(d);
        for (int t = begin; t < end; ++t) {
            for (int i = 0; i < d; ++i) sum[i] += x[std::size_t(t) * d + i] / (end - begin);
        }
        return sum;
    }
    void flexprefill() {
        const int M = key_blocks(), R = rows(), tail = std::min(B, n_q);
        blocks.assign(R, {});
        const bool dense = n_k <= std::max(2 * B, c.least) || (c.gamma >= 1 && c.most == 0);
        const auto add = [&](int row, const auto& takes) {
            const int end = (end_key(row) - 1) / B + 1;
            for (int J = 0; J < end; ++J) {
                if (takes(J, end)) blocks[row].push_back(J);
            }
        };
        if (dense) {
            for (int row = 0; row < R; ++row) add(row, [](int, int) { return true; });
            return;
        }
        look(B);
        std::vector<double> V(M), D(M);
        for (int i = 0; i < n_k; ++i) {
            V[i / B] += v[i];
            D[i / B] += s[i];
        }
        std::vector<std::vector<double>> means;
        for (int J = 0; J < M; ++J) means.push_back(mean(k, J * B, std::min((J + 1) * B, n_k)));
        const auto softmax = [&](const std::vector<double>& x, int end) {
            std::vector<double> p(M);
            double top = -INFINITY, total = 0;
            for (int J = 0; J < end; ++J)
                top = std::max(top, p[J] = dot(x.data(), means[J].data(), d) / std::sqrt(double(d)));
            for (int J = 0; J < end; ++J) total += p[J] = std::exp(p[J] - top);
            for (int J = 0; J < M; ++J) p[J] = J < end ? p[J] / total : 0;
            return p;
        };
        const auto guess = softmax(mean(q, n_q - tail, n_q), M);
        double divergence = 0;
        for (int J = 0; J < M; ++J) {
            const double p = guess[J], o = V[J] / tail, m = (p + o) / 2;
            divergence += (p > 0 ? 0.5 * p * std::log(p / m) : 0) + (o > 0 ? 0.5 * o * std::log(o / m) : 0);
        }
        const bool aware = std::sqrt(std::max(divergence, 0.0)) < c.tau;
        const auto up = [&](int tokens) { return (tokens + B - 1) / B; };
        const int limit = c.most > 0 ? std::min(M, up(c.most)) : M, least = std::min(limit, up(c.least));
        int wanted[2] = {least, least};
        for (int which = 0; which < 2 && !aware; ++which) {
            const auto& mass = which == 0 ? v : s;
            const int taken =
                c.gamma >= 1 ? n_k : prefix(mass, c.gamma * std::accumulate(mass.begin(), mass.end(), 0.0));
            wanted[which] = std::clamp(up(taken), least, limit);
        }
        const auto columns = largest(V, wanted[0]), distances = largest(D, wanted[1]);
        std::vector<double> pairs;
        for (int row = 0; row < R && aware; ++row) {
            const auto p = softmax(mean(q, row * B, std::min((row + 1) * B, n_q)), (end_key(row) - 1) / B + 1);
            pairs.insert(pairs.end(), p.begin(), p.end());
        }
        std::vector<bool> taken(pairs.size(), c.gamma >= 1);
        if (aware && c.gamma < 1) prefix(pairs, c.gamma * R, &taken);
        for (int row = 0; row < R; ++row) {
            const int own = (row * B + n_k - n_q) / B;
            add(row, [&](int J, int end) {
                return J == 0 || J >= own || columns[J] || distances[end - 1 - J] ||
                       (aware && taken[std::size_t(row) * M + J]);
            });
        }
    }
    void minference() {
        look(64);
        const int R = rows();
        int first = c.share > 0 ? int(0.2 * c.share * n_k) : c.columns;
        int second = c.share > 0 ? int(0.8 * c.share * n_k) : c.distances;
        first = std::min(n_k, std::max(first, 30));
        second = std::min(n_k, std::max(second, 100));
        for (int i = 0; i < std::min(n_k, 30); ++i) v[i] = 1e9;
        for (int i = 0; i < std::min(n_k, 100); ++i) s[i] = 1e9;
        const auto columns = largest(v, first), distances = largest(s, second);
        blocks.assign(R, {});
        keys.assign(R, {});
        for (int row = 0; row < R; ++row) {
            std::vector<bool> covered(key_blocks());
            for (int i = row * B + n_k - n_q; i < end_key(row); ++i) {
                for (int o = 0; o <= i; ++o) {
                    if (distances[o]) covered[(i - o) / B] = true;
                }
            }
            for (int J = 0; J < key_blocks(); ++J) {
                if (covered[J]) blocks[row].push_back(J);
            }
            for (int j = 0; j < end_key(row); ++j) {
                if (columns[j] && !covered[j / B]) keys[row].push_back(j);
            }
        }
    }
};

}  // namespace sparseattn::cuda::testing
