// Kept attention mass and output differences against plain loops.
#include <gmock/gmock.h>

#include "attention/dense.hpp"
#include "sparseattn/attention/measures.hpp"
#include "sparseattn/layout/builders.hpp"
#include "support/arrays.hpp"

namespace sparseattn::test {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr int heads = 4, kv_heads = 2, d = 24;

struct Case {
    Sequences<Mem> sequences;
    std::vector<float> query, key;
    Device<float> device_query, device_key;

    explicit Case(std::uint64_t seed, bool causal)
        : sequences({0, 70, 70, 150},
                    causal ? std::vector<std::int32_t>{0, 130, 135, 300} : std::vector<std::int32_t>{0, 40, 40, 190}),
          query(random<float>(static_cast<std::size_t>(sequences.queries()) * heads * d, seed)),
          key(random<float>(static_cast<std::size_t>(sequences.keys()) * kv_heads * d, seed + 1)),
          device_query(query),
          device_key(key) {}
    HeadsView<const float, Mem> q() const { return device_query.heads(sequences.queries(), heads); }
    HeadsView<const float, Mem> k() const { return device_key.heads(sequences.keys(), kv_heads); }
};

// One block in three, chosen by position, with single keys besides, and a window on the last head.
BlockLayout<Mem> sparse_layout(const Sequences<Mem>& sequences, bool causal) {
    const int block = 64;
    HostLists lists{{0}, {}, {0}, {}};
    for (int s = 0; s < sequences.count(); ++s) {
        const int shift = sequences.key_length(s) - sequences.query_length(s);
        for (int row = 0; row * block < sequences.query_length(s); ++row) {
            const int last = std::min((row + 1) * block, sequences.query_length(s)) - 1;
            const int end = causal ? std::max(0, last + shift + 1) : sequences.key_length(s);
            for (int column = 0; column * block < end; ++column) {
                if ((column + row) % 3 == 0) lists.columns.push_back(column);
            }
            for (int j = 3; j < end; j += 17) {
                if ((j / block + row) % 3 != 0) lists.keys.push_back(j);
            }
            lists.offsets.push_back(static_cast<std::int64_t>(lists.columns.size()));
            lists.key_offsets.push_back(static_cast<std::int64_t>(lists.keys.size()));
        }
    }
    return layout_from_lists(Exec(), sequences, block, causal, lists, {0, 0, 0, 0}, {{}, {}, {}, {5, 40, 9}});
}

TEST(AttentionMass, IsTheShareOfTheExpandedMask) {
    for (const bool causal : {true, false}) {
        for (const std::uint64_t seed : {1, 2}) {
            const Case c(seed, causal);
            const auto layout = sparse_layout(c.sequences, causal);
            const HostLists lists = copy_lists(Exec(), layout);
            const auto dense = build_layout(Exec(), c.sequences, 64, causal, std::vector<HeadMode>(4));
            const std::vector<std::int32_t> list(4, 0);
            const auto kept = testing::expand_mask(c.sequences, 64, causal, lists, list, {{}, {}, {}, {5, 40, 9}});
            const auto all =
                testing::expand_mask(c.sequences, 64, causal, copy_lists(Exec(), dense), list, std::vector<Window>(4));
            std::vector<std::int32_t> queries = {0, 5, 69, 70, 149};
            const AttentionMass<Exec, float> mass(Exec(), c.q(), c.k(), c.sequences, causal, 0.3, queries);
            const auto shares = mass.kept(layout), full = mass.kept(dense);
            const std::int64_t keys = c.sequences.keys();
            double smallest = 1;
            for (std::size_t i = 0; i < queries.size(); ++i) {
                for (int h = 0; h < heads; ++h) {
                    double part = 0, total = 0;
                    for (std::int64_t j = 0; j < keys; ++j) {
                        double score = 0;
                        for (int e = 0; e < d; ++e) {
                            score += double(c.query[(queries[i] * heads + h) * d + e]) *
                                     double(c.key[(j * kv_heads + h / 2) * d + e]);
                        }
                        const std::int64_t at = (std::int64_t(h) * c.sequences.queries() + queries[i]) * keys + j;
                        if (all[at]) total += std::exp(0.3 * score);
                        if (kept[at]) part += std::exp(0.3 * score);
                    }
                    EXPECT_NEAR(shares[i * heads + h], part / total, 1e-12) << queries[i] << ' ' << h;
                    EXPECT_NEAR(full[i * heads + h], 1.0, 1e-12);
                    smallest = std::min(smallest, shares[i * heads + h]);
                }
            }
            EXPECT_LT(smallest, 0.9) << "a layout that keeps all tests nothing";
        }
    }
}

TEST(AttentionMass, AQueryWithoutKeysLosesNothing) {
    const Sequences<Mem> sequences({0, 5}, {0, 2});
    const Device<float> query(random<float>(5 * heads * d, 3)), key(random<float>(2 * kv_heads * d, 4));
    const auto dense = build_layout(Exec(), sequences, 64, true, std::vector<HeadMode>(heads));
    const AttentionMass<Exec, float> mass(Exec(), query.heads(5, heads), key.heads(2, kv_heads), sequences, true, 0,
                                          {0, 4});
    EXPECT_THAT(mass.kept(dense), ::testing::Each(::testing::DoubleNear(1.0, 1e-14)));
    EXPECT_THAT([&] { (void)mass.kept(build_layout(Exec(), sequences, 64, false, std::vector<HeadMode>(heads))); },
                ThrowsMessage<InvalidArgument>(HasSubstr("layout.causal")));
    EXPECT_THAT([&] { (void)mass.kept(build_layout(Exec(), sequences, 64, true, std::vector<HeadMode>(2))); },
                ThrowsMessage<InvalidArgument>(HasSubstr("layout.heads")));
    EXPECT_THAT(([&] {
                    AttentionMass<Exec, float>(Exec(), query.heads(5, heads), key.heads(2, kv_heads), sequences, true,
                                               0, {5});
                }),
                ThrowsMessage<InvalidArgument>(HasSubstr("queries[0] is 5")));
}

TEST(SpacedQueries, HoldEverySequencesLast) {
    using ::testing::ElementsAre;
    EXPECT_THAT(spaced_queries(Sequences<Mem>({0, 100}), 4), ElementsAre(24, 49, 74, 99));
    EXPECT_THAT(spaced_queries(Sequences<Mem>({0, 3}), 4), ElementsAre(0, 1, 2));
    EXPECT_THAT(spaced_queries(Sequences<Mem>({0, 75, 75, 100}), 4), ElementsAre(24, 49, 74, 99));
    EXPECT_THAT(spaced_queries(Sequences<Mem>({0, 98, 99, 100}), 1), ElementsAre(97, 98, 99));
    EXPECT_TRUE(spaced_queries(Sequences<Mem>({0, 0}), 1).empty());
    EXPECT_TRUE(spaced_queries(Sequences<Mem>(), 1).empty());
    EXPECT_THAT(
        [] {
            (void)spaced_queries(Sequences<Mem>({0, 3}), 0);
        },
        ThrowsMessage<InvalidArgument>(HasSubstr("count is 0")));
}

TEST(OutputDifference, SumsHeadByHead) {
    const int tokens = 600;
    const auto a = random<float>(tokens * heads * d, 5), b = random<float>(tokens * heads * d, 6);
    const Device<float> out(a), wanted(b);
    const auto result = output_difference<Exec, float>(Exec(), out.heads(tokens, heads), wanted.heads(tokens, heads));
    std::vector<double> error(heads), size(heads);
    for (std::size_t i = 0; i < a.size(); ++i) {
        const std::size_t h = i / d % heads;
        error[h] += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
        size[h] += double(b[i]) * b[i];
    }
    double errors = 0, sizes = 0;
    for (int h = 0; h < heads; ++h) {
        EXPECT_NEAR(result.error[h], error[h], 1e-9 * error[h]);
        EXPECT_NEAR(result.relative(h), std::sqrt(error[h] / size[h]), 1e-12);
        errors += error[h];
        sizes += size[h];
    }
    EXPECT_NEAR(result.relative(), std::sqrt(errors / sizes), 1e-12);
    const auto same = output_difference<Exec, float>(Exec(), out.heads(tokens, heads), out.heads(tokens, heads));
    EXPECT_EQ(same.relative(), 0.0);
    EXPECT_THAT(
        ([&] { output_difference<Exec, float>(Exec(), out.heads(tokens, heads), wanted.heads(tokens * heads, 1)); }),
        ThrowsMessage<InvalidArgument>(HasSubstr("out.extent(0)")));
}

}  // namespace
}  // namespace sparseattn::test
