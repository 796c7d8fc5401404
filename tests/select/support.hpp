#pragma once
// Inputs for the selectors' tests, and readings of the layouts they give.

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/core/workspace.hpp"
#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn::test {

#if defined(KOKKOS_ENABLE_SERIAL)
using HostSpaces = testing::Types<Kokkos::DefaultHostExecutionSpace, Kokkos::Serial>;
#else
using HostSpaces = testing::Types<Kokkos::DefaultHostExecutionSpace>;
#endif

enum class Kind { random, spikes, diagonal, local, needle };
inline const std::vector<Kind> every_kind = {Kind::random, Kind::spikes, Kind::diagonal, Kind::local, Kind::needle};

// Packed queries and keys of type T, read back as double.
template <class T>
struct Problem {
    int heads, kv_heads, head_dim;
    std::vector<std::int32_t> query_offsets, key_offsets;
    std::vector<T> query, key;

    Problem(int heads, int kv_heads, int head_dim, const std::vector<std::int32_t>& query_offsets,
            const std::vector<std::int32_t>& key_offsets, Kind kind, std::uint64_t seed)
        : heads(heads),
          kv_heads(kv_heads),
          head_dim(head_dim),
          query_offsets(query_offsets),
          key_offsets(key_offsets),
          query(static_cast<std::size_t>(query_offsets.back()) * heads * head_dim),
          key(static_cast<std::size_t>(key_offsets.back()) * kv_heads * head_dim) {
        for (std::size_t s = 0; s + 1 < key_offsets.size(); ++s) fill(static_cast<int>(s), kind, seed);
    }

    int sequences() const { return static_cast<int>(query_offsets.size()) - 1; }
    int queries(int s) const { return query_offsets[s + 1] - query_offsets[s]; }
    int keys(int s) const { return key_offsets[s + 1] - key_offsets[s]; }
    T& q(int s, int i, int h, int c) {
        return query[(static_cast<std::size_t>(query_offsets[s] + i) * heads + h) * head_dim + c];
    }
    T& k(int s, int j, int h, int c) {
        return key[(static_cast<std::size_t>(key_offsets[s] + j) * kv_heads + h) * head_dim + c];
    }
    double dot(int s, int i, int h, int j) {
        double sum = 0;
        for (int c = 0; c < head_dim; ++c) {
            sum += static_cast<double>(static_cast<float>(q(s, i, h, c))) *
                   static_cast<double>(static_cast<float>(k(s, j, h / (heads / kv_heads), c)));
        }
        return sum;
    }

  private:
    // Noise everywhere; on top of it, by kind: a few keys that every query likes; queries that like the key 37 tokens
    // back; vectors that drift with position; one key that the last queries like.
    void fill(int s, Kind kind, std::uint64_t seed) {
        const RandomStream noise(seed, RandomPurpose::test, 2 * s);
        const RandomStream feature(seed, RandomPurpose::test, 2 * s + 1);
        const int shift = keys(s) - queries(s), group = heads / kv_heads;
        const auto common = [&](int position, int h, int c) {
            const std::uint64_t base = static_cast<std::uint64_t>(h) * head_dim + c;
            if (kind == Kind::diagonal) return 2.0 * feature.normal(base + 100003ULL * (position + 1000));
            if (kind == Kind::local) {
                return 2.5 * std::cos(0.004 * (c + 1) * position + 6.28 * feature.uniform(base));
            }
            return 4.0 * feature.normal(base) / std::sqrt(std::sqrt(double(head_dim)));
        };
        std::uint64_t at = 0;
        for (int j = 0; j < keys(s); ++j) {
            for (int h = 0; h < kv_heads; ++h) {
                const bool marked = kind == Kind::diagonal || kind == Kind::local ||
                                    (kind == Kind::spikes && (j + 17 * h) % 211 == 19) ||
                                    (kind == Kind::needle && j == (keys(s) * (2 + h)) / 7);
                for (int c = 0; c < head_dim; ++c) {
                    k(s, j, h, c) = T(static_cast<float>(noise.normal(at++) + (marked ? common(j, h, c) : 0.0)));
                }
            }
        }
        for (int i = 0; i < queries(s); ++i) {
            for (int h = 0; h < heads; ++h) {
                const int position = i + shift - (kind == Kind::diagonal ? 37 : 0);
                const bool marked = kind == Kind::needle ? i >= queries(s) - 40 : kind != Kind::random;
                for (int c = 0; c < head_dim; ++c) {
                    q(s, i, h, c) =
                        T(static_cast<float>(noise.normal(at++) + (marked ? common(position, h / group, c) : 0.0)));
                }
            }
        }
    }
};

// The same in memory of a space.
template <class Exec, class T>
struct OnDevice {
    using Mem = typename Exec::memory_space;
    Sequences<Mem> sequences;
    Array3<T, Mem> query, key;

