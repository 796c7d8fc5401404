// Attention of a sequence-parallel group against attention on one rank: any head counts, lengths, documents, branches.
#include "sequence_case.hpp"

#include <gmock/gmock.h>

#include "support/kokkos_tools.hpp"
#include "support/links.hpp"

namespace sparseattn::test {
namespace {

const LayerSelector dense{FullOptions{64, true}, {}};
const LayerSelector streaming{StreamingOptions{64, 20, 90, Granularity::token, 0, true}, {}};
const std::vector<float> gates{1.0F, 0.0F, 0.25F, 0.0F, 0.5F, 0.75F, 0.0F, 1.0F};

LayerSelector xattention() {
    XAttentionOptions options;
    options.block = 64;
    options.threshold = 0.6;
    return {options, {}};
}

// Gates of key/value heads, as training has them.
std::vector<float> gates_of_groups(int kv_heads) {
    std::vector<float> expanded;
    for (int h = 0; h < case_heads; ++h) expanded.push_back(gates[h / (case_heads / kv_heads)]);
    return expanded;
}

// one_rank(c), computed on the first rank only.
template <class T>
LayerResults yardstick(const SequenceCase& c, const Communicator& group) {
    LayerResults whole;
    const auto share = [&](const char* name, std::size_t size) {
        std::vector<double>& values = whole[name];
        values.resize(size);
        group.broadcast(values.data(), static_cast<std::int64_t>(size), 0);
    };
    if (group.rank() == 0) whole = one_rank<T>(c);
    const std::size_t token = std::size_t{case_head_dim} * static_cast<std::size_t>(c.tokens());
    share("out", token * case_heads);
    share("dquery", token * case_heads);
    share("dkey", token * c.kv_heads);
    share("dvalue", token * c.kv_heads);
    if (!c.gate.empty()) share("dgate", c.gate.size());
    return whole;
}

template <class T>
void expect_same(const SequenceCase& c, double tolerance, const SequenceParallelOptions& options = {}) {
    const Communicator group = Communicator::world();
    SequenceParallelAttention<Exec, T> attention(Exec(), group, c.config(), options);
    const LayerResults mine = one_of_ranks(attention, group, c);
    const LayerResults whole = yardstick<T>(c, group);
    std::string where;
    const double error =
        worst_error(mine, whole, c.tokens(), partition(c.tokens(), group.rank(), group.size()), &where);
    EXPECT_LE(error, tolerance) << where;
}

constexpr double float_tolerance = 1e-5, double_tolerance = 1e-13;

// Messages are bf16: what arrives is what was sent, so that outputs are the same; gradients of keys and values that
// several ranks compute are rounded on each and once more in their sum.
constexpr double bf16_tolerance = 2e-2;

// Data in device memory gives the same bits on whatever path it travels. (In host memory there is one path.)
TEST(SequenceParallel, LinksAndHostMemoryGiveTheSameBits) {
    const Communicator group = Communicator::world();
    const MessagePath path = chosen_path();
    if (path == MessagePath::direct) return;
    for (const LayerSelector& selector : {dense, streaming, xattention()}) {
        for (const std::vector<float>& gate : {std::vector<float>(), gates}) {
            const SequenceCase c{odd_documents(1001), 4, selector, gate};
            LayerResults results[2];
            for (const bool staged : {false, true}) {
                SequenceParallelOptions options;
                options.messages = staged ? MessagePath::staged : path;
                SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config(), options);
                results[staged] = one_of_ranks(attention, group, c);
            }
            EXPECT_EQ(results[0], results[1]);
        }
    }
}

class HeadCounts : public ::testing::TestWithParam<std::tuple<int, int>> {};
INSTANTIATE_TEST_SUITE_P(All, HeadCounts,
                         ::testing::Combine(::testing::Values(1000, 1001), ::testing::Values(1, 2, 4, 8)),
                         [](const auto& info) {
                             return concat("Tokens", std::get<0>(info.param), "Kv", std::get<1>(info.param));
                         });

TEST_P(HeadCounts, Dense) {
    const auto [tokens, kv] = GetParam();
    expect_same<float>({odd_documents(tokens), kv, dense, {}}, float_tolerance);
}
TEST_P(HeadCounts, StreamingByHalo) {
    const auto [tokens, kv] = GetParam();
    expect_same<float>({odd_documents(tokens), kv, streaming, {}}, float_tolerance);
}
TEST_P(HeadCounts, Gated) {
    const auto [tokens, kv] = GetParam();
    expect_same<float>({odd_documents(tokens), kv, streaming, gates_of_groups(kv)}, float_tolerance);
}
TEST_P(HeadCounts, GatedHeadByHead) {
    // Heads with and without halo share key/value heads.
    const auto [tokens, kv] = GetParam();
    expect_same<float>({odd_documents(tokens), kv, streaming, gates}, float_tolerance);
}
TEST_P(HeadCounts, XAttention) {
    const auto [tokens, kv] = GetParam();
    expect_same<float>({odd_documents(tokens), kv, xattention(), {}}, float_tolerance);
}
TEST_P(HeadCounts, GatedXAttention) {
    const auto [tokens, kv] = GetParam();
    expect_same<float>({odd_documents(tokens), kv, xattention(), gates_of_groups(kv)}, float_tolerance);
}

TEST_P(HeadCounts, Bf16) {
    const auto [tokens, kv] = GetParam();
    expect_same<bf16>({odd_documents(tokens), kv, dense, {}}, bf16_tolerance);
    expect_same<bf16>({odd_documents(tokens), kv, streaming, gates}, bf16_tolerance);
    expect_same<bf16>({odd_documents(tokens), kv, xattention(), gates_of_groups(kv)}, bf16_tolerance);
}

TEST(SequenceParallel, Bf16SendsHalfTheBytes) {
    const Communicator group = Communicator::world();
    const SequenceCase c{odd_documents(1001), 4, streaming, gates};
    SequenceParallelAttention<Exec, float> single(Exec(), group, c.config());
    SequenceParallelAttention<Exec, bf16> rounded(Exec(), group, c.config());
    (void)one_of_ranks(single, group, c);
    (void)one_of_ranks(rounded, group, c);
    EXPECT_EQ(2 * rounded.exchanged().heads, single.exchanged().heads);
    EXPECT_EQ(2 * rounded.exchanged().halo, single.exchanged().halo);
}

TEST(SequenceParallel, LongPacks) {
    expect_same<float>({{0, 4096}, 2, dense, {}}, float_tolerance);
    expect_same<float>({odd_documents(4096), 4, streaming, gates_of_groups(4)}, float_tolerance);
    expect_same<float>({odd_documents(4096), 1, xattention(), {}}, float_tolerance);
}

TEST(SequenceParallel, DoublesToTheirOwnRounding) {
    for (const int kv : {1, 2, 8}) {
        expect_same<double>({odd_documents(203), kv, dense, {}}, double_tolerance);
        expect_same<double>({odd_documents(203), kv, {StreamingOptions{64, 5, 33}, {}}, {}}, double_tolerance);
        expect_same<double>({odd_documents(203), kv, {StreamingOptions{64, 5, 33}, {}}, gates}, double_tolerance);
    }
}

TEST(SequenceParallel, WindowsLongerThanShardsAndShorterThanSinks) {
    for (const auto& [sink, local] : {std::pair{0, 1}, {3, 1}, {0, 40}, {64, 600}, {600, 3}, {1000, 1000}}) {
        expect_same<float>({odd_documents(1001), 4, {StreamingOptions{64, sink, local}, {}}, {}}, float_tolerance);
    }
    // Fewer tokens than a block on each rank; one token on some.
    expect_same<float>({{0, 1, 4, 9}, 2, {StreamingOptions{64, 1, 2}, {}}, {}}, float_tolerance);
    expect_same<float>({{0, 0, 2, 2, 4, 4}, 2, streaming, gates}, float_tolerance);
}

TEST(SequenceParallel, HeadsWithModesOfTheirOwn) {
    // Dense, two windows, block granularity and a dense tail side by side; the rest selected.
    LayerSelector selector = xattention();
    selector.heads.fixed.resize(case_heads);
    selector.heads.fixed[0] = HeadMode::dense();
    selector.heads.fixed[1] = HeadMode::stream(10, 100);
    selector.heads.fixed[2] = HeadMode::stream(40, 30);
    selector.heads.fixed[3] = HeadMode::stream(64, 128, Granularity::block);
    selector.heads.fixed[4] = HeadMode::stream(10, 100, Granularity::token, 50);
    for (const int kv : {1, 2, 4, 8}) {
        expect_same<float>({odd_documents(1001), kv, selector, {}}, float_tolerance);
        selector.heads.share_groups = !selector.heads.share_groups;
    }
}

TEST(SequenceParallel, OtherSelectorsAndTheirTables) {
    XAttentionOptions thresholds = std::get<XAttentionOptions>(xattention().method);
    thresholds.thresholds = {0.3, 0.9, 0.5, 0.7, 0.2, 1.0, 0.6, 0.4};
    MInferenceOptions patterns;
    patterns.heads.resize(case_heads, {MInferencePattern::Type::vertical_and_slash, 30, 80, 1});
    patterns.heads[2] = {MInferencePattern::Type::stream_llm, 10, 90, 1};
    patterns.heads[5] = {MInferencePattern::Type::block_sparse, 4, 0, 1};
    FlexPrefillOptions flex;
    flex.block = 64;
    flex.min_budget = 64;
    for (const SelectorOptions& method :
         {SelectorOptions(thresholds), SelectorOptions(patterns), SelectorOptions(flex)}) {
        for (const int kv : {2, 8}) expect_same<float>({odd_documents(1001), kv, {method, {}}, {}}, float_tolerance);
    }
}

TEST(SequenceParallel, PiecesAndHaloAreAMatterOfSpeedOnly) {
    for (const int pieces : {1, 3, 8}) {
        for (const bool halo : {false, true}) {
            SequenceParallelOptions options;
            options.pieces = pieces;
            options.halo = halo;
            expect_same<float>({odd_documents(1001), 4, streaming, gates_of_groups(4)}, float_tolerance, options);
        }
    }
}

TEST(SequenceParallel, SelectedLayoutsAreThoseOfOneRank) {
    const Communicator group = Communicator::world();
    for (const int kv : {1, 2, 4, 8}) {
        const SequenceCase c{odd_documents(1001), kv, xattention(), {}};
        SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config());
        one_of_ranks(attention, group, c);
        HostLists whole;
        one_rank<float>(c, &whole);
        const auto lists_of = [](const HostLists& lists, std::int64_t list, std::int64_t rows) {
            std::vector<std::vector<std::int32_t>> result;
            for (std::int64_t row = list * rows; row < (list + 1) * rows; ++row) {
                result.emplace_back(lists.columns.begin() + lists.offsets[row],
                                    lists.columns.begin() + lists.offsets[row + 1]);
            }
            return result;
        };
        const std::int64_t rows = (static_cast<std::int64_t>(whole.offsets.size()) - 1) / case_heads;
        std::size_t checked = 0;
        for (const auto& piece : attention.layouts(0)) {
            for (std::size_t i = 0; i < piece.heads.size(); ++i) {
                EXPECT_EQ(lists_of(piece.lists, piece.head_list[i], rows), lists_of(whole, piece.heads[i], rows));
                ++checked;
            }
        }
        EXPECT_EQ(checked, attention.placement(0)[group.rank()].size());
    }
}

