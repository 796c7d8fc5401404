#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "select/support.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/select/minference.hpp"

namespace sparseattn::test {
namespace {

using Options = MInferenceOptions;
using Pattern = MInferencePattern;
using Type = Pattern::Type;

template <class Exec, class T = float>
BlockLayout<typename Exec::memory_space> layout_of(const Problem<T>& problem, const Options& options,
                                                   const EstimatedHeads& estimate = {}) {
    const Exec exec;
    const OnDevice<Exec, T> inputs(problem);
    Workspace<typename Exec::memory_space> workspace;
    const auto layout =
        select_minference<Exec, T>(exec, inputs.q(), inputs.k(), inputs.sequences, options, workspace, estimate);
    validate(exec, inputs.sequences, layout);  // also: no single key inside a listed block, no duplicates
    return layout;
}
template <class Exec, class T = float>
std::vector<HeadLists> run(const Problem<T>& problem, const Options& options, const EstimatedHeads& estimate = {}) {
    return head_lists(Exec(), layout_of<Exec, T>(problem, options, estimate));
}

// The `wanted` largest entries, the first `forced` among them: those for sure (clearly above the last one taken) and
// those that rounding may let in.
struct Largest {
    std::vector<bool> sure, possible;
    Largest(const std::vector<double>& mass, int forced, int wanted) : sure(mass.size()), possible(mass.size()) {
        const int n = static_cast<int>(mass.size());
        std::vector<double> rest(mass.begin() + std::min(forced, n), mass.end());
        std::sort(rest.rbegin(), rest.rend());
        const int taken = std::min(wanted, n) - std::min(forced, n);
        const double last = taken > 0 ? rest[taken - 1] : INFINITY;
        for (int i = 0; i < n; ++i) {
            sure[i] = i < forced || mass[i] > last * (1 + 1e-4);
            possible[i] = i < forced || mass[i] >= last * (1 - 1e-4);
        }
    }
    int unsure() const {
        int count = 0;
        for (std::size_t i = 0; i < sure.size(); ++i) count += possible[i] && !sure[i] ? 1 : 0;
        return count;
    }
};

// vertical_and_slash of one head, from the fp64 profiles of its last 64 queries, token by token.
template <class T>
void check_vertical_slash(Problem<T>& problem, const Options& options, const HeadLists& lists, int h, int vertical,
                          int slash) {
    const int B = options.block;
    std::size_t at = 0;
    for (int s = 0; s < problem.sequences(); ++s) {
        const int nq = problem.queries(s), nk = problem.keys(s), shift = nk - nq, tail = std::min(64, nq);
        std::vector<double> v(nk), far(nk);
        for (int i = nq - tail; i < nq; ++i) {
            std::vector<double> p(i + shift + 1);
            double top = -INFINITY, total = 0;
            for (int j = 0; j <= i + shift; ++j) {
                p[j] = problem.dot(s, i, h, j) / std::sqrt(double(problem.head_dim));
                top = std::max(top, p[j]);
            }
            for (double& x : p) total += x = std::exp(x - top);
            for (int j = 0; j <= i + shift; ++j) {
                v[j] += p[j] / total;
                far[i + shift - j] += p[j] / total;
            }
        }
        const Largest columns(v, 30, std::max(vertical, 30)), distances(far, 100, std::max(slash, 100));
        EXPECT_LE(columns.unsure() + distances.unsure(), 2 + nk / 100);  // the check decides nearly everything
        for (int I = 0; I * B < nq; ++I, ++at) {
            const int first = I * B + shift, last = std::min((I + 1) * B, nq) - 1 + shift;
            const auto& blocks = lists.blocks[at];
            const auto& keys = lists.keys[at];
            for (int J = 0; J <= last / B; ++J) {
                bool sure = false, possible = false;
                for (int i = first; i <= last; ++i) {
                    for (int j = J * B; j < std::min((J + 1) * B, nk) && j <= i; ++j) {
                        sure = sure || distances.sure[i - j];
                        possible = possible || distances.possible[i - j];
                    }
                }
                const bool visited = std::binary_search(blocks.begin(), blocks.end(), J);
                ASSERT_TRUE(visited ? possible : !sure) << "head " << h << " row " << I << " block " << J;
            }
            for (int c = 0; c <= last; ++c) {
                const bool single = std::binary_search(keys.begin(), keys.end(), c);
                const bool covered = std::binary_search(blocks.begin(), blocks.end(), c / B);
                ASSERT_FALSE(single && covered);
                ASSERT_TRUE(!single || columns.possible[c]);
                ASSERT_TRUE(!columns.sure[c] || single || covered) << "head " << h << " row " << I << " key " << c;
            }
        }
    }
}

template <class Exec>
class MInference : public testing::Test {};
TYPED_TEST_SUITE(MInference, HostSpaces);

TYPED_TEST(MInference, VerticalAndSlashIsTheDefinition) {
    int seed = 200;
    for (const Kind kind : every_kind) {
        Problem<float> problem(4, 2, 32, {0, 430, 430, 431, 660}, {0, 430, 450, 470, 900}, kind, ++seed);
        Options options;
        options.heads = {{Type::vertical_and_slash, 60, 150},
                         {Type::vertical_and_slash, 0, 0},
                         {Type::vertical_and_slash, 100, 20},
                         {Type::vertical_and_slash, 5000, 120}};
        options.block = seed % 2 == 0 ? 64 : 128;
        const auto heads = run<TypeParam>(problem, options);
        for (int h = 0; h < 4; ++h) {
            check_vertical_slash(problem, options, heads[h], h, options.heads[h].first, options.heads[h].second);
        }
    }
}

TYPED_TEST(MInference, FallbackRatioAndAdaptiveBudget) {
    Problem<float> problem(2, 1, 32, {0, 700}, {0, 900}, Kind::diagonal, 211);
    Options options;
    options.size_ratio = 0.03;  // of 1000 and 6096
    auto heads = run<TypeParam>(problem, options);
    for (int h = 0; h < 2; ++h) check_vertical_slash(problem, options, heads[h], h, 30, 182);
    options.adaptive_budget = 0.25;
    heads = run<TypeParam>(problem, options);
    for (int h = 0; h < 2; ++h) check_vertical_slash(problem, options, heads[h], h, 45, 180);
}

TYPED_TEST(MInference, ForcedColumnsAndDistancesAreAlwaysThere) {
    Problem<bf16> problem(1, 1, 64, {0, 700}, {0, 900}, Kind::needle, 223);
    Options options;
    options.heads = {{Type::vertical_and_slash, 0, 0}};
    const auto lists = run<TypeParam, bf16>(problem, options)[0];
    for (int i = 0; i < 700; ++i) {
        const auto& blocks = lists.blocks[i / 64];
        const auto& keys = lists.keys[i / 64];
        for (int j = 0; j <= i + 200; ++j) {
            if (j >= 30 && i + 200 - j >= 100) continue;
            EXPECT_TRUE(std::binary_search(blocks.begin(), blocks.end(), j / 64) ||
                        std::binary_search(keys.begin(), keys.end(), j));
        }
    }
}

TYPED_TEST(MInference, BlockSparseKeepsTheLargestMeans) {
    for (const Kind kind : every_kind) {
        Problem<float> problem(2, 2, 32, {0, 900}, {0, 1111}, kind, 227);
        Options options;
        options.heads = {{Type::block_sparse, 0, 0}, {Type::block_sparse, 0, 0}};
        options.block_sparse_blocks = 5;
        const auto heads = run<TypeParam>(problem, options);
        for (int h = 0; h < 2; ++h) {
            for (int I = 0; I * 64 < 900; ++I) {
                const int i1 = std::min((I + 1) * 64, 900), own = (I * 64 + 211) / 64, end = (i1 + 210) / 64 + 1;
                std::vector<double> score(end);
                for (int J = 0; J < end; ++J) {
                    const int j1 = std::min((J + 1) * 64, 1111);
                    for (int c = 0; c < 32; ++c) {
                        double a = 0, b = 0;
                        for (int i = I * 64; i < i1; ++i) a += problem.q(0, i, h, c);
                        for (int j = J * 64; j < j1; ++j) b += problem.k(0, j, h, c);
                        score[J] += a / (i1 - I * 64) * b / (j1 - J * 64);
                    }
                }
                std::vector<std::int32_t> order, wanted;
                for (int J = 0; J < own; ++J) order.push_back(J);
                for (int J = own; J < end; ++J) wanted.push_back(J);
                std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score[a] > score[b]; });
                for (int t = 0; t < own && static_cast<int>(wanted.size()) < 5; ++t) wanted.push_back(order[t]);
                std::sort(wanted.begin(), wanted.end());
                EXPECT_EQ(heads[h].blocks[I], wanted);
            }
        }
    }
}

