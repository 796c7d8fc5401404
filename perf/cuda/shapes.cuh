#pragma once
/// \file
/// The shapes that are timed, forward and backward.

#include "perf/cuda/bench.hpp"
#include "tests/cuda/problem.cuh"

namespace sparseattn::cuda::bench {

using testing::HostProblem;

struct Shape {
    int length, query_heads, key_heads, head_dim;
    bool causal;
};
/// Lists over the blocks of a shape.
struct Lists {
    int block;
    bool shared = false;  // one list for the heads of a group; else each head its own
    bool sink = false;    // key block 0 in every list, as most selections have it: its column is far longer
    double density = 1;   // chance of each block; the diagonal is always there when causal
    int lines = 0;  // keys of a list, drawn at random, that each row visits singly where it does not keep their block
};
/// A shape and the lists to time on it.
struct Sweep {
    Shape shape;
    std::vector<Lists> lists;
};

/// Gives every list `count` vertical lines.
inline void add_lines(HostProblem& p, int count, std::uint32_t seed) {
    std::mt19937 random(seed);
    const int keys = p.keys();
    p.single_offsets.assign(1, 0);
    for (int list = 0; list < p.lists; ++list) {
        std::vector<std::int32_t> drawn;
        for (int i = 0; i < count; ++i) drawn.push_back(static_cast<std::int32_t>(random() % keys));
        std::sort(drawn.begin(), drawn.end());
        drawn.erase(std::unique(drawn.begin(), drawn.end()), drawn.end());
        for (int row = 0; row < p.rows(); ++row) {
            const std::size_t entry = static_cast<std::size_t>(list) * p.rows() + row;
            const auto begin = p.columns.begin() + p.offsets[entry], end = p.columns.begin() + p.offsets[entry + 1];
            for (const std::int32_t key : drawn) {
                const bool seen = !p.causal || key < (row + 1) * p.block;
                if (seen && !std::binary_search(begin, end, key / p.block)) p.singles.push_back(key);
            }
            p.single_offsets.push_back(static_cast<std::int64_t>(p.singles.size()));
        }
    }
}

inline HostProblem build(const Shape& shape, const Lists& lists, Kernel kernel) {
    HostProblem p;
    p.kernel = kernel;
    p.head_dim = shape.head_dim;
    p.block = lists.block;
    p.query_heads = shape.query_heads;
    p.key_heads = shape.key_heads;
    p.causal = shape.causal;
    testing::add_sequence(p, shape.length, shape.length);
    const bool dense = lists.density >= 1;
    p.lists = dense ? 1 : lists.shared ? shape.key_heads : shape.query_heads;
    p.shared_heads = shape.query_heads / p.lists;
    for (int head = 0; head < p.query_heads; ++head) {
        p.head_list.push_back(head / p.shared_heads);
        p.windows.push_back({0, Window::everything, 0});
    }
    testing::make_lists(p, lists.density, shape.causal, 0, 0, 5);
    if (lists.lines > 0) add_lines(p, lists.lines, 11);
    if (!lists.sink) return p;
    std::vector<std::int32_t> columns;
    std::vector<std::int64_t> offsets{0};
    for (std::size_t entry = 0; entry + 1 < p.offsets.size(); ++entry) {
        const auto begin = p.columns.begin() + p.offsets[entry], end = p.columns.begin() + p.offsets[entry + 1];
        if (begin == end || *begin != 0) columns.push_back(0);
        columns.insert(columns.end(), begin, end);
        offsets.push_back(static_cast<std::int64_t>(columns.size()));
    }
    p.columns = columns;
    p.offsets = offsets;
    return p;
}

/// Kept (query, key) pairs over all heads: whole blocks count whole, the diagonal block of a causal row half.
inline double kept_pairs(const HostProblem& p) {
    double blocks = 0, singles = 0;
    for (int head = 0; head < p.query_heads; ++head) {
        for (int row = 0; row < p.rows(); ++row) {
            const std::int64_t entry = static_cast<std::int64_t>(p.head_list[head]) * p.rows() + row;
            const auto begin = p.offsets[entry], end = p.offsets[entry + 1];
            blocks += static_cast<double>(end - begin);
            if (p.causal && end > begin && p.columns[end - 1] == row) blocks -= 0.5;
            if (!p.single_offsets.empty()) {
                singles += static_cast<double>(p.single_offsets[entry + 1] - p.single_offsets[entry]);
            }
        }
    }
    return (blocks * p.block + singles) * p.block;
}

inline Row row_of(const char* what, const Shape& shape, const Lists& lists) {
    Row row;
    row.what = what;
    row.length = shape.length;
    row.query_heads = shape.query_heads;
    row.key_heads = shape.key_heads;
    row.head_dim = shape.head_dim;
    row.causal = shape.causal;
    row.block = lists.block;
    row.lists = lists.shared ? "shared" : "own";
    row.sink = lists.sink;
    row.lines = lists.lines;
    return row;
}

/// Some tokens of a length, spread over it; odd, so that they fall on no edge of a block.
inline std::vector<std::int32_t> some_tokens(int length) {
    std::vector<std::int32_t> tokens;
    for (int token = 13; token < length; token += length / 5) tokens.push_back(token);
    return tokens;
}

/// The tables of forward and backward. Head counts make the dense call last some milliseconds.
inline std::vector<Sweep> sweeps(const Options& options) {
    std::vector<double> densities = {0.5, 0.25, 0.1, 0.05};
    if (options.quick) densities = {0.1};
    if (options.dense) densities.clear();
    const auto both_blocks = [&](bool shared, bool sink = false) {
        std::vector<Lists> lists;
        for (const int block : {128, 64}) {
            for (const double density : densities) lists.push_back({block, shared, sink, density});
        }
        return lists;
    };
    const auto both_lists = [&] {
        std::vector<Lists> lists = both_blocks(false);
        for (const Lists& shared : both_blocks(true)) lists.push_back(shared);
        return lists;
    };
    std::vector<Sweep> result;
    const std::vector<int> lengths =
        options.quick ? std::vector<int>{16384, 65536} : std::vector<int>{16384, 32768, 65536, 131072};
    for (const int length : lengths) {
        const int heads = length <= 32768 ? 16 : 8;
        for (const bool causal : {false, true}) {
            if (options.quick && causal && length > 16384) continue;
            const bool shared = !options.quick && !causal && (length == 16384 || length == 65536);
            result.push_back({{length, heads, heads / 4, 128, causal}, shared ? both_lists() : both_blocks(false)});
        }
    }
    for (const bool causal : {false, true}) {
        result.push_back({{16384, 16, 4, 64, causal}, both_blocks(false)});
    }
    Sweep lines{{16384, 16, 4, 128, true}, {}};  // 0.2 and 1 % of the keys
    for (const int block : {128, 64}) {
        for (const int count : {32, 160}) lines.lists.push_back({block, false, false, 0.1, count});
    }
    if (!options.dense) result.push_back(lines);
    result.push_back({{16384, 16, 4, 256, true}, both_blocks(false)});
    if (!options.quick) {
        result.push_back({{65536, 8, 2, 64, false}, both_blocks(false)});
        result.push_back({{16384, 16, 4, 128, true}, both_blocks(false, true)});
    }
    const auto unwanted = [&](const Sweep& sweep) { return !wanted(options, sweep.shape.length); };
    result.erase(std::remove_if(result.begin(), result.end(), unwanted), result.end());
    return result;
}

}  // namespace sparseattn::cuda::bench
