#include <gtest/gtest.h>

#include "sparseattn/layout/token_rule.hpp"

namespace sparseattn {
namespace {

// The block questions must agree with asking every pair, and must not be so cautious that interior blocks get masked.
void check_blocks(const TokenRule& rule, int block) {
    for (int i0 = 0; i0 < rule.queries; i0 += block) {
        const int i1 = std::min(i0 + block, rule.queries);
        for (int j0 = 0; j0 < rule.keys; j0 += block) {
            const int j1 = std::min(j0 + block, rule.keys);
            bool all = true, none = true;
            for (int i = i0; i < i1; ++i) {
                for (int j = j0; j < j1; ++j) (rule.visible(i, j) ? none : all) = false;
            }
            EXPECT_TRUE(all || !rule.all_visible(i0, i1, j0, j1)) << i0 << ' ' << j0;
            EXPECT_TRUE(none || !rule.none_visible(i0, i1, j0, j1)) << i0 << ' ' << j0;
            if (!rule.window.bounded()) {
                EXPECT_EQ(rule.all_visible(i0, i1, j0, j1), all) << i0 << ' ' << j0;
                EXPECT_EQ(rule.none_visible(i0, i1, j0, j1), none) << i0 << ' ' << j0;
            }
        }
    }
}

TEST(TokenRule, BlockQuestionsAgreeWithPairs) {
    for (const int queries : {1, 7, 16, 40}) {
        for (const int keys : {1, 9, 16, 40, 61}) {
            for (const bool causal : {false, true}) {
                for (const Window window :
                     {Window{}, Window{0, 1, 0}, Window{5, 9, 0}, Window{3, 16, 6}, Window{100, 2, 0}}) {
                    check_blocks({queries, keys, causal, window}, 8);
                }
            }
        }
    }
}

TEST(TokenRule, FollowsTheDefinition) {
    const TokenRule rule{6, 10, true, {2, 3, 1}};  // shift 4
    EXPECT_TRUE(rule.visible(0, 4));               // own position
    EXPECT_FALSE(rule.visible(0, 5));              // future
    EXPECT_TRUE(rule.visible(4, 6));               // i' = 8: local keys 6, 7, 8
    EXPECT_FALSE(rule.visible(4, 5));
    EXPECT_TRUE(rule.visible(4, 1));  // sink
    EXPECT_FALSE(rule.visible(4, 2));
    EXPECT_TRUE(rule.visible(5, 3));  // dense tail
    const TokenRule more_queries{10, 6, true, {}};
    EXPECT_FALSE(more_queries.visible(3, 0));
    EXPECT_TRUE(more_queries.visible(4, 0));
    EXPECT_EQ(more_queries.key_end(0), 0);
}

}  // namespace
}  // namespace sparseattn
