#pragma once
// Planted needles: keys of which exact attention of the queries that ask for them needs every one.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "sparseattn/core/rng.hpp"
#include "sparseattn/core/workspace.hpp"
#include "sparseattn/layout/block_layout.hpp"
#include "sparseattn/select/selector.hpp"

namespace sparseattn::test {

struct NeedleKind {
    int count;    // needles in a sequence
    int span;     // keys of each
    bool at_end;  // asked for among the last 64 queries (count <= 4) instead of all over the second half
};

/// One sequence of one head. Queries and keys drift with position, so that most attention is on the nearest hundred or
/// two; 16 queries in a row ask for each needle, `span` keys more than 512 tokens before, and give it most of theirs.
struct Needles {
    static constexpr int run = 16;  // queries that ask

    int tokens, head_dim, span;
    std::vector<int> queries, keys;  // first of each needle's
    std::vector<float> query, key;   // [tokens, head_dim]

    Needles(int tokens, int head_dim, const NeedleKind& kind, std::uint64_t seed)
        : tokens(tokens),
          head_dim(head_dim),
          span(kind.span),
          query(static_cast<std::size_t>(tokens) * head_dim),
          key(static_cast<std::size_t>(tokens) * head_dim) {
        const RandomStream noise(seed, RandomPurpose::test, 0), feature(seed, RandomPurpose::test, 1),
            places(seed, RandomPurpose::test, 2);
        std::uint64_t at = 0;
        for (int t = 0; t < tokens; ++t) {
            for (int c = 0; c < head_dim; ++c) {
                const double drift = 1.4 * std::cos(0.002 * (c % 16 + 1) * t + 6.28 * feature.uniform(c));
                const std::size_t i = static_cast<std::size_t>(t) * head_dim + c;
                query[i] = static_cast<float>(drift + 0.5 * noise.normal(at++));
                key[i] = static_cast<float>(drift + 0.5 * noise.normal(at++));
            }
        }
        const int half = tokens / 2;
        for (int n = 0; n < kind.count; ++n) {
            queries.push_back(kind.at_end ? tokens - run * (n + 1) : half + n * (half / kind.count));
            keys.push_back(static_cast<int>(places.bits(n) % static_cast<std::uint64_t>(queries[n] - 512)));
            plant(n, feature);
        }
    }

    /// Share of the needles' keys that the rows of their queries visit.
    template <class Exec>
    double recall(const Exec& exec, const BlockLayout<typename Exec::memory_space>& layout) const {
        const HostLists lists = copy_lists(exec, layout);
        const auto holds = [](const auto& offsets, const auto& entries, int row, int entry) {
            if (entries.empty()) return false;
            return std::binary_search(entries.begin() + offsets[row], entries.begin() + offsets[row + 1], entry);
        };
        int found = 0, wanted = 0;
        for (std::size_t n = 0; n < keys.size(); ++n) {
            for (int i = queries[n]; i < queries[n] + run; ++i) {
                const int row = i / layout.grid.block;
                for (int j = keys[n]; j < keys[n] + span; ++j, ++wanted) {
                    found += holds(lists.offsets, lists.columns, row, j / layout.grid.block) ||
                             holds(lists.key_offsets, lists.keys, row, j);
                }
            }
        }
        return static_cast<double>(found) / wanted;
    }

    /// Smallest share of exact attention that a needle has of a query that asks for it.
    [[nodiscard]] double least_share() const {
        double least = 1;
        for (std::size_t n = 0; n < keys.size(); ++n) {
            for (int i = queries[n]; i < queries[n] + run; ++i) {
                double total = 0, mine = 0;
                for (int j = 0; j <= i; ++j) {
                    double score = 0;
                    for (int c = 0; c < head_dim; ++c) {
                        score += static_cast<double>(query[static_cast<std::size_t>(i) * head_dim + c]) *
                                 key[static_cast<std::size_t>(j) * head_dim + c];
                    }
                    const double p = std::exp(score / std::sqrt(static_cast<double>(head_dim)));
                    total += p;
                    if (j >= keys[n] && j < keys[n] + span) mine += p;
                }
                least = std::min(least, mine / total);
            }
        }
        return least;
    }

  private:
    // A direction of the needle's own, of a length that makes their product `score`, on top of what is there.
    void plant(int number, const RandomStream& feature) {
        const double score = 23 - std::log(span);
        std::vector<double> direction(head_dim);
        double squares = 0;
        for (int c = 0; c < head_dim; ++c) {
            direction[c] = feature.normal(1000 + static_cast<std::uint64_t>(number) * head_dim + c);
            squares += direction[c] * direction[c];
        }
        const double length = std::sqrt(score * std::sqrt(static_cast<double>(head_dim)) / squares);
        for (int c = 0; c < head_dim; ++c) {
            const auto step = static_cast<float>(length * direction[c]);
            for (int i = 0; i < run; ++i) query[static_cast<std::size_t>(queries[number] + i) * head_dim + c] += step;
            for (int j = 0; j < span; ++j) key[static_cast<std::size_t>(keys[number] + j) * head_dim + c] += step;
        }
    }
};

struct NeedleResult {
    double recall = 0;
    double density = 0;
};

/// `method` on the needles of several seeds.
template <class Exec>
NeedleResult find_needles(const Exec& exec, const std::string& method, const std::vector<Needles>& samples) {
    using Mem = typename Exec::memory_space;
    NeedleResult result;
    for (const Needles& needles : samples) {
        const Sequences<Mem> sequences({0, needles.tokens});
        const auto on_device = [&](const std::vector<float>& flat) {
            const Array3<float, Mem> array("needles", needles.tokens, 1, needles.head_dim);
            const Kokkos::View<const float***, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged> host(
                flat.data(), needles.tokens, 1, needles.head_dim);
            Kokkos::deep_copy(array, host);
            return array;
        };
        const Array3<float, Mem> query = on_device(needles.query), key = on_device(needles.key);
        Workspace<Mem> workspace;
        const auto layout = select<Exec, float>(exec, query, key, sequences, parse_selector(method), workspace);
        result.recall += needles.recall(exec, layout) / static_cast<double>(samples.size());
        result.density += statistics(exec, sequences, layout).density() / static_cast<double>(samples.size());
    }
    return result;
}

}  // namespace sparseattn::test
