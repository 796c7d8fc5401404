#include "select/support.hpp"
#include "sparseattn/select/xattention.hpp"

namespace sparseattn::test {
namespace {

using Options = XAttentionOptions;

template <class Exec, class T = float>
std::vector<HeadLists> run(const Problem<T>& problem, const Options& options, const EstimatedHeads& estimate = {}) {
    const Exec exec;
    const OnDevice<Exec, T> inputs(problem);
    Workspace<typename Exec::memory_space> workspace;
    const auto layout =
        select_xattention<Exec, T>(exec, inputs.q(), inputs.k(), inputs.sequences, options, workspace, estimate);
    validate(exec, inputs.sequences, layout);
    return head_lists(exec, layout);
}

// Masses of one row by the definition: every pair of a tile one by one, visibility asked of every pair of its tokens.
template <class T>
std::vector<double> reference_masses(Problem<T>& problem, const Options& options, int s, int head, int row) {
    const int S = options.stride, nq = problem.queries(s), nk = problem.keys(s), shift = nk - nq;
    const int columns = (nk + S - 1) / S, last = std::min((row + 1) * options.block, nq) - 1 + shift;
    const int blocks = options.causal ? last / options.block + 1 : (nk + options.block - 1) / options.block;
    std::vector<double> mass(blocks, 0.0);
    for (int i = row * options.block / S; i * S < std::min((row + 1) * options.block, nq); ++i) {
        std::vector<double> p(columns, 0.0);
        double top = -INFINITY, total = 0;
        std::vector<bool> visible(columns, false);
        for (int j = 0; j < columns; ++j) {
            for (int a = i * S; a < std::min((i + 1) * S, nq); ++a) {
                for (int b = j * S; b < std::min((j + 1) * S, nk); ++b) {
                    if (!options.causal || b <= a + shift) visible[j] = true;
                }
            }
            if (!visible[j]) continue;
            for (int t = 0; t < S; ++t) {
                const int a = i * S + (options.mode == Options::Mode::slash ? t : S - 1 - t), b = j * S + t;
                if (a < nq && b < nk) p[j] += problem.dot(s, a, head, b);
            }
            p[j] /= std::sqrt(double(problem.head_dim)) * S * options.norm;
            top = std::max(top, p[j]);
        }
        for (int j = 0; j < columns; ++j) {
            if (visible[j]) total += std::exp(p[j] - top);
        }
        for (int j = 0; j < columns; ++j) {
            if (visible[j]) mass[j * S / options.block] += std::exp(p[j] - top) / total;
        }
    }
    return mass;
}

template <class T>
std::vector<std::int32_t> forced_blocks(const Problem<T>& problem, const Options& options, int s, int row) {
    std::vector<std::int32_t> forced;
    const int nq = problem.queries(s), shift = problem.keys(s) - nq;
    const int blocks = (problem.keys(s) + options.block - 1) / options.block;
    for (int J = 0; J < blocks; ++J) {
        bool own = false;
        for (int i = row * options.block; i < std::min((row + 1) * options.block, nq); ++i) {
            own = own || (i + shift >= 0 && (i + shift) / options.block == J);
        }
        if ((options.keep_sink && J == 0) || (options.keep_recent && own)) forced.push_back(J);
    }
    return forced;
}

// Every row against the reference; returns how many of them are the reference's set exactly, of all.
template <class T>
std::pair<int, int> compare(Problem<T>& problem, const Options& options, const std::vector<HeadLists>& heads) {
    int equal = 0, all = 0;
    for (int h = 0; h < problem.heads; ++h) {
        int at = 0;
        for (int s = 0; s < problem.sequences(); ++s) {
            for (int row = 0; row * options.block < problem.queries(s); ++row, ++at) {
                const auto mass = reference_masses(problem, options, s, h, row);
                const auto forced = forced_blocks(problem, options, s, row);
                const double tau = options.thresholds.empty() ? options.threshold : options.thresholds[h];
                EXPECT_EQ(wrong_prefix(mass, heads[h].blocks[at], forced, std::min(tau, 1.0), 2e-5), "")
                    << "head " << h << " sequence " << s << " row " << row;
                double total = 0;
                for (const double m : mass) total += m;
                equal += heads[h].blocks[at] == smallest_prefix(mass, forced, tau * total) ? 1 : 0;
                ++all;
            }
        }
    }
    return {equal, all};
}

template <class Exec>
class XAttention : public testing::Test {};
TYPED_TEST_SUITE(XAttention, HostSpaces);

TYPED_TEST(XAttention, IsTheDirectSumOnEveryKindOfInput) {
    int seed = 0;
    for (const Kind kind : every_kind) {
        // Lengths no block divides, one block, one token, none; chunked prefill at and off the grid.
        for (const auto& keys : {std::vector<std::int32_t>{0, 500, 500, 501, 565, 800},
                                 std::vector<std::int32_t>{0, 628, 700, 711, 843, 1078}}) {
            Problem<float> problem(4, 2, 32, {0, 500, 500, 501, 565, 800}, keys, kind, ++seed);
            for (const auto mode : {Options::Mode::antidiagonal, Options::Mode::slash}) {
                Options options;
                options.block = 64;
                options.stride = seed % 2 == 0 ? 8 : 16;
                options.mode = mode;
                options.threshold = 0.8;
                const auto [equal, all] = compare(problem, options, run<TypeParam>(problem, options));
                EXPECT_GE(equal, all - all / 50);
            }
        }
    }
}

TYPED_TEST(XAttention, StridesBlocksChunksAndOptions) {
    Problem<float> problem(2, 1, 32, {0, 333, 600}, {0, 640, 911}, Kind::spikes, 5);
    const auto check = [&](const auto& change) {
        Options options;
        options.threshold = 0.7;
        change(options);
        const auto [equal, all] = compare(problem, options, run<TypeParam>(problem, options));
        EXPECT_GE(equal, all - 1);
    };
    for (const int stride : {1, 2, 4, 32, 64, 128}) check([=](Options& o) { o.stride = stride; });
    check([](Options& o) { o.stride = 64, o.block = 64; });
    check([](Options& o) { o.chunk_rows = 1; });
    check([](Options& o) { o.chunk_rows = 20, o.block = 64; });
    check([](Options& o) { o.causal = false; });
    check([](Options& o) { o.causal = false, o.block = 64, o.stride = 8; });
    check([](Options& o) { o.keep_sink = false; });
    check([](Options& o) { o.keep_recent = false; });
    check([](Options& o) { o.keep_recent = false, o.keep_sink = false; });
    check([](Options& o) { o.norm = 0.5; });
    check([](Options& o) { o.thresholds = {0.3, 0.99}; });
    check([](Options& o) { o.thresholds = {0.05, 1.5}; });
}

TYPED_TEST(XAttention, QueriesMayOutnumberKeysWithoutCausality) {
    Problem<float> problem(2, 2, 32, {0, 500, 560}, {0, 200, 200}, Kind::random, 7);
    Options options;
    options.causal = false;
    options.block = 64;
    options.keep_recent = false;
    const auto heads = run<TypeParam>(problem, options);
    EXPECT_TRUE(heads[0].blocks.back().empty());  // no keys at all
    const auto [equal, all] = compare(problem, options, heads);
    EXPECT_GE(equal, all - 1);
}

TYPED_TEST(XAttention, Bf16InputsAreReadExactly) {
    Problem<bf16> problem(4, 1, 64, {0, 500, 650}, {0, 500, 810}, Kind::local, 11);
    Options options;
    options.block = 64;
    const auto [equal, all] = compare(problem, options, run<TypeParam, bf16>(problem, options));
    EXPECT_GE(equal, all - 1);
}

TYPED_TEST(XAttention, ThresholdOfOneKeepsEveryCausalBlock) {
    Problem<float> problem(2, 1, 32, {0, 300, 400}, {0, 430, 530}, Kind::random, 13);
    Options options;
    options.block = 64;
    options.threshold = 1;
    const auto heads = run<TypeParam>(problem, options);
    int at = 0;
    for (int s = 0; s < 2; ++s) {
        for (int row = 0; row * 64 < problem.queries(s); ++row, ++at) {
            const int last = std::min((row + 1) * 64, problem.queries(s)) - 1 + problem.keys(s) - problem.queries(s);
            EXPECT_EQ(static_cast<int>(heads[0].blocks[at].size()), last / 64 + 1);
        }
    }
}

TYPED_TEST(XAttention, IsMonotoneInTheThreshold) {
    for (const Kind kind : every_kind) {
        Problem<float> problem(2, 2, 32, {0, 900}, {0, 900}, kind, 17);
        Options options;
        options.block = 64;
        std::vector<HeadLists> before;
        for (const double tau : {0.05, 0.3, 0.5, 0.8, 0.9, 0.95, 0.999, 1.0}) {
            options.threshold = tau;
            auto now = run<TypeParam>(problem, options);
            for (std::size_t h = 0; h < before.size(); ++h) {
                for (std::size_t row = 0; row < now[h].blocks.size(); ++row) {
                    EXPECT_TRUE(std::includes(now[h].blocks[row].begin(), now[h].blocks[row].end(),
                                              before[h].blocks[row].begin(), before[h].blocks[row].end()));
                }
            }
            before = std::move(now);
        }
    }
}

TYPED_TEST(XAttention, EqualMassesTakeTheLowerBlocks) {
    Problem<float> problem(1, 1, 32, {0, 640}, {0, 640}, Kind::random, 19);
    std::fill(problem.query.begin(), problem.query.end(), 0.0F);
    Options options;
    options.block = 64;
    options.causal = false;
    options.keep_sink = options.keep_recent = false;
    options.threshold = 0.45;  // of ten equal blocks
    auto rows = run<TypeParam>(problem, options)[0].blocks;
    for (const auto& row : rows) EXPECT_THAT(row, testing::ElementsAre(0, 1, 2, 3, 4));
    options.keep_recent = true;
    rows = run<TypeParam>(problem, options)[0].blocks;
    EXPECT_THAT(rows[7], testing::ElementsAre(0, 1, 2, 3, 7));
    EXPECT_THAT(rows[2], testing::ElementsAre(0, 1, 2, 3, 4));
}

// A chunk that begins on the grid gives the rows that the whole prefill gives.
TYPED_TEST(XAttention, ChunkedPrefillGivesTheRowsOfTheWhole) {
    for (const Kind kind : {Kind::random, Kind::needle, Kind::local}) {
        Problem<float> whole(2, 1, 32, {0, 1000}, {0, 1000}, kind, 23);
        Problem<float> chunk(2, 1, 32, {0, 1000 - 384}, {0, 1000}, kind, 23);
        chunk.key = whole.key;
        chunk.query.assign(whole.query.begin() + 384 * 2 * 32, whole.query.end());
        const auto all = run<TypeParam>(whole, {}), tail = run<TypeParam>(chunk, {});
        for (int h = 0; h < 2; ++h) {
            EXPECT_EQ(tail[h].blocks, decltype(all[h].blocks)(all[h].blocks.begin() + 3, all[h].blocks.end()));
        }
    }
}

TYPED_TEST(XAttention, SequencesOfABatchDoNotSeeEachOther) {
    Problem<float> batch(4, 2, 32, {0, 400, 400, 731}, {0, 400, 400, 731}, Kind::spikes, 29);
    Problem<float> alone(4, 2, 32, {0, 331}, {0, 331}, Kind::spikes, 29);
    alone.query.assign(batch.query.begin() + 400 * 4 * 32, batch.query.end());
    alone.key.assign(batch.key.begin() + 400 * 2 * 32, batch.key.end());
    Options options;
    options.block = 64;
    const auto of_batch = run<TypeParam>(batch, options), of_alone = run<TypeParam>(alone, options);
    for (int h = 0; h < 4; ++h) {
        EXPECT_EQ(of_alone[h].blocks,
                  decltype(of_alone[h].blocks)(of_batch[h].blocks.begin() + 7, of_batch[h].blocks.end()));
    }
}

TYPED_TEST(XAttention, EstimatesOnlyTheHeadsAskedFor) {
    Problem<float> problem(4, 2, 32, {0, 700}, {0, 700}, Kind::spikes, 31);
    const auto all = run<TypeParam>(problem, {}), some = run<TypeParam>(problem, {}, EstimatedHeads({1, 2}));
    const auto none = run<TypeParam>(problem, {}, std::vector<std::int32_t>{});
    for (const int h : {1, 2}) EXPECT_EQ(some[h], all[h]);
    for (const int h : {0, 3}) {
        for (const auto& row : some[h].blocks) EXPECT_TRUE(row.empty());
    }
    for (const auto& row : none[0].blocks) EXPECT_TRUE(row.empty());
    // A head that is not estimated is not read: garbage in its queries changes nothing.
    for (int i = 0; i < 700; ++i) problem.q(0, i, 0, 3) = problem.q(0, i, 3, 0) = NAN;
    EXPECT_EQ(run<TypeParam>(problem, {}, EstimatedHeads({1, 2})), some);
}

TYPED_TEST(XAttention, StridedViewsOfAFusedBufferPass) {
    Problem<float> problem(2, 1, 32, {0, 300}, {0, 300}, Kind::local, 37);
    using Mem = typename TypeParam::memory_space;
    const Array3<float, Mem> fused("fused", 300, 4, 32);  // two query heads, key, value
    for (int t = 0; t < 300; ++t) {
        for (int c = 0; c < 32; ++c) {
            for (int h = 0; h < 2; ++h) fused(t, h, c) = problem.q(0, t, h, c);
            fused(t, 2, c) = problem.k(0, t, 0, c);
        }
    }
    const TypeParam exec;
    Workspace<Mem> workspace;
    const HeadsView<const float, Mem> query = Kokkos::subview(fused, Kokkos::ALL, std::pair(0, 2), Kokkos::ALL);
    const HeadsView<const float, Mem> key = Kokkos::subview(fused, Kokkos::ALL, std::pair(2, 3), Kokkos::ALL);
    const Sequences<Mem> sequences({0, 300});
    const auto layout = select_xattention<TypeParam, float>(exec, query, key, sequences, {}, workspace);
    EXPECT_EQ(head_lists(exec, layout), run<TypeParam>(problem, {}));
}

TYPED_TEST(XAttention, TakesTheWorkspaceItPromisesAndNoMore) {
    using Mem = typename TypeParam::memory_space;
    const TypeParam exec;
    for (const int n : {0, 1, 100, 1000, 4000}) {
        for (const int chunk : {0, 64, 1024}) {
            Problem<float> problem(4, 2, 32, {0, n, n + n / 3}, {0, n + 70, n + 70 + n / 3}, Kind::random, 41);
            const OnDevice<TypeParam, float> inputs(problem);
            Options options;
            options.stride = 8;
            options.chunk_rows = chunk;
            Workspace<Mem> workspace;
            select_xattention<TypeParam, float>(exec, inputs.q(), inputs.k(), inputs.sequences, options, workspace);
            const std::size_t promised = xattention_bytes<TypeParam, float>(inputs.sequences, 4, 2, 32, options);
            EXPECT_EQ(workspace.capacity(), std::max<std::size_t>(promised, 64));
            select_xattention<TypeParam, float>(exec, inputs.q(), inputs.k(), inputs.sequences, options, workspace);
            EXPECT_EQ(workspace.capacity(), std::max<std::size_t>(promised, 64));
        }
    }
    // No (n/S)^2 scores: at 128k tokens they would be 256 MiB; all of the workspace is less than that without the keys.
    const Sequences<Mem> longest({0, 131072});
    EXPECT_LE((xattention_bytes<TypeParam, float>(longest, 1, 1, 128, {})),
              std::size_t(131072) * 128 * 4 + (24U << 20));
}

// The bound holds where it matters: the scores of 128k tokens at stride 16 would be 256 MiB a head.
TEST(XAttentionMemory, IsLinearAt128kTokens) {
    using Exec = Kokkos::DefaultHostExecutionSpace;
    const int n = 131072;
    const Exec exec;
    const Problem<float> problem(1, 1, 32, {0, n}, {0, n}, Kind::random, 53);
    const OnDevice<Exec, float> inputs(problem);
    Workspace<Exec::memory_space> workspace;
    select_xattention<Exec, float>(exec, inputs.q(), inputs.k(), inputs.sequences, {}, workspace);
    EXPECT_EQ(workspace.capacity(), (xattention_bytes<Exec, float>(inputs.sequences, 1, 1, 32, {})));
    EXPECT_LT(workspace.capacity(), 24U << 20);
}

#if defined(KOKKOS_ENABLE_SERIAL)
TEST(XAttentionSpaces, AgreeBitForBit) {
    for (const Kind kind : every_kind) {
        Problem<float> problem(4, 2, 64, {0, 900, 1403}, {0, 1000, 1503}, kind, 43);
        EXPECT_EQ(run<Kokkos::DefaultHostExecutionSpace>(problem, {}), run<Kokkos::Serial>(problem, {}));
    }
}
#endif

TYPED_TEST(XAttention, NamesBadOptionsAndInputs) {
    Problem<float> problem(4, 2, 32, {0, 100}, {0, 100}, Kind::random, 47);
    const auto message = [&](const auto& change) {
        Options options;
        change(options);
        return message_of([&] { run<TypeParam>(problem, options); });
    };
    EXPECT_EQ(message([](Options& o) { o.block = 96; }), "xattention.block is 96, must be 64 or 128");
    EXPECT_EQ(message([](Options& o) { o.stride = 12; }), "xattention.stride is 12, must be a divisor of block, 128");
    EXPECT_EQ(message([](Options& o) { o.stride = 0; }), "xattention.stride is 0, must be a divisor of block, 128");
    EXPECT_EQ(message([](Options& o) { o.threshold = 0; }), "xattention.threshold is 0, must be above 0");
    EXPECT_EQ(message([](Options& o) { o.threshold = NAN; }), "xattention.threshold is nan, must be above 0");
    EXPECT_EQ(message([](Options& o) {
                  o.thresholds = {0.5, 0.5, NAN, 0.5};
              }),
              "xattention.thresholds[2] is nan, must be above 0");
    EXPECT_EQ(message([](Options& o) {
                  o.thresholds = {0.5, 0.5};
              }),
              "xattention.thresholds.size() is 2, must be 0 or the number of query heads, 4");
    EXPECT_EQ(message([](Options& o) { o.norm = -1; }), "xattention.norm is -1, must be above 0 and finite");
    EXPECT_EQ(message([](Options& o) { o.chunk_rows = -1; }), "xattention.chunk_rows is -1, must be at least 0");
    EXPECT_EQ(message_of([&] {
                  run<TypeParam>(problem, {}, EstimatedHeads({1, 4}));
              }),
              "estimate[1] is 4, must be a query head, 0..3");
    EXPECT_EQ(message_of([&] {
                  run<TypeParam>(problem, {}, EstimatedHeads({2, 2}));
              }),
              "estimate[1] is 2, must be above the head before it, 2");
    Problem<float> short_keys(4, 2, 32, {0, 10, 30}, {0, 20, 25}, Kind::random, 47);
    EXPECT_EQ(message_of([&] { run<TypeParam>(short_keys, {}); }),
              "key length of sequence 1 is 5, must be at least its query length, 20, for causal selection");
    Problem<float> heads(4, 3, 32, {0, 10}, {0, 10}, Kind::random, 47);
    EXPECT_EQ(message_of([&] { run<TypeParam>(heads, {}); }),
              "key.extent(1) is 3, must be a divisor of the query heads, 4");
}

}  // namespace
}  // namespace sparseattn::test