TEST(SequenceParallel, SelectedHeadsArePlacedByWhatTheyVisited) {
    const Communicator group = Communicator::world();
    LayerSelector selector = xattention();
    std::get<XAttentionOptions>(selector.method).thresholds = {1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1};
    const SequenceCase c{{0, 1001}, 8, selector, {}};
    SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config());
    one_of_ranks(attention, group, c);
    const std::vector<double> visited = attention.visited_blocks();
    const Sequences<Mem> sequences(c.offsets);
    const auto dense_blocks = build_layout(Exec(), sequences, 64, true, {HeadMode::dense()}).columns.extent(0);
    ASSERT_EQ(visited.size(), std::size_t{case_heads});
    EXPECT_EQ(visited[0], static_cast<double>(dense_blocks));
    for (int h = 1; h < case_heads; ++h) EXPECT_LT(visited[h], 0.5 * visited[0]);

    SequenceParallelTask task = c.task();
    task.visited = visited;
    attention.begin_pack(c.offsets, task);
    const auto placement = attention.placement(0);
    double most = 0, total = 0;
    for (const auto& heads : placement) {
        double load = 0;
        for (const int h : heads) load += visited[h];
        most = std::max(most, load);
        total += load;
    }
    EXPECT_LE(most, std::max(visited[0], total / group.size() + *std::max_element(visited.begin() + 1, visited.end())));
}

