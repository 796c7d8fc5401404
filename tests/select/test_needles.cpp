// Recall of planted needles, by method and density (perf/bench_needles prints the table).
#include "select/needles.hpp"

#include <gmock/gmock.h>

#include "sparseattn/core/error.hpp"

namespace sparseattn::test {
namespace {

using Exec = Kokkos::DefaultExecutionSpace;

std::vector<Needles> samples_of(const NeedleKind& kind) {
    std::vector<Needles> samples;
    for (const std::uint64_t seed : {900, 901, 902}) samples.emplace_back(4096, 64, kind, seed);
    return samples;
}

const NeedleKind sentences = {16, 16, false}, single_keys = {16, 1, false}, asked_at_end = {4, 16, true};

NeedleResult find(const std::string& method, const std::vector<Needles>& samples) {
    return find_needles(Exec(), method, samples);
}

// What the other tests rest on: exact attention needs the needles, and their rows are not near them.
TEST(Needles, ExactAttentionNeedsThem) {
    for (const NeedleKind& kind : {sentences, single_keys, asked_at_end}) {
        for (const Needles& needles : samples_of(kind)) {
            EXPECT_GT(needles.least_share(), 0.4);
            for (std::size_t n = 0; n < needles.keys.size(); ++n) {
                EXPECT_GE(needles.queries[n] - needles.keys[n], 512);
            }
        }
    }
}

TEST(Needles, FullFindsAllAndStreamingOnlyNearOnes) {
    const auto samples = samples_of(asked_at_end);
    EXPECT_EQ(find("full", samples).recall, 1);
    EXPECT_EQ(find("full", samples).density, 1);
    EXPECT_LT(find("streaming:sink=64,local=512", samples).recall, 0.2);
}

// Sentences of 16 keys that 16 queries ask for: block masses see them.
TEST(Needles, XAttentionFindsSentences) {
    for (const NeedleKind& kind : {sentences, asked_at_end}) {
        const auto samples = samples_of(kind);
        const NeedleResult fine = find("xattention:stride=8,threshold=0.9", samples);
        EXPECT_GT(fine.recall, 0.95);
        EXPECT_LT(fine.density, 0.25);
        const NeedleResult coarse = find("xattention:stride=16,threshold=0.95", samples);
        EXPECT_GT(coarse.recall, 0.9);
        EXPECT_LT(coarse.density, 0.3);
        // One block is all there is to leave out: half the mass loses the needles.
        EXPECT_LT(find("xattention:stride=8,threshold=0.3", samples).recall, 0.5);
    }
}

TEST(Needles, RecallAndDensityRiseWithTheThreshold) {
    for (const NeedleKind& kind : {sentences, single_keys}) {
        const auto samples = samples_of(kind);
        NeedleResult last;
        for (const char* threshold : {"0.2", "0.5", "0.8", "0.9", "0.95", "0.99", "1"}) {
            const NeedleResult result = find(concat("xattention:stride=16,threshold=", threshold), samples);
            EXPECT_GE(result.recall, last.recall) << threshold;
            EXPECT_GE(result.density, last.density) << threshold;
            last = result;
        }
        EXPECT_EQ(last.recall, 1);
    }
}

// A single key is one pair of the S in a strided score: only a stride of 1, exact attention mass, is sure to see it.
TEST(Needles, SingleKeysNeedStrideOne) {
    auto samples = samples_of(single_keys);
    samples.erase(samples.begin() + 1, samples.end());
    const NeedleResult exact = find("xattention:stride=1,threshold=0.95", samples);
    EXPECT_GT(exact.recall, 0.95);
    EXPECT_LT(exact.density, 0.3);
}

// MInference and FlexPrefill read the last queries only: they find what those ask for.
TEST(Needles, TheLastQueriesSpeakForMInferenceAndFlexPrefill) {
    const auto at_end = samples_of(asked_at_end), spread = samples_of(sentences);
    const NeedleResult minference = find("minference:adaptive_budget=0.05", at_end);
    EXPECT_GT(minference.recall, 0.95);
    EXPECT_LT(minference.density, 0.3);
    const NeedleResult flexprefill = find("flexprefill:gamma=0.95", at_end);
    EXPECT_GT(flexprefill.recall, 0.7);
    EXPECT_LT(flexprefill.density, 0.4);
    EXPECT_LT(find("minference:adaptive_budget=0.05", spread).recall, 0.3);
}

}  // namespace
}  // namespace sparseattn::test
