#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include "cuda/token_rule.cuh"
#include "sparseattn/layout/token_rule.hpp"

namespace {

static_assert(sizeof(sparseattn::Window) == sizeof(sparseattn::cuda::Window));
static_assert(offsetof(sparseattn::Window, sink) == offsetof(sparseattn::cuda::Window, sink));
static_assert(offsetof(sparseattn::Window, local) == offsetof(sparseattn::cuda::Window, local));
static_assert(offsetof(sparseattn::Window, dense_tail) == offsetof(sparseattn::cuda::Window, dense_tail));
static_assert(sparseattn::Window::everything == sparseattn::cuda::Window::everything);

struct Lengths {
    int queries, keys;
};

TEST(CudaTokenRule, SaysWhatTheLibrarySays) {
    for (const auto [queries, keys] : {Lengths{1, 1}, {7, 7}, {5, 23}, {23, 5}, {20, 20}}) {
        for (const bool causal : {true, false}) {
            for (const sparseattn::Window window :
                 {sparseattn::Window{}, {3, 4, 0}, {0, 1, 0}, {2, 6, 4}, {100, 2, 1}, {1, 3, 100}}) {
                const sparseattn::TokenRule library{queries, keys, causal, window};
                const sparseattn::cuda::TokenRule kernel{
                    queries, keys, causal, {window.sink, window.local, window.dense_tail}};
                for (int i = 0; i < queries; ++i) {
                    EXPECT_EQ(library.key_end(i), kernel.key_end(i));
                    EXPECT_EQ(library.local_begin(i), kernel.local_begin(i));
                    for (int j = 0; j < keys; ++j) {
                        EXPECT_EQ(library.visible(i, j), kernel.visible(i, j));
                        for (int rows = 1; i + rows <= queries; rows += 3) {
                            EXPECT_EQ(library.all_visible(i, i + rows, j, j + 5),
                                      kernel.all_visible(i, i + rows, j, j + 5));
                        }
                    }
                }
            }
        }
    }
}

}  // namespace
