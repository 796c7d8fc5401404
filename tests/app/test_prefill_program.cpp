// Figures of the prefill program against what is computed here from the definitions: dense fp64 attention over
// expanded masks, and the decoder with layouts known before.
#include "app/prefill_case.hpp"
#include "attention/dense.hpp"
#include "sparseattn/attention/measures.hpp"
#include "sparseattn/io/attention_file.hpp"
#include "sparseattn/io/detail/h5_array.hpp"
#include "sparseattn/model/decoder.hpp"
#include "sparseattn/select/model_selector.hpp"
#include "sparseattn/train/trained_model.hpp"
#include "support/arrays.hpp"

namespace sparseattn::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<std::string> methods = {"streaming:sink=8,local=40", "xattention:block=64,stride=8,threshold=0.6",
                                          "flexprefill:block=64,gamma=0.6,min_budget=64",
                                          "minference:adaptive_budget=0.3"};

const json& method_of(const json& comparison, const std::string& name) {
    for (const json& method : comparison.at("methods")) {
        if (method.at("method") == name) return method;
    }
    throw Error("no method " + name);
}

// One captured layer and a method's layout on it, as plain host arrays.
struct Layer {
    Sequences<Mem> sequences;
    testing::DenseProblem problem;
    std::vector<float> query, key;

    Layer(const AttentionFileReader& reader, int number)
        : sequences(reader.header().query_offsets, reader.header().key_offsets) {
        const AttentionFileLayer& layer = reader.find(number);
        query = reader.read<float>(number, AttentionTensor::query);
        key = reader.read<float>(number, AttentionTensor::key);
        const auto value = reader.read<float>(number, AttentionTensor::value);
        problem = {reader.queries(),
                   reader.keys(),
                   layer.heads,
                   layer.kv_heads,
                   layer.head_dim,
                   1 / std::sqrt(static_cast<double>(layer.head_dim)),
                   {query.begin(), query.end()},
                   {key.begin(), key.end()},
                   {value.begin(), value.end()},
                   std::vector<double>(query.size())};
    }
    [[nodiscard]] BlockLayout<Mem> layout(const std::string& method) const {
        const Device<float> q(query), k(key);
        Workspace<Mem> workspace;
        return select<Exec, float>(Exec(), q.heads(problem.queries, problem.heads),
                                   k.heads(problem.keys, problem.kv_heads), sequences, parse_selector(method),
                                   workspace);
    }
    [[nodiscard]] testing::Mask mask(const BlockLayout<Mem>& layout) const {
        const auto head_list = detail::to_host(Exec(), layout.head_list);
        return testing::expand_mask(sequences, layout.grid.block, layout.causal, copy_lists(Exec(), layout), head_list,
                                    detail::to_host(Exec(), layout.windows));
    }
    [[nodiscard]] std::vector<double> attend(const testing::Mask& mask) const {
        return testing::dense_attention<double>(problem, mask, std::vector<double>(problem.heads, 1.0)).out;
    }
};

double relative(const std::vector<double>& out, const std::vector<double>& wanted) {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
        error += (out[i] - wanted[i]) * (out[i] - wanted[i]);
        size += wanted[i] * wanted[i];
    }
    return std::sqrt(error / size);
}

// Mean over queries of the kept share of head h's attention mass.
double mass(const Layer& layer, const testing::Mask& all, const testing::Mask& kept,
            const std::vector<std::int32_t>& queries, int h) {
    const testing::DenseProblem& p = layer.problem;
    double sum = 0;
    for (const std::int32_t i : queries) {
        double total = 0, part = 0;
        for (std::int64_t j = 0; j < p.keys; ++j) {
            double score = 0;
            for (std::int64_t c = 0; c < p.head_dim; ++c) {
                score += p.query[(i * p.heads + h) * p.head_dim + c] *
                         p.key[(j * p.kv_heads + h / (p.heads / p.kv_heads)) * p.head_dim + c];
            }
            const std::int64_t at = (h * p.queries + i) * p.keys + j;
            total += all[at] != 0 ? std::exp(p.scale * score) : 0;
            part += kept[at] != 0 ? std::exp(p.scale * score) : 0;
        }
        sum += part / total;
    }
    return sum / static_cast<double>(queries.size());
}

