// Head search on heads whose best pattern is known.
#include <gmock/gmock.h>

#include <functional>

#include "select/support.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/head_search.hpp"

namespace sparseattn::test {
namespace {

using Exec = Kokkos::DefaultExecutionSpace;
using Mem = Exec::memory_space;
using Samples = LayerSamples<Exec>;
using Type = MInferencePattern::Type;
using ::testing::HasSubstr;

constexpr int d = 32;

LayerTensors tensors_of(const Problem<float>& problem, std::uint64_t seed) {
    const RandomStream stream(seed, RandomPurpose::test, 5);
    LayerTensors tensors{problem.query_offsets, problem.key_offsets, problem.query, problem.key, problem.key};
    for (std::size_t i = 0; i < tensors.value.size(); ++i) tensors.value[i] = static_cast<float>(stream.normal(i));
    return tensors;
}

// Attention under a token mask in double: sum over tokens and channels of (out - dense)^2 and of dense^2, head by head.
OutputDifference plain_difference(const LayerTensors& t, int heads, int kv_heads, const Sequences<Mem>& sequences,
                                  const BlockLayout<Mem>& layout) {
    const HostLists lists = copy_lists(Exec(), layout);
    const auto head_list = detail::to_host(Exec(), layout.head_list);
    const auto windows = detail::to_host(Exec(), layout.windows);
    OutputDifference result{std::vector<double>(heads, 0.0), std::vector<double>(heads, 0.0)};
    for (int h = 0; h < heads; ++h) {
        std::int64_t row_begin = static_cast<std::int64_t>(head_list[h]) * layout.grid.rows;
        for (int s = 0; s < sequences.count(); ++s) {
            const TokenRule rule{sequences.query_length(s), sequences.key_length(s), layout.causal, windows[h]};
            for (int i = 0; i < rule.queries; ++i) {
                const std::int64_t row = row_begin + i / layout.grid.block;
                const auto kept = [&](int j) {
                    const auto in = [](const auto& list, std::int64_t b, std::int64_t e, int x) {
                        return std::find(list.begin() + b, list.begin() + e, x) != list.begin() + e;
                    };
                    const bool single =
                        !lists.keys.empty() && in(lists.keys, lists.key_offsets[row], lists.key_offsets[row + 1], j);
                    return rule.visible(i, j) && (single || in(lists.columns, lists.offsets[row],
                                                               lists.offsets[row + 1], j / layout.grid.block));
                };
                std::vector<double> out(d, 0.0), dense(d, 0.0);
                double out_sum = 0, dense_sum = 0;
                const float* q = &t.query[(static_cast<std::size_t>(t.query_offsets[s] + i) * heads + h) * d];
                for (int j = 0; j < std::min(rule.key_end(i), rule.keys); ++j) {
                    const std::size_t at =
                        (static_cast<std::size_t>(t.key_offsets[s] + j) * kv_heads + h / (heads / kv_heads)) * d;
                    double score = 0;
                    for (int c = 0; c < d; ++c) score += static_cast<double>(q[c]) * t.key[at + c];
                    const double p = std::exp(score / std::sqrt(double(d)) - 30);
                    const bool keep = kept(j);
                    dense_sum += p;
                    out_sum += keep ? p : 0;
                    for (int c = 0; c < d; ++c) {
                        dense[c] += p * t.value[at + c];
                        out[c] += keep ? p * t.value[at + c] : 0;
                    }
                }
                for (int c = 0; c < d; ++c) {
                    const double wanted = dense[c] / dense_sum, got = out_sum > 0 ? out[c] / out_sum : 0;
                    result.error[h] += (got - wanted) * (got - wanted);
                    result.size[h] += wanted * wanted;
                }
            }
            row_begin += (rule.queries + layout.grid.block - 1) / layout.grid.block;
        }
    }
    return result;
}

TEST(LayerSamples, QualityIsThatOfPlainAttention) {
    const Problem<float> first(4, 2, d, {0, 150, 333}, {0, 150, 333}, Kind::spikes, 1);
    const Problem<float> second(4, 2, d, {0, 90}, {0, 201}, Kind::local, 2);
    Samples samples(Exec(), {4, 2, d});
    const std::vector<std::string> methods = {"streaming:sink=5,local=40", "xattention:block=64,threshold=0.4",
                                              "minference:size_ratio=0.01"};
    samples.add(tensors_of(first, 7));
    samples.add(tensors_of(second, 8));
    for (const std::string& text : methods) {
        const SelectorOptions method = parse_selector(text);
        const LayerQuality quality = samples.quality(method);
        EXPECT_EQ(quality.density, samples.density(method)) << text;
        std::vector<double> kept(4, 0.0);
        double all = 0;
        OutputDifference wanted{std::vector<double>(4, 0.0), std::vector<double>(4, 0.0)};
        for (const auto& [problem, seed] : {std::pair(&first, 7), std::pair(&second, 8)}) {
            const OnDevice<Exec, float> device(*problem);
            Workspace<Mem> workspace;
            const auto layout =
                select<Exec, float>(Exec(), device.q(), device.k(), device.sequences, method, workspace);
            const auto part = plain_difference(tensors_of(*problem, seed), 4, 2, device.sequences, layout);
            const LayoutStatistics counted = statistics(Exec(), device.sequences, layout);
            all += counted.all_pairs / 4;
            for (int h = 0; h < 4; ++h) {
                wanted.error[h] += part.error[h];
                wanted.size[h] += part.size[h];
                kept[h] += counted.head_density[h] * counted.all_pairs / 4;
            }
        }
        for (int h = 0; h < 4; ++h) {
            EXPECT_NEAR(quality.difference.relative(h), wanted.relative(h), 1e-5) << text << ", head " << h;
            EXPECT_NEAR(quality.difference.size[h], wanted.size[h], 1e-5 * wanted.size[h]) << text;
            EXPECT_NEAR(quality.density[h], kept[h] / all, 1e-12) << text;
        }
    }
    const LayerQuality dense = samples.quality(FullOptions{});
    EXPECT_EQ(dense.difference.relative(), 0);
    EXPECT_EQ(dense.mean_density(), 1);
}

TEST(LayerSamples, RefusesWhatDoesNotFit) {
    EXPECT_THAT(message_of([] { Samples(Exec(), {4, 3, d}); }), HasSubstr("kv_heads is 3, must be a divisor"));
    const Problem<float> problem(4, 2, d, {0, 100}, {0, 100}, Kind::random, 3);
    Samples samples(Exec(), {4, 2, d}), other(Exec(), {4, 2, d, false});
    LayerTensors tensors = tensors_of(problem, 1);
    other.add(tensors);
    EXPECT_THAT(message_of([&] { (void)other.density(MInferenceOptions{}); }),
                HasSubstr("method is minference, must be"));
    tensors.key.pop_back();
    EXPECT_THAT(message_of([&] { samples.add(tensors); }), HasSubstr("size of key is 6399, must be 100 x 2 x 32"));
}

// Three heads on keys of their own: some 500 near keys, but other ones for the last queries, which a search along them
// would follow; a few columns that all queries look at; blocks that each block of queries picks.
LayerTensors known_heads(int n, std::uint64_t seed) {
    LayerTensors tensors{{0, n}, {0, n}, {}, {}, {}};
    const RandomStream noise(seed, RandomPurpose::test, 0), feature(99, RandomPurpose::test, 1);
    const std::size_t size = static_cast<std::size_t>(n) * 3 * d;
    tensors.query.resize(size);
    tensors.key.resize(size);
    tensors.value.resize(size);
    const auto direction = [&](int which, int c) {
        return 3.2 * feature.normal(static_cast<std::uint64_t>(which) * d + static_cast<std::uint64_t>(c));
    };
    for (int t = 0; t < n; ++t) {
        for (int c = 0; c < d; ++c) {
            const std::size_t at = static_cast<std::size_t>(t) * 3 * d + c;
            const auto drift = [&](int position) {
                return 1.6 * std::cos(0.001 * (c % 4 + 1) * position + 6.28 * feature.uniform(c));
            };
            const double column = t % 307 == 150 ? direction(1, c) : 0;
            const int block = t / 64;
            const double wanted = direction(100 + block / 2, c), own = direction(100 + block, c);
            const double q[] = {drift(t < n - 64 ? t : t / 3), direction(1, c), wanted}, k[] = {drift(t), column, own};
            for (int h = 0; h < 3; ++h) {
                const std::size_t i = at + static_cast<std::size_t>(h) * d;
                tensors.query[i] = static_cast<float>(q[h] + 0.3 * noise.normal(3 * i));
                tensors.key[i] = static_cast<float>(k[h] + 0.3 * noise.normal(3 * i + 1));
                tensors.value[i] = static_cast<float>(noise.normal(3 * i + 2));
            }
        }
    }
    return tensors;
}

TEST(MInferenceSearch, FindsThePatternOfEachHead) {
    Samples samples(Exec(), {3, 3, d});
    samples.add(known_heads(3000, 4));
    samples.add(known_heads(2200, 5));
    MInferenceSearch search;
    search.method.block_sparse_blocks = 3;
    search.candidates = {{Type::stream_llm, 16, 600},
                         {Type::vertical_and_slash, 40, 100},
                         {Type::vertical_and_slash, 400, 60},
                         {Type::block_sparse, 0, 0}};
    LayerQuality quality;
    const auto choices = search_minference(samples, search, quality);
    ASSERT_EQ(choices.size(), 3U);
    const Type wanted[] = {Type::stream_llm, Type::vertical_and_slash, Type::block_sparse};
    std::vector<MInferencePattern> heads;
    for (std::size_t h = 0; h < 3; ++h) {
        const MInferenceChoice& choice = choices[h];
        ASSERT_EQ(choice.trials.size(), 4U);
        std::string tried;
        for (const MInferenceTrial& trial : choice.trials) {
            tried += concat(name(trial.pattern.type), " ", trial.pattern.first, " ", trial.pattern.second, ": error ",
                            trial.pattern.score, ", density ", trial.density, "\n");
        }
        SCOPED_TRACE(tried);
        const MInferenceTrial& best = choice.trials[choice.trial];
        EXPECT_EQ(best.pattern.type, wanted[h]) << "head " << h;
        EXPECT_LT(best.pattern.score, 0.35) << "head " << h;
        // Equal cost: all that have sizes lie within the budget, the first candidate's share, and near it.
        const double budget = choice.trials[0].density;
        for (const MInferenceTrial& trial : choice.trials) {
            EXPECT_EQ(trial.within, trial.density <= budget);
            if (trial.pattern.type == Type::block_sparse) continue;
            EXPECT_TRUE(trial.within);
            EXPECT_GT(trial.density, 0.6 * budget);
            EXPECT_GE(trial.pattern.score, best.pattern.score);
        }
        heads.push_back(best.pattern);
        EXPECT_EQ(quality.difference.relative(static_cast<int>(h)), best.pattern.score);
        EXPECT_EQ(quality.density[h], best.density);
    }
    // The table as a whole does what its heads did in the search.
    MInferenceOptions chosen = search.method;
    chosen.heads = heads;
    const LayerQuality again = samples.quality(chosen);
    EXPECT_EQ(again.difference.error, quality.difference.error);
    EXPECT_EQ(again.density, quality.density);
}

TEST(MInferenceSearch, BudgetAndSizesAsGiven) {
    Samples samples(Exec(), {3, 3, d});
    samples.add(known_heads(1200, 6));
    MInferenceSearch search;
    search.candidates = {{Type::stream_llm, 16, 100}, {Type::vertical_and_slash, 900, 300}};
    LayerQuality quality;
    search.density = 0.3;
    for (const MInferenceChoice& choice : search_minference(samples, search, quality)) {
        for (const MInferenceTrial& trial : choice.trials) {
            EXPECT_LE(trial.density, 0.3);
            EXPECT_GT(trial.density, 0.2);
        }
    }
    search.density = 1e-3;  // forced parts alone are more: the cheapest wins, and is marked
    for (const MInferenceChoice& choice : search_minference(samples, search, quality)) {
        EXPECT_FALSE(choice.trials[choice.trial].within);
        EXPECT_EQ(choice.trial, 0);
    }
    search.density.reset();
    search.as_given = true;
    for (const MInferenceChoice& choice : search_minference(samples, search, quality)) {
        for (std::size_t c = 0; c < 2; ++c) {
            EXPECT_EQ(choice.trials[c].pattern.first, search.candidates[c].first);
            EXPECT_EQ(choice.trials[c].pattern.second, search.candidates[c].second);
            EXPECT_TRUE(choice.trials[c].within);
        }
    }
}

TEST(ThresholdSearch, IsTheSmallestThatMeetsTheError) {
    Samples samples(Exec(), {3, 3, d});
    samples.add(known_heads(1500, 8));
    samples.add(known_heads(700, 9));
    for (const double error : {0.02, 0.2, 1.0}) {
        ThresholdSearch search;
        search.method.block = 64;
        search.max_error = error;
        search.steps = 7;
        const ThresholdChoice choice = search_thresholds(samples, search);
        XAttentionOptions method = search.method;
        method.thresholds = choice.thresholds;
        EXPECT_EQ(samples.quality(method).difference.error, choice.quality.difference.error);
        for (double& threshold : method.thresholds) threshold = std::max(threshold - 1.0 / 128, 1e-9);
        const LayerQuality less = samples.quality(method);
        for (int h = 0; h < 3; ++h) {
            EXPECT_TRUE(choice.met[h]);
            EXPECT_LE(choice.quality.difference.relative(h), error);
            if (choice.thresholds[h] > 1.0 / 128) {
                EXPECT_GT(less.difference.relative(h), error) << "head " << h;
            }
        }
    }
}

TEST(ThresholdSearch, IsTheLargestThatMeetsTheDensity) {
    Samples samples(Exec(), {3, 3, d});
    samples.add(known_heads(1500, 10));
    for (const double density : {0.01, 0.3, 0.5, 1.0}) {
        ThresholdSearch search;
        search.method.block = 64;
        search.density = density;
        search.steps = 8;
        const ThresholdChoice choice = search_thresholds(samples, search);
        XAttentionOptions method = search.method;
        method.thresholds = choice.thresholds;
        for (double& threshold : method.thresholds) threshold += 1.0 / 256;
        const std::vector<double> more = samples.density(method);
        for (int h = 0; h < 3; ++h) {
            EXPECT_EQ(choice.met[h], choice.quality.density[h] <= density);
            if (!choice.met[h]) {
                EXPECT_EQ(choice.thresholds[h], 1.0 / 256);
            } else if (choice.thresholds[h] < 1) {
                EXPECT_GT(more[h], density) << "head " << h;
            }
        }
        EXPECT_EQ(choice.met, std::vector<bool>(3, density >= 0.3));
        if (density == 1) {
            EXPECT_EQ(choice.thresholds, std::vector<double>(3, 1.0));
        }
    }
}

TEST(HeadSearch, OptionsOutOfRange) {
    Samples samples(Exec(), {3, 3, d});
    const auto refused = [](const auto& change) {
        MInferenceSearch search;
        change(search);
        return message_of([&] { search.validate(); });
    };
    EXPECT_THAT(refused([](auto& s) { s.density = 0; }), HasSubstr("density is 0, must be above 0"));
    EXPECT_THAT(refused([](auto& s) { s.density = NAN; }), HasSubstr("density is nan"));
    EXPECT_THAT(refused([](auto& s) { s.candidates.clear(); }), HasSubstr("number of candidates is 0"));
    EXPECT_THAT(refused([](auto& s) { s.candidates[0].second = 0; }), HasSubstr("second size of a candidate is 0"));
    EXPECT_THAT(refused([](auto& s) { s.method.size_ratio = 2; }), HasSubstr("size_ratio is 2, must be 1"));
    EXPECT_THAT(refused([](auto& s) { s.density = 0.5, s.as_given = true; }), HasSubstr("as_given is set"));
    const auto wrong = [](const auto& change) {
        ThresholdSearch search;
        search.max_error = 0.1;
        change(search);
        return message_of([&] { search.validate(); });
    };
    EXPECT_THAT(wrong([](auto& s) { s.max_error.reset(); }), HasSubstr("both missing"));
    EXPECT_THAT(wrong([](auto& s) { s.density = 0.5; }), HasSubstr("both given"));
    EXPECT_THAT(wrong([](auto& s) { s.max_error = -1; }), HasSubstr("max_error is -1"));
    EXPECT_THAT(wrong([](auto& s) { s.steps = 0; }), HasSubstr("steps is 0, must be in [1, 20]"));
}

TEST(MInferencePattern, TextForm) {
    EXPECT_EQ(parse_minference_pattern("stream_llm:100,800"), (MInferencePattern{Type::stream_llm, 100, 800}));
    EXPECT_EQ(parse_minference_pattern("dense").type, Type::dense);
    for (const char* text : {"stream", "stream_llm", "stream_llm:", "stream_llm:1", "stream_llm:1,", "stream_llm:1,x",
                             "stream_llm:1,2,3", "stream_llm:-1,2", "vertical_and_slash:1;2", ""}) {
        EXPECT_THAT(message_of([&] { (void)parse_minference_pattern(text); }), HasSubstr("pattern")) << text;
    }
    for (const MInferencePattern& candidate : minference_candidates()) {
        EXPECT_EQ(parse_minference_pattern(concat(name(candidate.type), ":", candidate.first, ",", candidate.second)),
                  candidate);
    }
}

}  // namespace
}  // namespace sparseattn::test
