// A user's program: dense causal attention over one packed sequence, checked against its first row.
#include <cmath>
#include <cstdio>

#include "sparseattn/attention/attention.hpp"
#include "sparseattn/core/version.hpp"
#include "sparseattn/layout/builders.hpp"

int main(int argc, char** argv) {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    using Exec = Kokkos::DefaultHostExecutionSpace;
    using Mem = Exec::memory_space;
    const Exec exec;
    const int tokens = 100, heads = 4, kv_heads = 2, dim = 64;
    const sparseattn::Sequences<Mem> sequences({0, tokens});
    const auto layout =
        sparseattn::build_layout(exec, sequences, 64, true, std::vector(heads, sparseattn::HeadMode::dense()));
    const sparseattn::Array3<float, Mem> q("q", tokens, heads, dim), k("k", tokens, kv_heads, dim);
    const sparseattn::Array3<float, Mem> v("v", tokens, kv_heads, dim), out("out", tokens, heads, dim);
    const sparseattn::Array2<float, Mem> lse("lse", tokens, heads);
    for (std::size_t i = 0; i < v.span(); ++i) v.data()[i] = static_cast<float>(i % 17);
    sparseattn::Workspace<Mem> workspace;
    sparseattn::attention_forward<Exec, float>(exec, {q, k, v}, sequences, layout, {}, workspace, {out, lse});
    exec.fence();
    // The first query sees the first key alone.
    for (int h = 0; h < heads; ++h) {
        for (int c = 0; c < dim; ++c) {
            if (std::fabs(out(0, h, c) - v(0, h / 2, c)) > 1e-6F) return 1;
        }
    }
    std::printf("SparseAttn %s works\n", sparseattn::version().c_str());
    return 0;
}