TEST_F(PrefillProgram, LayerFiguresAreThoseOfDenseAttentionUnderTheMask) {
    for (const bool documents : {false, true}) {
        PrefillArguments arguments = prefill.arguments();
        arguments.methods = methods;
        arguments.documents = documents;
        const int length = documents ? 500 : 261;
        arguments.lengths = {length};
        arguments.capture = prefill.path("qkv.h5");
        const json result = prefill.run(arguments);
        const json& comparison = result.at("comparisons").at(0);
        EXPECT_EQ(comparison.at("tokens"), length);
        EXPECT_EQ(comparison.at("methods").size(), 5u) << "full comes by itself";

        const AttentionFileReader reader(arguments.capture);
        EXPECT_EQ(reader.queries(), length);
        EXPECT_EQ(comparison.at("sequences"), reader.header().query_offsets.size() - 1);
        EXPECT_EQ(documents, reader.header().query_offsets.size() > 2);
        for (int number = 0; number < 2; ++number) {
            const Layer layer(reader, number);
            const auto queries = spaced_queries(layer.sequences, 9);
            const testing::Mask all = layer.mask(layer.layout("full"));
            const std::vector<double> wanted = layer.attend(all);
            for (const std::string& name : methods) {
                const testing::Mask kept = layer.mask(layer.layout(name));
                const json& figures = method_of(comparison, name).at("layers").at(number);
                double pairs = 0, of = 0, masses = 0;
                for (std::size_t i = 0; i < all.size(); ++i) {
                    pairs += kept[i];
                    of += all[i];
                }
                EXPECT_EQ(figures.at("layer"), number);
                EXPECT_NEAR(figures.at("density").get<double>(), pairs / of, 1e-12) << name;
                EXPECT_NEAR(figures.at("error").get<double>(), relative(layer.attend(kept), wanted), 1e-5) << name;
                for (int h = 0; h < 4; ++h) {
                    const double share = mass(layer, all, kept, queries, h);
                    EXPECT_NEAR(figures.at("head_mass").at(h).get<double>(), share, 1e-9) << name << " head " << h;
                    masses += share / 4;
                }
                EXPECT_NEAR(figures.at("mass").get<double>(), masses, 1e-9) << name;
                EXPECT_GT(figures.at("selection_seconds").get<double>(), 0);
                EXPECT_GT(figures.at("attention_seconds").get<double>(), 0);
            }
            EXPECT_EQ(method_of(comparison, "full").at("layers").at(number).at("error"), 0.0);
            EXPECT_EQ(method_of(comparison, "full").at("layers").at(number).at("density"), 1.0);
        }
        EXPECT_LT(method_of(comparison, methods[0]).at("density").get<double>(), documents ? 0.9 : 0.4);
    }
}

// The decoder with layouts that need no scores, loss and next tokens by their definitions.
struct Expected {
    double loss = 0;  // per label
    std::vector<int> tokens;
};
Expected predict(const PrefillCase& prefill, const std::vector<std::int32_t>& tokens, const HeadMode& mode,
                 const std::vector<std::int32_t>& queries) {
    const CheckpointReader reader(prefill.run_folder() / "checkpoints" / "step_000000000003");
    const ModelConfig config = read_trained_model(reader).config;
    const auto parameters = load_parameters(reader, config);
    Batch<Mem> batch;
    const int n = static_cast<int>(tokens.size());
    batch.sequences = Sequences<Mem>({0, n});
    std::vector<std::int32_t> positions(tokens.size()), labels(tokens.begin() + 1, tokens.end());
    for (int t = 0; t < n; ++t) positions[t] = t;
    labels.push_back(-1);
    batch.tokens = detail::to_device(Exec(), "tokens", tokens);
    batch.positions = detail::to_device(Exec(), "positions", positions);
    batch.labels = detail::to_device(Exec(), "labels", labels);
    const auto layout = build_layout(Exec(), batch.sequences, 64, true, std::vector<HeadMode>(4, mode));
    const TransposedLayout<Mem> none;
    PlannedAttention<Exec, float> attention;
    attention.set({{layout, none}, nullptr, {}, {}});
    Decoder<Exec, float> decoder(Exec(), config);
    const Device<float> logits(queries.size() * config.vocab_size);
    Expected expected;
    expected.loss =
        decoder.loss_and_logits(batch, attention, parameters, queries, logits.matrix(queries.size())) / (n - 1);
    const auto values = logits.host();
    for (std::size_t i = 0; i < queries.size(); ++i) {
        const auto row = values.begin() + static_cast<std::ptrdiff_t>(i * config.vocab_size);
        expected.tokens.push_back(static_cast<int>(std::max_element(row, row + config.vocab_size) - row));
    }
    return expected;
}

