#pragma once
/// \file
/// Cases of the programs that check forward and backward: a packed batch, its heads, and random lists.

#include "tests/cuda/problem.cuh"

namespace sparseattn::cuda::testing {

struct Case {
    const char* name;
    std::vector<int> queries, keys;
    int query_heads, key_heads;
    bool causal;
    double density;
    bool shared;  // one list for all heads
    double single_density = 0;
    double empty_rows = 0;
    bool windows = false;
    bool fused = false;
    int spoiled = -1;         // this sequence is NaN
    int single_step = 1;      // see HostProblem
    bool below_zero = false;  // all scores: queries above, keys below
};

/// The case on the host, for `kernel`.
inline HostProblem build(const Case& c, Kernel kernel, int block, int head_dim, std::uint32_t seed) {
    HostProblem p;
    p.kernel = kernel;
    p.head_dim = head_dim;
    p.block = block;
    p.query_heads = c.query_heads;
    p.key_heads = c.key_heads;
    p.causal = c.causal;
    p.single_step = c.single_step;
    for (std::size_t s = 0; s < c.queries.size(); ++s) add_sequence(p, c.queries[s], c.keys[s]);
    p.lists = c.shared ? 1 : c.query_heads;
    for (int head = 0; head < c.query_heads; ++head) {
        p.head_list.push_back(c.shared ? 0 : (head * 7 + 3) % c.query_heads);
        Window window{0, Window::everything, 0};
        if (c.windows && head % 4 != 3) window = Window{head % 4 * 37, 100 + 90 * (head % 3), head % 2 == 0 ? 0 : 150};
        p.windows.push_back(window);
    }
    make_lists(p, c.density, true, c.single_density, c.empty_rows, seed);
    return p;
}

}  // namespace sparseattn::cuda::testing