TYPED_TEST(MInference, MixedHeadsGetWhatTheirPatternSays) {
    const TypeParam exec;
    Problem<float> problem(6, 2, 32, {0, 600, 600, 900}, {0, 700, 700, 1000}, Kind::spikes, 229);
    Options options;
    options.heads = {{Type::stream_llm, 100, 300}, {Type::vertical_and_slash, 40, 130},
                     {Type::block_sparse, 0, 0},   {Type::tri_shape, 10, 200},
                     {Type::dense, 0, 0},          {Type::stream_llm, 100, 300}};
    const auto layout = layout_of<TypeParam>(problem, options);
    const auto heads = head_lists(exec, layout);
    const OnDevice<TypeParam, float> inputs(problem);
    const auto fixed = build_layout(
        exec, inputs.sequences, 64, true,
        {HeadMode::stream(100, 300), HeadMode::dense(), HeadMode::dense(),
         HeadMode::stream(10, 200, Granularity::token, 100), HeadMode::dense(), HeadMode::stream(100, 300)});
    const auto wanted = head_lists(exec, fixed);
    for (const int h : {0, 3, 4, 5}) {
        EXPECT_EQ(heads[h], wanted[h]) << h;
        EXPECT_TRUE(layout.windows(h) == fixed.windows(h)) << h;
    }
    EXPECT_EQ(layout.head_list(0), layout.head_list(5));
    for (const int h : {1, 2}) EXPECT_FALSE(layout.windows(h).bounded());
    check_vertical_slash(problem, options, heads[1], 1, 40, 130);
    // Heads that are not asked for stay empty, whatever their pattern, and their scores are not looked at.
    for (int i = 0; i < 900; ++i) problem.query[(i * 6 + 2) * 32] = NAN;
    const auto some = run<TypeParam>(problem, options, EstimatedHeads({1, 3}));
    EXPECT_EQ(some[1], heads[1]);
    EXPECT_EQ(some[3], heads[3]);
    for (const int h : {0, 2, 4, 5}) {
        for (const auto& row : some[h].blocks) EXPECT_TRUE(row.empty());
        for (const auto& row : some[h].keys) EXPECT_TRUE(row.empty());
    }
}

