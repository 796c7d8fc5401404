#pragma once
// The cases that every attention implementation is tested on: shapes, layouts, inputs.
#include <algorithm>
#include <string>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/rng.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/layout/detail/copies.hpp"

namespace sparseattn::testing {

/// What the layout of a case looks like.
enum class Kind { dense, token, block, mixed, tail, lists, lists_and_keys, windowed };
inline const char* name_of(Kind kind) {
    constexpr const char* names[] = {"dense", "token", "block", "mixed", "tail", "lists", "lists_and_keys", "windowed"};
    return names[static_cast<int>(kind)];
}

struct Case {
    std::string name;
    std::vector<std::int32_t> query_offsets, key_offsets;
    int block;
    bool causal;
    int heads, kv_heads, head_dim;
    Kind kind;
    bool fused;  // views into fused buffers instead of contiguous arrays
    std::uint64_t seed;

    friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

/// Draws from one stream, in order.
class Draws {
  public:
    explicit Draws(std::uint64_t seed, std::uint64_t step = 0) : stream_(seed, RandomPurpose::test, step) {}
    bool chance(double p) { return stream_.uniform(at_++) < p; }
    int below(int n) { return static_cast<int>(stream_.uniform(at_++) * n); }
    double normal() { return stream_.normal(at_++); }

