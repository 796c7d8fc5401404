// Packs: every window once an epoch, labels and positions by document, order by counter.
#include <numeric>
#include <set>

#include "sparseattn/io/detail/token_writer.hpp"
#include "sparseattn/io/packed_batch.hpp"
#include "support.hpp"

namespace sparseattn {
namespace {

using namespace testing_io;
using testing::ElementsAre;
using testing::HasSubstr;

// Documents of the given lengths (bos 0, eos 1, between them 3, 4, 5, ...), the same in both splits.
TokenDataset make_dataset(const fs::path& file, const std::vector<int>& lengths) {
    using Split = detail::TokenDatasetWriter::Split;
    detail::TokenDatasetWriter writer(file, 1000, "bytes", {0, 1, 2});
    std::int32_t next = 3;
    for (const int length : lengths) {
        std::vector<std::int32_t> document = {0};
        while (static_cast<int>(document.size()) < length - 1) document.push_back(next++ % 997 + 3);
        document.push_back(1);
        writer.add_document(Split::train, document);
        writer.add_document(Split::validation, document);
    }
    writer.finish(nlohmann::json::object());
    return TokenDataset::open(file);
}

TEST(PackStream, CutsDocumentsLabelsAndPositions) {
    const TemporaryFolder root;
    //  stream: 0 a b 1 | 0 c d e f 1 | 0 g 1     windows of 6
    const TokenDataset dataset = make_dataset(root / "t.h5", {4, 6, 3});
    const PackStream stream(dataset.train(), 6, 1, false);
    ASSERT_EQ(stream.packs_per_epoch(), 2);
    const PackedTokens first = stream.pack(0);
    EXPECT_THAT(first.tokens, ElementsAre(0, 6, 7, 1, 0, 8));
    EXPECT_THAT(first.labels, ElementsAre(6, 7, 1, -1, 8, 9));
    EXPECT_THAT(first.positions, ElementsAre(0, 1, 2, 3, 0, 1));
    EXPECT_THAT(first.offsets, ElementsAre(0, 4, 6));
    const PackedTokens second = stream.pack(1);
    EXPECT_THAT(second.tokens, ElementsAre(9, 10, 11, 1, 0, 12));
    EXPECT_THAT(second.labels, ElementsAre(10, 11, 1, -1, 12, 1));
    EXPECT_THAT(second.positions, ElementsAre(0, 1, 2, 3, 0, 1));
    EXPECT_THAT(second.offsets, ElementsAre(0, 4, 6));
    EXPECT_EQ(stream.pack(2).tokens, first.tokens);
    // A window that ends with a document, and the last one, which ends with the stream.
    const PackStream whole(dataset.train(), 4, 1, false);
    EXPECT_THAT(whole.pack(0).labels, ElementsAre(6, 7, 1, -1));
    EXPECT_THAT(whole.pack(0).offsets, ElementsAre(0, 4));
    const TokenDataset even = make_dataset(root / "even.h5", {4, 4});
    EXPECT_THAT(PackStream(even.train(), 4, 1, false).pack(1).labels, ElementsAre(8, 9, 1, -1));
}

// Against the definition, on random documents.
TEST(PackStream, MatchesTheDefinition) {
    const TemporaryFolder root;
    for (const std::uint64_t seed : {1, 2, 3}) {
        const RandomStream random(seed, RandomPurpose::test, 0);
        std::vector<int> lengths;
        for (std::uint64_t i = 0; i < 200; ++i)
            lengths.push_back(static_cast<int>(2 + random.bits(i) % (i % 5 == 0 ? 400 : 9)));
        const TokenDataset dataset = make_dataset(root / ("t" + std::to_string(seed) + ".h5"), lengths);
        const TokenSplit& split = dataset.validation();
        std::vector<std::int32_t> all(static_cast<std::size_t>(split.tokens()));
        split.read(0, split.tokens(), all.data());
        for (const int length : {2, 7, 64, 513}) {
            const PackStream stream(split, length, seed, true);
            std::set<std::int64_t> windows;
            for (std::int64_t index = 0; index < stream.packs_per_epoch(); ++index) {
                const std::int64_t window = stream.window(index);
                windows.insert(window);
                const PackedTokens pack = stream.pack(index);
                ASSERT_EQ(pack.offsets.front(), 0);
                ASSERT_EQ(pack.offsets.back(), length);
                std::size_t piece = 0;
                for (int i = 0; i < length; ++i) {
                    const std::int64_t at = window * length + i;
                    const bool starts = split.document_offsets()[static_cast<std::size_t>(split.document_at(at))] == at;
                    if (i == pack.offsets[piece + 1]) ++piece;
                    ASSERT_EQ(i == pack.offsets[piece], starts || i == 0);
                    ASSERT_EQ(pack.positions[static_cast<std::size_t>(i)], i - pack.offsets[piece]);
                    ASSERT_EQ(pack.tokens[static_cast<std::size_t>(i)], all[static_cast<std::size_t>(at)]);
                    const bool same = at + 1 < split.tokens() && split.document_at(at) == split.document_at(at + 1);
                    ASSERT_EQ(pack.labels[static_cast<std::size_t>(i)],
                              same ? all[static_cast<std::size_t>(at) + 1] : -1);
                }
            }
            EXPECT_EQ(static_cast<std::int64_t>(windows.size()), split.tokens() / length);
        }
    }
}

TEST(PackStream, OrderIsAFunctionOfSeedAndEpoch) {
    const TemporaryFolder root;
    const TokenDataset dataset = make_dataset(root / "t.h5", std::vector<int>(300, 20));
    const auto order = [&](std::uint64_t seed, std::int64_t epoch) {
        const PackStream stream(dataset.train(), 16, seed, true);
        std::vector<std::int64_t> windows;
        for (std::int64_t i = 0; i < stream.packs_per_epoch(); ++i) {
            windows.push_back(stream.window(epoch * stream.packs_per_epoch() + i));
        }
        return windows;
    };
    EXPECT_EQ(order(1, 3), order(1, 3));
    EXPECT_NE(order(1, 0), order(1, 1));
    EXPECT_NE(order(1, 0), order(2, 0));
    EXPECT_FALSE(std::is_sorted(order(1, 0).begin(), order(1, 0).end()));
}

TEST(PackStream, RefusesShortSplits) {
    const TemporaryFolder root;
    const TokenDataset dataset = make_dataset(root / "t.h5", {10});
    EXPECT_THAT(
        message_of<InvalidArgument>([&] { return PackStream(dataset.train(), 10, 1, true); }),
        testing::AllOf(HasSubstr("the train split of "), HasSubstr("t.h5 has 10 tokens, must have at least 11")));
    EXPECT_EQ(PackStream(dataset.train(), 9, 1, true).packs_per_epoch(), 1);
    EXPECT_THROW(PackStream(dataset.train(), 1, 1, true), InvalidArgument);
    EXPECT_THROW(static_cast<void>(PackStream(dataset.train(), 5, 1, true).pack(-1)), InvalidArgument);
}

TEST(Permuted, IsAPermutationOfAnySize) {
    for (const std::int64_t size : {1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097}) {
        for (const std::uint64_t epoch : {0, 1}) {
            std::vector<bool> hit(static_cast<std::size_t>(size));
            for (std::int64_t i = 0; i < size; ++i) {
                const std::int64_t to = permuted(i, size, 5, epoch);
                ASSERT_GE(to, 0);
                ASSERT_LT(to, size);
                ASSERT_FALSE(hit[static_cast<std::size_t>(to)]);
                hit[static_cast<std::size_t>(to)] = true;
            }
        }
    }
    const std::int64_t huge = std::int64_t(1) << 40;
    EXPECT_LT(permuted(huge - 1, huge, 1, 0), huge);
    EXPECT_THROW(static_cast<void>(permuted(5, 5, 1, 0)), InvalidArgument);
}

// Neighbours are torn apart and every place gets every value equally often.
TEST(Permuted, LooksRandom) {
    const std::int64_t size = 10;
    std::vector<std::vector<int>> counts(10, std::vector<int>(10));
    int neighbours = 0;
    const int epochs = 5000;
    for (int epoch = 0; epoch < epochs; ++epoch) {
        for (std::int64_t i = 0; i < size; ++i) {
            const std::int64_t to = permuted(i, size, 11, static_cast<std::uint64_t>(epoch));
            ++counts[static_cast<std::size_t>(i)][static_cast<std::size_t>(to)];
            neighbours += i > 0 && to == permuted(i - 1, size, 11, static_cast<std::uint64_t>(epoch)) + 1 ? 1 : 0;
        }
    }
    for (const auto& row : counts) {
        for (const int count : row) EXPECT_NEAR(count, epochs / 10.0, 6 * std::sqrt(epochs / 10.0));
    }
    EXPECT_NEAR(neighbours, epochs * 0.9, 6 * std::sqrt(epochs * 0.9));
}

// Values are part of the run contract: a restarted run goes on with the same data.
TEST(Permuted, KeepsItsValues) {
    std::vector<std::int64_t> values;
    for (std::int64_t i = 0; i < 8; ++i) values.push_back(permuted(i, 1000, 1, 0));
    EXPECT_THAT(values, ElementsAre(205, 97, 363, 938, 293, 360, 463, 508));
}

}  // namespace
}  // namespace sparseattn