TEST(SequenceParallel, SameBitsAgain) {
    const Communicator group = Communicator::world();
    for (const auto& c : {SequenceCase{odd_documents(1001), 1, streaming, gates},
                          SequenceCase{odd_documents(1001), 2, xattention(), {}}}) {
        SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config()), other(Exec(), group, c.config());
        const LayerResults first = one_of_ranks(attention, group, c);
        EXPECT_EQ(first, one_of_ranks(attention, group, c));
        EXPECT_EQ(first, one_of_ranks(other, group, c));
    }
}

TEST(SequenceParallel, SmallPiecesOfMessages) {
    Communicator group = Communicator::world();
    group.set_chunk(1000);
    const SequenceCase c{odd_documents(1001), 2, streaming, gates_of_groups(2)};
    SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config());
    const LayerResults mine = one_of_ranks(attention, group, c);
    EXPECT_LE(
        worst_error(mine, yardstick<float>(c, group), c.tokens(), partition(c.tokens(), group.rank(), group.size())),
        float_tolerance);
}

TEST(SequenceParallel, SteadyStateAllocatesNothingAndNamesItsKernels) {
    const Communicator group = Communicator::world();
    const SequenceCase c{odd_documents(1001), 2, streaming, gates_of_groups(2)};
    SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config());
    one_of_ranks(attention, group, c);
    const std::int64_t held = attention.allocated();
    one_of_ranks(attention, group, c, [](const auto& pass) {
        const sparseattn::testing::KokkosRecording recording;
        pass();
        EXPECT_TRUE(recording.allocations().empty()) << recording.allocations().front();
        EXPECT_FALSE(recording.kernels().empty());
        for (const auto& kernel : recording.kernels()) EXPECT_THAT(kernel.label, ::testing::StartsWith("SparseAttn::"));
    });
    EXPECT_EQ(attention.allocated(), held);
}