TEST_F(PrefillProgram, ModelFiguresAreThoseOfTheDecoder) {
    PrefillArguments arguments = prefill.arguments();
    arguments.methods = {"streaming:sink=2,local=6", "full:block=64"};
    arguments.samples = 3;
    const json result = prefill.run(arguments);
    const json& comparison = result.at("comparisons").at(0);
    double loss = 0, streaming_loss = 0, last = 0, same = 0;
    const std::vector<std::int32_t> queries = spaced_queries(Sequences<Mem>({0, 700}), 9);
    for (int sample = 0; sample < 3; ++sample) {
        std::vector<std::int32_t> tokens(700);
        prefill.data().validation().read(700 * sample, 700, tokens.data());
        const Expected full = predict(prefill, tokens, HeadMode::dense(), queries);
        const Expected streaming = predict(prefill, tokens, HeadMode::stream(2, 6), queries);
        loss += full.loss / 3;
        streaming_loss += streaming.loss / 3;
        last += full.tokens.back() == streaming.tokens.back() ? 1 / 3.0 : 0;
        for (std::size_t i = 0; i < queries.size(); ++i) same += full.tokens[i] == streaming.tokens[i] ? 1 / 27.0 : 0;
    }
    const json& full = method_of(comparison, "full:block=64");
    const json& streaming = method_of(comparison, "streaming:sink=2,local=6");
    EXPECT_EQ(comparison.at("methods").at(0), full) << "the baseline comes first";
    EXPECT_EQ(comparison.at("labels"), 3 * 699);
    EXPECT_EQ(comparison.at("sampled_queries"), 27);
    EXPECT_NEAR(full.at("loss").get<double>(), loss, 1e-9);
    EXPECT_EQ(full.at("loss_change"), 0.0);
    EXPECT_EQ(full.at("token_agreement"), 1.0);
    EXPECT_NEAR(streaming.at("loss").get<double>(), streaming_loss, 1e-9);
    EXPECT_NEAR(streaming.at("loss_change").get<double>(), streaming_loss - loss, 1e-9);
    EXPECT_NE(streaming_loss, loss);
    EXPECT_NEAR(streaming.at("last_token_agreement").get<double>(), last, 1e-9);
    EXPECT_NEAR(streaming.at("token_agreement").get<double>(), same, 1e-9);
    EXPECT_NEAR(streaming.at("speed_up").get<double>(),
                (full.at("selection_seconds").get<double>() + full.at("attention_seconds").get<double>()) /
                    (streaming.at("selection_seconds").get<double>() + streaming.at("attention_seconds").get<double>()),
                1e-9);
}

template <class T>
std::vector<T> read_array(const detail::h5::File& file, const std::string& name) {
    const auto array = detail::h5::Array::open(file, name);
    std::int64_t count = 1;
    for (const std::int64_t extent : array.shape()) count *= extent;
    std::vector<T> values(count);
    array.read_rows(0, array.shape()[0], values.data());
    return values;
}