  private:
    RandomStream stream_;
    std::uint64_t at_ = 0;
};

/// Random cases; head dimension, layout kind, lengths, block and group go round with periods that have no common
/// factor, so that the forty cases hold every pair of head dimension and kind. `first` and `step` take a part of them.
inline std::vector<Case> attention_cases(int first = 0, int step = 1) {
    constexpr int count = 40;
    struct Lengths {
        const char* name;
        std::vector<std::int32_t> queries, keys;
    };
    const std::vector<Lengths> lengths = {
        {"same", {1, 0, 63, 130}, {1, 0, 63, 130}},
        {"fewer_queries", {30, 0, 66, 5}, {70, 20, 140, 5}},
        {"more_queries", {90, 65, 0, 20}, {50, 0, 3, 70}},
        {"one", {140}, {140}},
        {"decode", {1, 1, 1, 2}, {260, 65, 0, 128}},
        {"block_sized", {64, 64}, {128, 128}},
        {"long_keys", {40}, {300}},
    };
    const int dims[] = {32, 64, 96, 128, 256};
    std::vector<Case> cases;
    for (int n = first; n < count; n += step) {
        Draws draws(1000 + n);
        const Lengths& length = lengths[n % lengths.size()];
        Case c;
        c.query_offsets = c.key_offsets = {0};
        for (const auto l : length.queries) c.query_offsets.push_back(c.query_offsets.back() + l);
        for (const auto l : length.keys) c.key_offsets.push_back(c.key_offsets.back() + l);
        c.kind = static_cast<Kind>(n % 8);
        c.head_dim = dims[n % 5];
        c.heads = n % 3 == 1 ? 8 : 4;
        c.kv_heads = n % 3 == 0 ? 1 : n % 3 == 1 ? c.heads / 4 : c.heads;
        c.block = draws.chance(0.6) ? 64 : 128;
        c.causal = draws.chance(0.7);
        c.fused = draws.chance(0.5);
        c.seed = 100 + n;
        c.name = concat(n, "_", name_of(c.kind), "_", length.name, "_d", c.head_dim, "_h", c.heads, "_kv", c.kv_heads,
                        "_b", c.block, c.causal ? "_causal" : "", c.fused ? "_fused" : "");
        cases.push_back(c);
    }
    return cases;
}

/// The layouts of a case: `sparse` keeps a subset of the pairs of `full`.
template <class Mem>
struct CaseLayouts {
    Sequences<Mem> sequences;
    BlockLayout<Mem> full, sparse;
};

/// Random lists over the blocks that `allowed(list, row, column)` names: a block is taken whole with chance 0.5, else
/// each of its keys singly with chance `single`. Rows may stay empty.
template <class Mem, class Allowed>
HostLists random_lists(const Sequences<Mem>& sequences, int block, bool causal, int lists, double single, Draws& draws,
                       const Allowed& allowed) {
    HostLists host{{0}, {}, {0}, {}};
    for (int list = 0; list < lists; ++list) {
        int at = 0;
        for (int s = 0; s < sequences.count(); ++s) {
            const TokenRule rule{sequences.query_length(s), sequences.key_length(s), causal, {}};
            for (int i = 0; i < rule.queries; i += block, ++at) {
                const int key_end = std::min(rule.key_end(std::min(i + block, rule.queries) - 1), rule.keys);
                for (int j = 0; j * block < key_end; ++j) {
                    if (!allowed(list, at, j)) continue;
                    if (draws.chance(0.5)) {
                        host.columns.push_back(j);
                        continue;
                    }
                    for (int key = j * block; key < std::min((j + 1) * block, key_end); ++key) {
                        if (draws.chance(single)) host.keys.push_back(key);
                    }
                }
                host.offsets.push_back(static_cast<std::int64_t>(host.columns.size()));
                host.key_offsets.push_back(static_cast<std::int64_t>(host.keys.size()));
            }
        }
    }
    return host;
}

template <class Exec>
BlockLayout<typename Exec::memory_space> case_layout(const Exec& exec, const Case& c,
                                                     const Sequences<typename Exec::memory_space>& sequences) {
    Draws draws(c.seed, 1);
    std::vector<HeadMode> modes;
    for (int h = 0; h < c.heads; ++h) {
        const HeadMode token = HeadMode::stream(draws.below(80), 1 + draws.below(90));
        const HeadMode block = HeadMode::stream(draws.below(80), 1 + draws.below(150), Granularity::block);
        switch (c.kind) {
            case Kind::dense:
                modes.push_back(HeadMode::dense());
                break;
            case Kind::token:
                modes.push_back(token);
                break;
            case Kind::block:
                modes.push_back(block);
                break;
            case Kind::mixed:
                modes.push_back(h % 3 == 0 ? HeadMode::dense() : h % 3 == 1 ? token : block);
                break;
            case Kind::tail:
                modes.push_back(HeadMode::stream(5, 40, h % 2 == 0 ? Granularity::token : Granularity::block, 30));
                break;
            default:
                break;
        }
    }
    if (!modes.empty()) return build_layout(exec, sequences, c.block, c.causal, modes);
    std::vector<std::int32_t> head_list;
    std::vector<Window> windows(c.heads);
    for (int h = 0; h < c.heads; ++h) {
        head_list.push_back(h / 2);  // neighbours share a list
        if (c.kind == Kind::windowed && h % 4 != 0)
            windows[h] = {draws.below(60), 1 + draws.below(80), draws.below(40)};
    }
    const double single = c.kind == Kind::lists ? 0.0 : 0.1;
    const HostLists lists = random_lists(sequences, c.block, c.causal, head_list.back() + 1, single, draws,
                                         [](int, int, int) { return true; });
    return layout_from_lists(exec, sequences, c.block, c.causal, lists, head_list, windows);
}

/// A random part of `full`: some of its blocks, single keys out of its other blocks, some of its single keys, and for
/// some heads without a window one of their own.
template <class Exec>
BlockLayout<typename Exec::memory_space> random_part(const Exec& exec, const Case& c,
                                                     const Sequences<typename Exec::memory_space>& sequences,
                                                     const BlockLayout<typename Exec::memory_space>& full) {
    Draws draws(c.seed, 2);
    const HostLists all = copy_lists(exec, full);
    const auto full_list = detail::to_host(exec, full.head_list);
    std::vector<Window> windows = detail::to_host(exec, full.windows);
    std::vector<std::int32_t> head_list;
    for (int h = 0; h < c.heads; ++h) {
        head_list.push_back(h);
        if (!windows[h].bounded() && draws.chance(0.5)) windows[h] = {draws.below(40), 1 + draws.below(60), 0};
    }
    const auto row_of = [&](int head, int row) { return std::int64_t{full_list[head]} * full.grid.rows + row; };
    HostLists part = random_lists(sequences, c.block, c.causal, c.heads, 0.1, draws, [&](int head, int row, int j) {
        const auto at = row_of(head, row);
        return std::binary_search(all.columns.begin() + all.offsets[at], all.columns.begin() + all.offsets[at + 1], j);
    });
    if (all.keys.empty()) return layout_from_lists(exec, sequences, c.block, c.causal, part, head_list, windows);
    HostLists merged{part.offsets, part.columns, {0}, {}};
    for (int head = 0; head < c.heads; ++head) {
        for (int row = 0; row < full.grid.rows; ++row) {
            const auto at = row_of(head, row), own = std::int64_t{head} * full.grid.rows + row;
            std::vector<std::int32_t> keys(part.keys.begin() + part.key_offsets[own],
                                           part.keys.begin() + part.key_offsets[own + 1]);
            for (auto e = all.key_offsets[at]; e < all.key_offsets[at + 1]; ++e) {
                if (draws.chance(0.5)) keys.push_back(all.keys[e]);
            }
            std::sort(keys.begin(), keys.end());
            merged.keys.insert(merged.keys.end(), keys.begin(), keys.end());
            merged.key_offsets.push_back(static_cast<std::int64_t>(merged.keys.size()));
        }
    }
    return layout_from_lists(exec, sequences, c.block, c.causal, merged, head_list, windows);
}

template <class Exec>
CaseLayouts<typename Exec::memory_space> case_layouts(const Exec& exec, const Case& c) {
    CaseLayouts<typename Exec::memory_space> layouts;
    layouts.sequences = Sequences<typename Exec::memory_space>(c.query_offsets, c.key_offsets);
    layouts.full = case_layout(exec, c, layouts.sequences);
    if (c.kind == Kind::dense) {  // the use that gates are made for
        std::vector<HeadMode> modes;
        for (int h = 0; h < c.heads; ++h) {
            modes.push_back(HeadMode::stream(7, 50, h % 2 == 0 ? Granularity::token : Granularity::block));
        }
        layouts.sparse = build_layout(exec, layouts.sequences, c.block, c.causal, modes);
    } else {
        layouts.sparse = random_part(exec, c, layouts.sequences, layouts.full);
    }
    return layouts;
}

/// Gate values: closed, open and between.
inline std::vector<float> case_gate(const Case& c) {
    const float values[] = {0.25F, 0.0F, 0.7F, 1.0F};
    std::vector<float> gate;
    for (int h = 0; h < c.heads; ++h) gate.push_back(h < 4 ? values[h] : 0.1F * static_cast<float>(h));
    return gate;
}

}  // namespace sparseattn::testing