TYPED_TEST(MInference, TakesTheWorkspaceItPromisesAndNoMore) {
    using Mem = typename TypeParam::memory_space;
    const TypeParam exec;
    for (const Type type : {Type::vertical_and_slash, Type::block_sparse}) {
        for (const int n : {0, 1, 1000, 3000}) {
            Problem<float> problem(4, 2, 32, {0, n, n + n / 3}, {0, n + 70, n + 70 + n / 3}, Kind::random, 233);
            const OnDevice<TypeParam, float> inputs(problem);
            Options options;
            options.heads.assign(4, {type, 100, 200});
            Workspace<Mem> workspace;
            const std::size_t promised = minference_bytes<TypeParam, float>(inputs.sequences, 4, 2, 32, options);
            for (int repeat = 0; repeat < 2; ++repeat) {
                select_minference<TypeParam, float>(exec, inputs.q(), inputs.k(), inputs.sequences, options, workspace);
                EXPECT_EQ(workspace.capacity(), std::max<std::size_t>(promised, 64));
            }
        }
    }
}

#if defined(KOKKOS_ENABLE_SERIAL)
TEST(MInferenceSpaces, AgreeBitForBit) {
    for (const Kind kind : every_kind) {
        Problem<float> problem(4, 2, 64, {0, 900, 1403}, {0, 1000, 1503}, kind, 239);
        Options options;
        options.heads = {{Type::vertical_and_slash, 60, 150},
                         {Type::block_sparse, 0, 0},
                         {Type::vertical_and_slash, 200, 300},
                         {Type::stream_llm, 10, 100}};
        options.block_sparse_blocks = 4;
        EXPECT_EQ(run<Kokkos::DefaultHostExecutionSpace>(problem, options), run<Kokkos::Serial>(problem, options));
    }
}
#endif

TYPED_TEST(MInference, NamesBadOptions) {
    Problem<float> problem(2, 1, 32, {0, 100}, {0, 100}, Kind::random, 241);
    const auto message = [&](const auto& change) {
        Options options;
        change(options);
        return message_of([&] { run<TypeParam>(problem, options); });
    };
    EXPECT_EQ(message([](Options& o) { o.block = 16; }), "minference.block is 16, must be 64 or 128");
    EXPECT_EQ(message([](Options& o) { o.size_ratio = NAN; }),
              "minference.size_ratio is nan, must be above 0 and finite");
    EXPECT_EQ(message([](Options& o) { o.adaptive_budget = 0; }),
              "minference.adaptive_budget is 0, must be above 0 and finite");
    EXPECT_EQ(message([](Options& o) { o.block_sparse_blocks = 0; }),
              "minference.block_sparse_blocks is 0, must be at least 1");
    EXPECT_EQ(message([](Options& o) { o.tri_shape_tail = -1; }),
              "minference.tri_shape_tail is -1, must be at least 0");
    EXPECT_EQ(message([](Options& o) {
                  o.heads = {{}, {Type::stream_llm, 4, 0}};
              }),
              "minference.heads[1].second is 0, must be at least 1, the local tokens");
    EXPECT_EQ(message([](Options& o) {
                  o.heads = {{Type::block_sparse, -4, 0}, {}};
              }),
              "minference.heads[0].first is -4, must be at least 0");
    EXPECT_EQ(message([](Options& o) { o.heads = {{}}; }),
              "minference.heads.size() is 1, must be 0 or the number of query heads, 2");
}