TEST_F(PrefillProgram, AFileOfTensorsGivesTheSameFiguresAndTakesTheResults) {
    PrefillArguments arguments = prefill.arguments();
    arguments.methods = methods;
    arguments.capture = prefill.path("captured.h5");
    arguments.capture_layers = "1";
    const json model = prefill.run(arguments).at("comparisons").at(0);

    PrefillArguments file = prefill.arguments();
    file.input = arguments.capture;
    file.lengths.clear();
    file.methods = methods;
    file.output = prefill.path("results.h5");
    const json tensors = prefill.run(file).at("comparisons").at(0);
    const AttentionFileReader reader(file.output);
    const Layer layer(reader, 1);
    const auto written = detail::h5::File::open(file.output);
    for (const std::string& name : methods) {
        const json& wanted = method_of(model, name).at("layers").at(1);
        const json& found = method_of(tensors, name).at("layers").at(0);
        for (const char* key : {"layer", "density", "mass", "smallest_mass", "error", "head_mass", "head_error"}) {
            EXPECT_EQ(found.at(key), wanted.at(key)) << name << ' ' << key;
        }
        EXPECT_TRUE(method_of(tensors, name).at("loss").is_null());

        const std::string group = "/layer_0001/" + name + "/";
        const BlockLayout<Mem> layout = layer.layout(name);
        const testing::Mask mask = layer.mask(layout);
        const auto dense = testing::dense_attention<double>(layer.problem, mask, std::vector<double>(4, 1.0));
        expect_close(read_array<float>(*written, group + "out"), dense.out, 2e-5);
        expect_close(read_array<float>(*written, group + "lse"), dense.lse, 2e-5);
        const HostLists lists = copy_lists(Exec(), layout);
        EXPECT_EQ(read_array<std::int64_t>(*written, group + "layout/offsets"), lists.offsets);
        EXPECT_EQ(read_array<std::int32_t>(*written, group + "layout/columns"), lists.columns);
        EXPECT_EQ(read_array<std::int32_t>(*written, group + "layout/head_list"),
                  detail::to_host(Exec(), layout.head_list));
        if (layout.has_single_keys()) {
            EXPECT_EQ(read_array<std::int32_t>(*written, group + "layout/keys"), lists.keys);
        }
    }
    // Results go beside those that are there, into the file itself.
    file.input = file.output;
    file.methods = {"streaming:sink=1,local=3"};
    (void)prefill.run(file);
    const auto again = detail::h5::File::open(file.output);
    EXPECT_TRUE(again->has("/layer_0001/streaming:sink=1,local=3/out"));
    EXPECT_TRUE(again->has("/layer_0001/" + methods[1] + "/out"));
}

// Queries against a longer cache, two sequences and an empty one, no causality, a scale.
TEST_F(PrefillProgram, FilesMayHoldChunksAndSequences) {
    const int heads = 4, kv_heads = 2, d = 64;
    for (const bool causal : {true, false}) {
        AttentionFileHeader header{{0, 70, 70, 130}, {0, 200, 200, 333}, causal, 0.2};
        const std::filesystem::path file = prefill.path("chunks.h5");
        {
            AttentionFileWriter writer(file, header);
            const auto q = random<float>(130 * heads * d, 1), k = random<float>(333 * kv_heads * d, 2),
                       v = random<float>(333 * kv_heads * d, 3);
            writer.write_layer<float>({7, heads, kv_heads, d}, q, k, v);
            writer.commit();
        }
        PrefillArguments arguments = prefill.arguments();
        arguments.input = file;
        arguments.lengths.clear();
        arguments.methods = {"xattention:block=64,threshold=0.5,stride=8"};
        const json comparison = prefill.run(arguments).at("comparisons").at(0);
        EXPECT_EQ(comparison.at("sequences"), 3);
        EXPECT_EQ(comparison.at("keys"), 333);
        Layer layer(AttentionFileReader(file), 7);
        layer.problem.scale = 0.2;
        for (float& q : layer.query) q *= static_cast<float>(0.2 * std::sqrt(64.0));  // selectors scale by 1 / sqrt(d)
        auto method = std::get<XAttentionOptions>(parse_selector(arguments.methods[0]));
        method.causal = causal;
        const testing::Mask kept = layer.mask(layer.layout(describe(SelectorOptions(method))));
        const testing::Mask all = layer.mask(layer.layout(causal ? "full" : "full:causal=false"));
        const json& figures = method_of(comparison, arguments.methods[0]).at("layers").at(0);
        EXPECT_NEAR(figures.at("error").get<double>(), relative(layer.attend(kept), layer.attend(all)), 1e-5);
        EXPECT_NEAR(figures.at("head_mass").at(3).get<double>(),
                    mass(layer, all, kept, spaced_queries(layer.sequences, 9), 3), 1e-9);
        EXPECT_LT(figures.at("density").get<double>(), 1.0);
    }
}