// ---- volume ----------------------------------------------------------------------------------------------------

ExchangedBytes bytes_of(const SequenceCase& c, SequenceParallelOptions options = {}) {
    const Communicator group = Communicator::world();
    SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config(), options);
    one_of_ranks(attention, group, c);
    return attention.exchanged();
}

TEST(Volume, EvenHeadsFollowTheFormula) {
    const Communicator group = Communicator::world();
    const std::int64_t ranks = group.size(), d = case_head_dim, tokens = 960 / ranks;
    for (const std::int64_t kv : {4, 8}) {
        if (case_heads % ranks != 0 || kv % ranks != 0) continue;
        const auto bytes = bytes_of({{0, 960}, static_cast<int>(kv), dense, {}});
        // (P - 1) / P of q, k, v there and out back; the same again for dout there and dq, dk, dv back.
        const std::int64_t forward = (ranks - 1) * tokens * d * (2 * case_heads + 2 * kv) * 4 / ranks;
        EXPECT_EQ(bytes.heads, 2 * forward);
        EXPECT_EQ(bytes.halo, 0);
    }
}

TEST(Volume, UnevenHeadsSendAKeyOnceToEveryOwner) {
    const Communicator group = Communicator::world();
    const int ranks = group.size(), rank = group.rank();
    for (const int kv : {1, 2, 4, 8}) {
        const SequenceCase c{odd_documents(1001), kv, dense, {}};
        SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config());
        one_of_ranks(attention, group, c);
        const auto placement = attention.placement(0);
        const auto keys = [&](int r) {
            std::vector<int> used;
            for (const int h : placement[r]) used.push_back(h / (case_heads / kv));
            return std::unique(used.begin(), used.end()) - used.begin();
        };
        const auto shard = partition(c.tokens(), rank, ranks).count();
        std::int64_t there = 0, elsewhere = 0;  // query heads and key/value heads of other ranks
        for (int r = 0; r < ranks; ++r) {
            if (r == rank) continue;
            there += static_cast<std::int64_t>(placement[r].size());
            elsewhere += keys(r);
        }
        const auto mine = static_cast<std::int64_t>(placement[rank].size());
        const std::int64_t forward = shard * (there + 2 * elsewhere) + (c.tokens() - shard) * mine;
        const std::int64_t backward = shard * there + (c.tokens() - shard) * (mine + 2 * keys(rank));
        EXPECT_EQ(attention.exchanged().heads, (forward + backward) * case_head_dim * 4);
    }
}