    explicit OnDevice(const Problem<T>& problem)
        : sequences(problem.query_offsets, problem.key_offsets),
          query("query", problem.query_offsets.back(), problem.heads, problem.head_dim),
          key("key", problem.key_offsets.back(), problem.kv_heads, problem.head_dim) {
        copy(problem.query, query);
        copy(problem.key, key);
    }
    HeadsView<const T, Mem> q() const { return query; }
    HeadsView<const T, Mem> k() const { return key; }

  private:
    static void copy(const std::vector<T>& from, const Array3<T, Mem>& to) {
        const Kokkos::View<const T***, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged> host(
            from.data(), to.extent(0), to.extent(1), to.extent(2));
        Kokkos::deep_copy(to, host);
    }
};

// What a head's rows visit, [row of the batch] -> ascending key blocks (or single keys).
struct HeadLists {
    std::vector<std::vector<std::int32_t>> blocks, keys;
    friend bool operator==(const HeadLists&, const HeadLists&) = default;
};

template <class Exec>
std::vector<HeadLists> head_lists(const Exec& exec, const BlockLayout<typename Exec::memory_space>& layout) {
    const HostLists lists = copy_lists(exec, layout);
    std::vector<std::int32_t> of(layout.heads);
    Kokkos::deep_copy(
        Kokkos::View<std::int32_t*, Kokkos::LayoutRight, Kokkos::HostSpace, Unmanaged>(of.data(), of.size()),
        layout.head_list);
    std::vector<HeadLists> heads(layout.heads);
    for (int h = 0; h < layout.heads; ++h) {
        for (int row = 0; row < layout.grid.rows; ++row) {
            const std::size_t at = static_cast<std::size_t>(of[h]) * layout.grid.rows + row;
            heads[h].blocks.emplace_back(lists.columns.begin() + lists.offsets[at],
                                         lists.columns.begin() + lists.offsets[at + 1]);
            heads[h].keys.emplace_back();
            if (lists.keys.empty()) continue;
            heads[h].keys.back().assign(lists.keys.begin() + lists.key_offsets[at],
                                        lists.keys.begin() + lists.key_offsets[at + 1]);
        }
    }
    return heads;
}

// What selection by mass promises, in fp64, with `slack` for the rounding of fp32 masses: `taken` holds every forced
// index, its other members are the largest (no index outside has a larger mass), together they reach tau * total, and
// without the smallest of the others they would not. Two such sets differ only in masses within the slack of the
// crossing. Returns what is wrong, or "".
inline std::string wrong_prefix(const std::vector<double>& mass, const std::vector<std::int32_t>& taken,
                                const std::vector<std::int32_t>& forced, double tau, double slack) {
    double total = 0, kept = 0, smallest = INFINITY, largest_outside = 0;
    for (const double m : mass) total += m;
    const auto in = [](const std::vector<std::int32_t>& list, std::int32_t x) {
        return std::find(list.begin(), list.end(), x) != list.end();
    };
    for (const std::int32_t f : forced) {
        if (!in(taken, f)) return concat("forced index ", f, " is missing");
    }
    for (std::int32_t j = 0; j < static_cast<std::int32_t>(mass.size()); ++j) {
        if (in(taken, j)) {
            kept += mass[j];
            if (!in(forced, j)) smallest = std::min(smallest, mass[j]);
        } else {
            largest_outside = std::max(largest_outside, mass[j]);
        }
    }
    const double eps = slack * total;
    if (kept < tau * total - eps) return concat("kept ", kept, " of ", total);
    if (smallest < largest_outside - eps) return concat("kept mass ", smallest, ", left ", largest_outside);
    if (smallest < INFINITY && kept - smallest >= tau * total + eps) {
        return concat("kept ", kept, " of ", total, ", enough without the last, ", smallest);
    }
    return "";
}

// The smallest prefix itself, by a stable sort in fp64; forced indices first.
inline std::vector<std::int32_t> smallest_prefix(const std::vector<double>& mass,
                                                 const std::vector<std::int32_t>& forced, double required) {
    std::vector<std::int32_t> order, taken = forced;
    double sum = 0;
    for (const std::int32_t f : forced) sum += mass[f];
    for (std::int32_t j = 0; j < static_cast<std::int32_t>(mass.size()); ++j) {
        if (std::find(forced.begin(), forced.end(), j) == forced.end()) order.push_back(j);
    }
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return mass[a] > mass[b]; });
    for (std::size_t t = 0; t < order.size() && sum < required; ++t) {
        taken.push_back(order[t]);
        sum += mass[order[t]];
    }
    std::sort(taken.begin(), taken.end());
    return taken;
}

template <class Call>
std::string message_of(const Call& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

}  // namespace sparseattn::test