class MInferenceTables : public testing::Test {
  protected:
    std::string path_ =
        (std::filesystem::path(testing::TempDir()) / concat("sparseattn_minference_table_", ::getpid(), ".json"))
            .string();
    void TearDown() override { std::filesystem::remove(path_); }
    void write(const std::string& text) const { std::ofstream(path_) << text; }
    std::string message(const std::string& text) const {
        write(text);
        return message_of([&] { (void)read_minference_table(path_); });
    }
};

TEST_F(MInferenceTables, ReadThePublicForm) {
    write(R"([{"0": ["vertical_and_slash", 1000, 6096, 336], "3": ["stream_llm", 100, 800, 0.5]},
              {}, {"1": ["block_sparse", 0, 100, 1.25]}])");
    MInferenceTable table = read_minference_table(path_);
    const auto first = table.layer(0, 4);
    EXPECT_EQ(
        first.heads,
        (std::vector<Pattern>{{Type::vertical_and_slash, 1000, 6096, 336}, {}, {}, {Type::stream_llm, 100, 800, 0.5}}));
    EXPECT_EQ(first.heads[1], (Pattern{Type::vertical_and_slash, 1000, 6096, 1}));  // the fallback
    EXPECT_EQ(table.layer(1, 2).heads, (std::vector<Pattern>{{}, {}}));
    Options ratio;
    ratio.size_ratio = 0.5;
    EXPECT_EQ(table.layer(2, 2, ratio).size_ratio, 0.5);
    table.starting_layer = 2;
    EXPECT_EQ(table.layer(1, 1).heads[0].type, Type::dense);
    EXPECT_EQ(table.layer(2, 2).heads[1].type, Type::block_sparse);
    EXPECT_EQ(message_of([&] { (void)table.layer(3, 2); }), "layer is 3, must be one of the 3 layers of the table");
    EXPECT_EQ(message_of([&] { (void)table.layer(0, 2); }),
              "head of layer 0 of the table is 3, must be a query head, 0..1");
}

TEST_F(MInferenceTables, WriteWhatTheyRead) {
    MInferenceTable table;
    table.layers = {{{0, {Type::tri_shape, 4, 5, 0.1}}, {7, {Type::dense, 0, 0, 1}}}, {{11, {}}}, {}};
    write_minference_table(path_, table);
    EXPECT_EQ(read_minference_table(path_).layers, table.layers);
    EXPECT_EQ(message_of([&] { write_minference_table("/nonexistent/t.json", table); }),
              "/nonexistent/t.json: cannot be written");
}

TEST_F(MInferenceTables, BadTablesAreNamed) {
    EXPECT_THAT(message("[{"), testing::StartsWith(path_ + ": is no JSON: "));
    EXPECT_EQ(message("{}"), path_ + ": must be a list with one object for each layer");
    EXPECT_EQ(message("[]"), path_ + ": must be a list with one object for each layer");
    EXPECT_EQ(message("[{}, 3]"), path_ + ", layer 1: is number, must be an object {\"head\": pattern}");
    EXPECT_EQ(message(R"([{"x": []}])"), path_ + ", layer 0: head is 'x', must be a whole number");
    EXPECT_EQ(message(R"([{"2": ["dense", 1]}])"),
              path_ + R"(, layer 0, head 2: is ["dense",1], must be [type, first_size, second_size, score])");
    EXPECT_EQ(
        message(R"([{"2": ["slash", 1, 2, 3]}])"),
        path_ +
            R"(, layer 0, head 2: type is "slash", must be vertical_and_slash, stream_llm, tri_shape, block_sparse or dense)");
    EXPECT_EQ(message(R"([{"2": ["dense", -1, 2, 3]}])"),
              path_ + ", layer 0, head 2: first_size is -1, must be a whole number, 0..1073741824");
    EXPECT_EQ(message(R"([{"2": ["dense", 1, 2.5, 3]}])"),
              path_ + ", layer 0, head 2: second_size is 2.5, must be a whole number, 0..1073741824");
    EXPECT_EQ(message(R"([{"2": ["dense", 1, 2, "a"]}])"),
              path_ + ", layer 0, head 2: score is \"a\", must be a number");
    EXPECT_EQ(message(R"([{"2": ["dense", 1, 2, 3], "02": ["dense", 1, 2, 3]}])"),
              path_ + ", layer 0: head 2 is given twice");
    std::filesystem::remove(path_);
    EXPECT_EQ(message_of([&] { (void)read_minference_table(path_); }), path_ + ": cannot be opened for reading");
}

}  // namespace
}  // namespace sparseattn::test