TEST(Volume, HaloDoesNotDependOnTheNumberOfRanks) {
    const Communicator group = Communicator::world();
    const std::int64_t d = case_head_dim, kv = 4, sink = 20, local = 90;
    const auto bytes = bytes_of({{0, 1000}, static_cast<int>(kv), streaming, {}});
    EXPECT_EQ(bytes.heads, 0);
    // Window and sinks of one document, from the left: each rank but the last gives its last local - 1 keys, the first
    // gives the sinks to all others; each rank but the first gives the gradients back.
    const std::int64_t row = 2 * kv * d * 4, last = group.size() - 1;
    std::int64_t rows = group.rank() < last ? local - 1 : 0;
    if (group.rank() == 0) rows += last * sink;
    if (group.rank() > 0) rows += local - 1 + sink;
    EXPECT_EQ(bytes.halo, rows * row);
}

TEST(Volume, OneRankSendsNothing) {
    if (Communicator::world().size() > 1) return;
    const auto bytes = bytes_of({odd_documents(1001), 2, streaming, gates});
    EXPECT_EQ(bytes.heads + bytes.halo, 0);
}

// ---- preconditions ---------------------------------------------------------------------------------------------

template <class Call>
std::string message(const Call& call) {
    try {
        call();
    } catch (const InvalidArgument& error) {
        return error.what();
    }
    return "nothing was thrown";
}

TEST(SequenceParallel, BadArgumentsAreNamed) {
    using ::testing::HasSubstr;
    const Communicator group = Communicator::world();
    const SequenceCase c{{0, 100}, 2, streaming, gates};
    SequenceParallelAttention<Exec, float> attention(Exec(), group, c.config());
    EXPECT_THAT(message([&] { attention.prepare(c.config(), {1, true, false}); }), HasSubstr("begin_pack"));
    EXPECT_THAT(message([&] { attention.begin_pack({}, c.task()); }), HasSubstr("offsets"));
    EXPECT_THAT(message([&] { attention.begin_pack({0, 0}, c.task()); }), HasSubstr("number of ranks"));
    EXPECT_THAT(message([&] { attention.begin_pack({0, 100}, {}); }), HasSubstr("task.layers.size()"));
    EXPECT_THAT(message([&] {
                    attention.begin_pack({0, 100}, {{dense, dense}, {}});
                }),
                HasSubstr("task.layers.size()"));
    EXPECT_THAT(message([&] { attention.begin_pack({0, 100}, {{dense}, {0.5F}}); }), HasSubstr("task.gate.size()"));
    EXPECT_THAT(message([&] {
                    attention.begin_pack({0, 100}, {{dense}, std::vector<float>(8, 2.0F)});
                }),
                HasSubstr("task.gate[0]"));
    EXPECT_THAT(message([&] {
                    attention.begin_pack({0, 100}, {{{FullOptions{64, false}, {}}}, {}});
                }),
                HasSubstr("causal"));
    EXPECT_THAT(message([&] {
                    attention.begin_pack({0, 100}, {{dense}, {}, {1.0}});
                }),
                HasSubstr("task.visited.size()"));
    FlexPrefillOptions interleaved;
    interleaved.gqa_interleave = true;
    EXPECT_THAT(message([&] {
                    attention.begin_pack({0, 100}, {{{interleaved, {}}}, {}});
                }),
                HasSubstr("gqa_interleave"));
    attention.begin_pack(c.offsets, c.task());
    EXPECT_THAT(message([&] { attention.prepare(c.config(), {101, true, false}); }), HasSubstr("pass.tokens"));
    SequenceParallelOptions options;
    options.pieces = 0;
    EXPECT_THAT(message([&] { SequenceParallelAttention<Exec, float>(Exec(), group, c.config(), options); }),
                HasSubstr("options.pieces"));
}

}  // namespace
}  // namespace sparseattn::test
