#include "select/support.hpp"
#include "sparseattn/layout/combine.hpp"
#include "sparseattn/select/selector.hpp"
#include "support/kokkos_tools.hpp"

namespace sparseattn::test {
namespace {

template <class Exec, class T = float>
struct Run {
    using Mem = typename Exec::memory_space;
    Exec exec;
    OnDevice<Exec, T> inputs;
    Workspace<Mem> workspace;

    explicit Run(const Problem<T>& problem) : inputs(problem) {}
    BlockLayout<Mem> layout(const SelectorOptions& options, const HeadPlan& plan = {}) {
        const auto result = select<Exec, T>(exec, inputs.q(), inputs.k(), inputs.sequences, options, workspace, plan);
        validate(exec, inputs.sequences, result);
        return result;
    }
    std::vector<HeadLists> lists(const SelectorOptions& options, const HeadPlan& plan = {}) {
        return head_lists(exec, layout(options, plan));
    }
};

template <class Exec>
class Selector : public ::testing::Test {};
TYPED_TEST_SUITE(Selector, HostSpaces);

TYPED_TEST(Selector, EachNameIsItsMethod) {
    Problem<float> problem(4, 2, 32, {0, 500, 700}, {0, 600, 800}, Kind::spikes, 301);
    Run<TypeParam> run(problem);
    const auto& in = run.inputs;
    EXPECT_EQ(run.lists(parse_selector("xattention")),
              head_lists(run.exec, select_xattention<TypeParam, float>(run.exec, in.q(), in.k(), in.sequences, {},
                                                                       run.workspace)));
    EXPECT_EQ(run.lists(parse_selector("flexprefill")),
              head_lists(run.exec, select_flexprefill<TypeParam, float>(run.exec, in.q(), in.k(), in.sequences, {},
                                                                        run.workspace)));
    EXPECT_EQ(run.lists(parse_selector("minference")),
              head_lists(run.exec, select_minference<TypeParam, float>(run.exec, in.q(), in.k(), in.sequences, {},
                                                                       run.workspace)));
    EXPECT_EQ(run.lists(parse_selector("full")),
              head_lists(run.exec, build_layout(run.exec, in.sequences, 128, true, std::vector<HeadMode>(4))));
    EXPECT_EQ(
        run.lists(parse_selector("streaming:sink=3,local=90,dense_tail=7")),
        head_lists(run.exec, build_layout(run.exec, in.sequences, 64, true,
                                          std::vector<HeadMode>(4, HeadMode::stream(3, 90, Granularity::token, 7)))));
    EXPECT_FALSE(run.layout(parse_selector("full:causal=false,block=64")).causal);
}

TYPED_TEST(Selector, FixedHeadsAreNotEstimated) {
    Problem<float> problem(4, 2, 32, {0, 700}, {0, 900}, Kind::local, 307);
    Run<TypeParam> clean(problem);
    const HeadPlan plan{{std::nullopt, HeadMode::stream(4, 100), HeadMode::dense(), std::nullopt}, false};
    std::vector<std::vector<HeadLists>> all;
    const std::vector<std::string> methods = {"xattention:block=64", "flexprefill:block=64,min_budget=64",
                                              "minference"};
    for (const std::string& method : methods) all.push_back(clean.lists(parse_selector(method)));
    for (int i = 0; i < 700; ++i) problem.q(0, i, 1, 0) = problem.q(0, i, 2, 0) = NAN;
    Run<TypeParam> run(problem);
    const auto modes =
        build_layout(run.exec, run.inputs.sequences, 64, true,
                     {HeadMode::dense(), HeadMode::stream(4, 100), HeadMode::dense(), HeadMode::dense()});
    const auto fixed = head_lists(run.exec, modes);
    for (std::size_t m = 0; m < methods.size(); ++m) {
        const auto layout = run.layout(parse_selector(methods[m]), plan);
        const auto lists = head_lists(run.exec, layout);
        EXPECT_EQ(lists[0], all[m][0]);
        EXPECT_EQ(lists[1], fixed[1]);
        EXPECT_EQ(lists[2], fixed[2]);
        EXPECT_EQ(lists[3], all[m][3]);
        EXPECT_TRUE(layout.windows(1) == modes.windows(1));
        const auto only_fixed =
            run.lists(parse_selector(methods[m]), {std::vector<std::optional<HeadMode>>(4, HeadMode::dense()), false});
        EXPECT_EQ(only_fixed[0], fixed[2]);
    }
}

TYPED_TEST(Selector, GroupsShareTheUnionOfTheirSelectedHeads) {
    Problem<float> problem(4, 2, 32, {0, 700}, {0, 900}, Kind::diagonal, 311);
    Run<TypeParam> run(problem);
    const auto apart = run.lists(parse_selector("xattention:block=64,threshold=0.5"));
    const HeadPlan plan{{std::nullopt, std::nullopt, HeadMode::stream(0, 64), std::nullopt}, true};
    const auto layout = run.layout(parse_selector("xattention:block=64,threshold=0.5"), plan);
    const auto shared = head_lists(run.exec, layout);
    EXPECT_EQ(layout.head_list(0), layout.head_list(1));
    for (std::size_t row = 0; row < shared[0].blocks.size(); ++row) {
        std::vector<std::int32_t> both;
        std::set_union(apart[0].blocks[row].begin(), apart[0].blocks[row].end(), apart[1].blocks[row].begin(),
                       apart[1].blocks[row].end(), std::back_inserter(both));
        EXPECT_EQ(shared[0].blocks[row], both);
    }
    EXPECT_EQ(shared[3], apart[3]);  // its neighbour streams
    EXPECT_TRUE(layout.windows(2).bounded());
}

// A needle: one key that the last 40 queries need. Every method that looks at scores finds its block for the last row.
TYPED_TEST(Selector, FindsThePlantedNeedle) {
    int xattention = 0, others = 0, heads = 0;
    for (std::uint64_t seed = 320; seed < 325; ++seed) {
        Problem<float> problem(4, 4, 64, {0, 1500}, {0, 1500}, Kind::needle, seed);
        for (int h = 0; h < 4; ++h) {
            for (int c = 0; c < 64; ++c) problem.k(0, (1500 * (2 + h)) / 7, h, c) *= 3;
        }
        Run<TypeParam> run(problem);
        const auto found = [&](const std::string& method, int block) {
            int count = 0;
            const auto lists = run.lists(parse_selector(method));
            for (int h = 0; h < 4; ++h) {
                const int key = (1500 * (2 + h)) / 7;
                const auto &blocks = lists[h].blocks.back(), &keys = lists[h].keys.back();
                count += std::binary_search(blocks.begin(), blocks.end(), key / block) ||
                         std::binary_search(keys.begin(), keys.end(), key);
            }
            return count;
        };
        heads += 4;
        xattention += found("xattention:block=64,stride=8,threshold=0.9", 64);
        others += found("flexprefill:block=64,min_budget=64", 64) + found("minference:adaptive_budget=0.2", 64);
    }
    EXPECT_EQ(xattention, heads);
    EXPECT_EQ(others, 2 * heads);
}

TYPED_TEST(Selector, EmptyBatchesAndSequences) {
    for (const std::string& name : selector_names()) {
        Problem<float> none(2, 1, 32, {0}, {0}, Kind::random, 331);
        EXPECT_EQ(Run<TypeParam>(none).layout(parse_selector(name)).columns.extent(0), 0U);
        Problem<float> some(2, 1, 32, {0, 0, 3, 3}, {0, 5, 9, 9}, Kind::random, 331);
        const auto lists = Run<TypeParam>(some).lists(parse_selector(name));
        ASSERT_EQ(lists[0].blocks.size(), 1U);
        EXPECT_THAT(lists[0].blocks[0], ::testing::ElementsAre(0));
    }
}

template <class Exec, class T>
void expect_stated_bytes() {
    const Problem<T> problem(4, 2, 32, {0, 1000}, {0, 1000}, Kind::random, 337);
    for (const std::string& name : selector_names()) {
        Run<Exec, T> run(problem);
        run.layout(parse_selector(name));
        EXPECT_EQ(run.workspace.capacity(),
                  (selection_bytes<Exec, T>(run.inputs.sequences, 4, 2, 32, parse_selector(name))));
    }
}

TYPED_TEST(Selector, BytesAreThoseOfTheMethod) {
    expect_stated_bytes<TypeParam, float>();
    expect_stated_bytes<TypeParam, bf16>();
}

// Every kernel is labelled, and once the workspace has grown only the layout itself is allocated.
TYPED_TEST(Selector, LabelsItsKernelsAndAllocatesOnlyTheLayout) {
    Problem<float> problem(4, 2, 32, {0, 1000}, {0, 1000}, Kind::random, 339);
    for (const std::string& name : selector_names()) {
        Run<TypeParam> run(problem);
        const auto call = [&] {
            return select<TypeParam, float>(run.exec, run.inputs.q(), run.inputs.k(), run.inputs.sequences,
                                            parse_selector(name), run.workspace);
        };
        call();
        const sparseattn::testing::KokkosRecording recording;
        call();
        for (const auto& kernel : recording.kernels()) {  // the library's, or a View's fill by Kokkos
            EXPECT_THAT(kernel.label,
                        ::testing::AnyOf(::testing::StartsWith("SparseAttn::"), ::testing::StartsWith("Kokkos::View")));
        }
        for (const std::string& label : recording.allocations()) {
            EXPECT_THAT(label, ::testing::AnyOf(::testing::StartsWith("SparseAttn::layout"),
                                                ::testing::StartsWith("SparseAttn::grid"), "SparseAttn::list_rules"));
        }
    }
}

// Into a layout made before: the second call of one shape allocates nothing, also where layouts are combined, and gives
// the same lists.
TYPED_TEST(Selector, WritesIntoALayoutWithoutAllocating) {
    Problem<float> problem(4, 2, 32, {0, 1000, 1300}, {0, 1000, 1400}, Kind::random, 343);
    const std::vector<std::optional<HeadMode>> fixed = {HeadMode::dense(), std::nullopt, HeadMode::stream(64, 100),
                                                        std::nullopt};
    const std::vector<HeadPlan> plans = {{}, {{}, true}, {fixed, false}, {fixed, true}};
    std::vector<SelectorOptions> methods;
    for (const std::string& name : selector_names()) methods.push_back(parse_selector(name));
    MInferenceOptions mixed;
    for (const auto type : {MInferencePattern::Type::vertical_and_slash, MInferencePattern::Type::stream_llm,
                            MInferencePattern::Type::block_sparse, MInferencePattern::Type::tri_shape}) {
        mixed.heads.push_back({type, 100, 200});
    }
    methods.emplace_back(mixed);
    for (const SelectorOptions& method : methods) {
        for (const HeadPlan& plan : plans) {
            SCOPED_TRACE(describe(method) + (plan.share_groups ? ", shared groups" : "") +
                         (plan.fixed.empty() ? "" : ", fixed heads"));
            Run<TypeParam> run(problem);
            SelectionRoom<typename TypeParam::memory_space> room;
            BlockLayout<typename TypeParam::memory_space> layout;
            const auto call = [&] {
                select<TypeParam, float>(run.exec, run.inputs.q(), run.inputs.k(), run.inputs.sequences, method,
                                         run.workspace, plan, room, layout);
            };
            call();
            call();
            {
                const sparseattn::testing::KokkosRecording recording;
                call();
                EXPECT_THAT(recording.allocations(), ::testing::IsEmpty());
                EXPECT_THAT(recording.fences(), ::testing::IsEmpty());
                EXPECT_THAT(recording.copies(), ::testing::IsEmpty());
            }
            validate(run.exec, run.inputs.sequences, layout);
            const auto fresh = run.layout(method, plan);
            const HostLists wanted = copy_lists(run.exec, fresh), again = copy_lists(run.exec, layout);
            EXPECT_EQ(again.offsets, wanted.offsets);
            EXPECT_EQ(again.columns, wanted.columns);
            EXPECT_EQ(again.keys, wanted.keys);
            EXPECT_EQ(layout.host_head_list, fresh.host_head_list);
        }
    }
}

// Plans that change from call to call, as learned gates make them: nothing is allocated once the largest has been.
TYPED_TEST(Selector, PlansMayChangeWithoutAllocating) {
    Problem<float> problem(4, 2, 32, {0, 1000, 1300}, {0, 1000, 1400}, Kind::random, 344);
    for (const std::string& name : selector_names()) {
        Run<TypeParam> run(problem);
        SelectionRoom<typename TypeParam::memory_space> room;
        BlockLayout<typename TypeParam::memory_space> layout;
        TransposedLayout<typename TypeParam::memory_space> transposed;
        const auto call = [&](int open) {  // the bits are the heads with a mode
            HeadPlan plan;
            if (open != 0) plan.fixed.resize(4);
            for (int h = 0; h < 4; ++h) {
                if ((open >> h & 1) != 0) plan.fixed[h] = HeadMode::stream(0, 1);
            }
            select<TypeParam, float>(run.exec, run.inputs.q(), run.inputs.k(), run.inputs.sequences,
                                     parse_selector(name), run.workspace, plan, room, layout);
            transpose(run.exec, run.inputs.sequences, layout, transposed);
        };
        for (int open = 0; open < 16; ++open) call(open);
        const sparseattn::testing::KokkosRecording recording;
        for (int open = 15; open >= 0; --open) {
            call(open);
            EXPECT_THAT(recording.allocations(), ::testing::IsEmpty()) << name << " " << open;
        }
    }
}

TYPED_TEST(Selector, NamesWhatDoesNotFit) {
    Problem<float> problem(2, 1, 32, {0, 100}, {0, 100}, Kind::random, 341);
    Run<TypeParam> run(problem);
    const HeadPlan plan{std::vector<std::optional<HeadMode>>(3), false};
    EXPECT_EQ(message_of([&] { run.layout(XAttentionOptions{}, plan); }),
              "plan.fixed.size() is 3, must be 0 or the number of query heads, 2");
    StreamingOptions streaming;
    streaming.local = 0;
    EXPECT_EQ(message_of([&] { run.layout(streaming); }), "streaming.local is 0, must be at least 1");
    const Array3<float, typename TypeParam::memory_space> wrong("wrong", 99, 2, 32);
    EXPECT_EQ(message_of([&] {
                  select<TypeParam, float>(run.exec, HeadsView<const float, typename TypeParam::memory_space>(wrong),
                                           run.inputs.k(), run.inputs.sequences, XAttentionOptions{}, run.workspace);
              }),
              "query.extent(0) is 99, must be 100, the tokens of the sequences");
}

// Attention itself has a meaning for more queries than keys; an estimate of its rows' blocks has not.
TYPED_TEST(Selector, EstimatesNeedAsManyKeysAsQueries) {
    Problem<float> problem(2, 1, 32, {0, 30, 50}, {0, 30, 35}, Kind::random, 353);
    Run<TypeParam> run(problem);
    for (const char* method : {"xattention", "flexprefill", "minference", "minference:adaptive_budget=0.1"}) {
        EXPECT_EQ(message_of([&] { run.layout(parse_selector(method)); }),
                  "key length of sequence 1 is 5, must be at least its query length, 20, for causal selection")
            << method;
    }
    for (const char* method : {"full", "streaming", "xattention:causal=false"}) {
        EXPECT_EQ(message_of([&] { run.layout(parse_selector(method)); }), "no error") << method;
    }
}

TEST(SelectorText, ReadsBackWhatItPrints) {
    for (const std::string& name : selector_names()) {
        const SelectorOptions options = parse_selector(name);
        EXPECT_EQ(selector_name(options), name);
        EXPECT_EQ(describe(parse_selector(describe(options))), describe(options));
    }
    EXPECT_EQ(describe(parse_selector("xattention:threshold=0.1,mode=slash,keep_sink=false")),
              "xattention:block=128,stride=16,threshold=0.1,norm=1,keep_sink=false,keep_recent=true,causal=true,"
              "mode=slash,chunk_rows=0");
    EXPECT_EQ(describe(parse_selector("flexprefill:max_budget=4096")),
              "flexprefill:block=128,gamma=0.9,tau=0.1,min_budget=512,max_budget=4096,gqa_interleave=false");
    EXPECT_EQ(describe(parse_selector("minference:adaptive_budget=0.3")),
              "minference:block=64,size_ratio=1,adaptive_budget=0.3,block_sparse_blocks=100,tri_shape_tail=100");
    EXPECT_EQ(std::get<StreamingOptions>(parse_selector("streaming:granularity=block")).granularity,
              Granularity::block);
    EXPECT_EQ(std::get<FlexPrefillOptions>(parse_selector("flexprefill:max_budget=none")).max_budget, std::nullopt);
}

TEST(SelectorText, NamesTheBadPart) {
    const auto message = [](const std::string& text) { return message_of([&] { (void)parse_selector(text); }); };
    EXPECT_EQ(message("xatention"),
              "selector is 'xatention', must be one of full, streaming, xattention, flexprefill, minference");
    EXPECT_EQ(message("full:strid=3"), "full has no option 'strid', only block, causal");
    EXPECT_EQ(message("full:block"), "option of full is 'block', must be key=value");
    EXPECT_EQ(message("xattention:stride=x"), "xattention.stride is 'x', must be a whole number");
    EXPECT_EQ(message("xattention:stride=1.5"), "xattention.stride is '1.5', must be a whole number");
    EXPECT_EQ(message("xattention:stride="), "xattention.stride is '', must be a whole number");
    EXPECT_EQ(message("xattention:threshold=0.5x"), "xattention.threshold is '0.5x', must be a number");
    EXPECT_EQ(message("xattention:threshold=nan"), "xattention.threshold is nan, must be above 0");
    EXPECT_EQ(message("xattention:causal=yes"), "xattention.causal is 'yes', must be true or false");
    EXPECT_EQ(message("xattention:mode=diagonal"), "xattention.mode is 'diagonal', must be antidiagonal or slash");
    EXPECT_EQ(message("flexprefill:max_budget=x"), "flexprefill.max_budget is 'x', must be a whole number or none");
    EXPECT_EQ(message("xattention:stride=7"), "xattention.stride is 7, must be a divisor of block, 128");
}

}  // namespace
}  // namespace sparseattn::test