TEST_F(PrefillProgram, TablesComeLayerByLayer) {
    write_file_atomically(prefill.path("t.tsv"), "1 1 1 1\n0.3 0.3 0.3 0.3\n");
    write_file_atomically(
        prefill.path("m.json"),
        R"([{"0": ["stream_llm", 8, 40, 1], "1": ["dense", 0, 0, 1]}, {"3": ["stream_llm", 8, 40, 1]}])");
    PrefillArguments arguments = prefill.arguments();
    const std::string thresholds = "xattention:block=64,stride=8,thresholds=" + prefill.path("t.tsv").string();
    const std::string table = "minference:table=" + prefill.path("m.json").string();
    arguments.methods = {thresholds, table};
    const json comparison = prefill.run(arguments).at("comparisons").at(0);
    EXPECT_EQ(method_of(comparison, thresholds).at("layers").at(0).at("density"), 1.0);
    EXPECT_LT(method_of(comparison, thresholds).at("layers").at(1).at("density").get<double>(), 0.9);
    const double window = method_of(comparison, table).at("layers").at(0).at("head_density").at(0).get<double>();
    EXPECT_LT(window, 0.15);
    EXPECT_EQ(method_of(comparison, table).at("layers").at(0).at("head_density").at(1), 1.0);
    EXPECT_EQ(method_of(comparison, table).at("layers").at(1).at("head_density").at(3), window);
}

TEST_F(PrefillProgram, ChosenLayersPicturesAndOutput) {
    PrefillArguments arguments = prefill.arguments();
    arguments.methods = {"streaming"};
    arguments.layers = "1";
    arguments.lengths = {300, 200};
    arguments.pictures = prefill.path("pictures");
    arguments.picture_heads = "0,2-3";
    const json result = prefill.run(arguments);
    ASSERT_EQ(result.at("comparisons").size(), 2u);
    EXPECT_EQ(method_of(result.at("comparisons").at(1), "streaming").at("layers").size(), 1u);
    const std::string picture = read_file(arguments.pictures / "300_tokens_layer_0001_streaming.svg");
    EXPECT_THAT(picture, HasSubstr("head 3"));
    EXPECT_THAT(picture, Not(HasSubstr("head 1")));
    EXPECT_FALSE(std::filesystem::exists(arguments.pictures / "300_tokens_layer_0000_streaming.svg"));

    const std::string text = prefill.output(arguments);
    EXPECT_THAT(text, HasSubstr("trained on 160 tokens at once"));
    EXPECT_THAT(text, HasSubstr("Lengths above those of training"));
    EXPECT_THAT(text, HasSubstr("\n200 tokens\nmethod "));
    arguments.dry_run = true;
    arguments.json.clear();
    const std::string plan = prefill.output(arguments);
    EXPECT_THAT(plan, HasSubstr("forward pass of 300 tokens"));
    EXPECT_THAT(plan, HasSubstr("total"));
    EXPECT_THAT(plan, Not(HasSubstr("speed-up")));
}

TEST_F(PrefillProgram, TextFilesAreBytes) {
    const std::filesystem::path file = prefill.path("some.txt");
    std::string text;
    while (text.size() < 500) text += "for (int i = 0; i < n; ++i) { x += y[i]; }\n";
    write_file_atomically(file, text);
    PrefillArguments arguments = prefill.arguments();
    arguments.methods = {"streaming:sink=2,local=6"};
    arguments.text = {file, file};
    arguments.lengths = {600};
    const json comparison = prefill.run(arguments).at("comparisons").at(0);
    std::vector<std::int32_t> tokens = {256};
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    tokens.push_back(257);
    const auto once = tokens;
    tokens.insert(tokens.end(), once.begin(), once.end());
    tokens.resize(600);
    const Expected expected = predict(prefill, tokens, HeadMode::dense(), {599});
    EXPECT_NEAR(method_of(comparison, "full").at("loss").get<double>(), expected.loss, 1e-9);
}

}  // namespace
}  // namespace sparseattn::test
