// Layouts made inside the decoder: the same bits as the same layouts known before, in both passes.
#include <gmock/gmock.h>

#include <filesystem>

#include "model/problem.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/layout/detail/copies.hpp"
#include "sparseattn/model/capture_attention.hpp"
#include "sparseattn/model/selected_attention.hpp"
#include "support/kokkos_tools.hpp"

namespace sparseattn::test {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const std::vector<std::string> methods = {
    "full:block=64", "streaming:sink=8,local=40", "xattention:stride=8,block=64,threshold=0.5",
    "flexprefill:block=64,gamma=0.4,min_budget=64", "minference:adaptive_budget=0.2"};

ModelConfig float_config(int layers) {
    ModelConfig config = tiny_config(false, true, 32);
    config.num_hidden_layers = layers;
    config.hidden_size = 48;
    return config;
}

std::vector<float> float_parameters(const ModelConfig& config, std::uint64_t seed) {
    const auto exact = random_parameters(config, seed);
    return std::vector<float>(exact.begin(), exact.end());
}

std::vector<LayerSelector> selectors(int layers, const std::string& text) {
    return std::vector<LayerSelector>(layers, LayerSelector{parse_selector(text), {}});
}

// Query, key and value of one layer over two documents, as strided parts of one buffer.
struct LayerCase {
    static constexpr int heads = 4, kv_heads = 2, d = 32, tokens = 700;
    ModelConfig config = float_config(2);
    Sequences<Mem> sequences{std::vector<std::int32_t>{0, 450, 450, 700}};
    Device<float> qkv, dout{random<float>(tokens * heads * d, 8)};
    Device<float> out{tokens * heads * d}, gradients{tokens * (heads + 2 * kv_heads) * d};

    explicit LayerCase(std::uint64_t seed) : qkv(random<float>(tokens * (heads + 2 * kv_heads) * d, seed, 2.0)) {}

    HeadsView<float, Mem> part(const Device<float>& buffer, int first, int count) const {
        const std::size_t row = (heads + 2 * kv_heads) * d;
        return HeadsView<float, Mem>(buffer.array.data() + static_cast<std::size_t>(first) * d,
                                     Kokkos::LayoutStride(tokens, row, count, d, d, 1));
    }
    AttentionInputs<float, Mem> inputs() const {
        return {part(qkv, 0, heads), part(qkv, heads, kv_heads), part(qkv, heads + kv_heads, kv_heads)};
    }
    AttentionGradients<float, Mem> results() const {
        return {part(gradients, 0, heads), part(gradients, heads, kv_heads),
                part(gradients, heads + kv_heads, kv_heads)};
    }
};

TEST(SelectedAttention, IsAttentionOverTheSelectedLayout) {
    const Exec exec;
    for (const std::string& method : methods) {
        for (const bool recompute : {false, true}) {
            const LayerCase c(3);
            SelectedAttention<Exec, float> selected(selectors(2, method));
            selected.prepare(c.config, {LayerCase::tokens, true, recompute});
            const LayerInputs<Exec, float> inputs{1, c.sequences, c.inputs()};
            selected.forward(exec, inputs, c.out.heads(LayerCase::tokens, 4));
            selected.backward(exec, inputs, c.out.heads(LayerCase::tokens, 4), c.dout.heads(LayerCase::tokens, 4),
                              c.results());

            Workspace<Mem> workspace;
            const auto layout = select<Exec, float>(exec, inputs.heads.query, inputs.heads.key, c.sequences,
                                                    parse_selector(method), workspace);
            const auto transposed = transpose(exec, c.sequences, layout);
            const LayerCase wanted(3);
            const Device<float> lse(LayerCase::tokens * 4);
            const RowsView<float, Mem> rows(lse.array.data(), Kokkos::LayoutStride(LayerCase::tokens, 4, 4, 1));
            const auto out = wanted.out.heads(LayerCase::tokens, 4);
            attention_forward<Exec, float>(exec, wanted.inputs(), c.sequences, layout, {}, workspace, {out, rows});
            attention_backward<Exec, float>(exec, wanted.dout.heads(LayerCase::tokens, 4), wanted.inputs(), {out, rows},
                                            c.sequences, {layout, transposed}, {}, workspace, wanted.results());
            EXPECT_EQ(c.out.host(), wanted.out.host()) << method;
            EXPECT_EQ(c.gradients.host(), wanted.gradients.host()) << method;
        }
    }
}

// The layout that the forward pass chose is a constant for the gradient: the decoder's gradients are those with this
// layout planned.
TEST(SelectedAttention, DecoderGradientsAreThoseOfTheChosenLayout) {
    const ModelConfig config = float_config(1);
    const auto batch = random_batch(config, {0, 300, 520}, 21);
    const auto parameters = float_parameters(config, 22);
    for (const std::string& method : methods) {
        SelectedAttention<Exec, float> selected(selectors(1, method));
        BlockLayout<Mem> layout;
        selected.observe([&](const SelectedLayer<Exec, float>& layer) { layout = layer.layout; });
        const Device<float> device(parameters), gradients(parameters.size());
        Decoder<Exec, float> decoder(Exec(), config);
        const double loss =
            decoder.loss_and_gradients(batch, selected, device.flat(), 0.5F, gradients.flat(), {false, 100});
        const auto transposed = transpose(Exec(), batch.sequences, layout);
        const AttentionPlan<Mem> plan{{layout, transposed}, nullptr, {}, {}};
        const auto wanted = run_gradients<float>(decoder, batch, plan, parameters, 0.5F, {false, 100});
        EXPECT_EQ(loss, wanted.loss) << method;
        EXPECT_EQ(gradients.host(), wanted.parameters) << method;
    }
}

TEST(SelectedAttention, RecomputedLayersGiveTheSameGradients) {
    const ModelConfig config = float_config(3);
    const auto batch = random_batch(config, {0, 200, 330}, 31);
    const auto parameters = float_parameters(config, 32);
    for (const std::string& method : methods) {
        SelectedAttention<Exec, float> selected(selectors(3, method));
        std::vector<std::vector<float>> results;
        for (const bool recompute : {false, true}) {
            const Device<float> device(parameters), gradients(parameters.size());
            Decoder<Exec, float> decoder(Exec(), config);
            decoder.loss_and_gradients(batch, selected, device.flat(), 1.0F, gradients.flat(), {recompute, 64});
            results.push_back(gradients.host());
        }
        EXPECT_EQ(results[0], results[1]) << method;
    }
}

TEST(SelectedAttention, FullIsTheDenseModel) {
    const ModelConfig config = float_config(2);
    const auto batch = random_batch(config, {0, 90, 91, 400}, 41);
    const Device<float> parameters(float_parameters(config, 42));
    const Layouts layouts(config, batch.sequences);
    Decoder<Exec, float> decoder(Exec(), config);
    SelectedAttention<Exec, float> full(selectors(2, "full:block=64")), all(selectors(2, "xattention:threshold=1"));
    const double wanted = decoder.loss(batch, layouts.plain(), parameters.flat());
    EXPECT_EQ(decoder.loss(batch, full, parameters.flat()), wanted);
    EXPECT_NEAR(decoder.loss(batch, all, parameters.flat()), wanted, 1e-6 * wanted);
}

TEST(SelectedAttention, LayersAndHeadsHaveSelectorsOfTheirOwn) {
    const ModelConfig config = float_config(2);
    const auto batch = random_batch(config, {0, 400}, 51);
    const Device<float> parameters(float_parameters(config, 52));
    std::vector<LayerSelector> layers = {{parse_selector("streaming:sink=4,local=32"), {}},
                                         {parse_selector("full:block=64"), {}}};
    layers[1].heads.fixed = {HeadMode::stream(0, 1), std::nullopt, std::nullopt, std::nullopt};
    SelectedAttention<Exec, float> selected(layers);
    std::vector<int> seen;
    selected.observe([&](const SelectedLayer<Exec, float>& layer) {
        seen.push_back(layer.inputs.layer);
        const auto found = statistics(Exec(), layer.inputs.sequences, layer.layout);
        EXPECT_GE(layer.selection_seconds, 0);
        EXPECT_GT(layer.attention_seconds, 0);
        EXPECT_EQ(layer.out.extent(0), 400u);
        if (layer.inputs.layer == 0) {
            EXPECT_LT(found.density(), 0.2);
        } else {
            EXPECT_NEAR(found.head_density[0], 400 / (400 * 401 / 2.0), 1e-9);
            EXPECT_EQ(found.head_density[1], 1.0);
        }
    });
    Decoder<Exec, float> decoder(Exec(), config);
    decoder.loss(batch, selected, parameters.flat());
    EXPECT_EQ(seen, (std::vector<int>{0, 1}));
}

template <class T>
void expect_stated_memory() {
    const ModelConfig config = float_config(2);
    const auto batch = random_batch(config, {0, 1024}, 61);
    const auto values = random_parameters(config, 62);
    const std::vector<T> parameters(values.begin(), values.end());
    for (const std::string& method : methods) {
        SelectedAttention<Exec, T> selected(selectors(2, method));
        EXPECT_EQ(selected.allocated(), 0);
        Decoder<Exec, T> decoder(Exec(), config);
        const Device<T> device(parameters);
        const Device<float> gradients(parameters.size());
        const auto pass = [&] {
            decoder.loss_and_gradients(batch, selected, device.flat(), 1.0F, gradients.flat(), {});
        };
        pass();
        const std::int64_t held = selected.allocated();
        const AttentionBytes stated = selected.bytes(config, {1024, true, false});
        EXPECT_LE(held, stated.saved + stated.workspace + stated.workspace / 4 + 65536) << method;
        EXPECT_GT(held, (stated.saved + stated.workspace) / 2) << method;
        pass();
        EXPECT_EQ(selected.allocated(), held) << method;
    }
}

TEST(SelectedAttention, MemoryStaysAndIsStated) {
    expect_stated_memory<float>();
    expect_stated_memory<bf16>();
}

// Every kernel is labelled, and in the steady state only layouts and their transposes are allocated.
TEST(SelectedAttention, KernelsAreLabelledAndOnlyLayoutsAllocated) {
    using ::testing::AnyOf;
    using ::testing::StartsWith;
    const Exec exec;
    for (const std::string& method : methods) {
        const LayerCase c(4);
        SelectedAttention<Exec, float> selected(selectors(2, method));
        const LayerInputs<Exec, float> inputs{0, c.sequences, c.inputs()};
        const auto pass = [&] {
            selected.prepare(c.config, {LayerCase::tokens, true, false});
            selected.forward(exec, inputs, c.out.heads(LayerCase::tokens, 4));
            selected.backward(exec, inputs, c.out.heads(LayerCase::tokens, 4), c.dout.heads(LayerCase::tokens, 4),
                              c.results());
        };
        pass();
        const sparseattn::testing::KokkosRecording recording;
        pass();
        for (const auto& kernel : recording.kernels()) {  // the library's, or a View's fill by Kokkos
            EXPECT_THAT(kernel.label, AnyOf(StartsWith("SparseAttn::"), StartsWith("Kokkos::View")));
        }
        for (const std::string& label : recording.allocations()) {
            EXPECT_THAT(label, AnyOf(StartsWith("SparseAttn::layout"), StartsWith("SparseAttn::grid"),
                                     StartsWith("SparseAttn::transpose"), "SparseAttn::list_rules"));
        }
    }
}

TEST(SelectedAttention, BadArgumentsAreNamed) {
    XAttentionOptions bad;
    bad.threshold = std::nan("");
    EXPECT_THAT(([&] {
                    SelectedAttention<Exec, float>({{bad, {}}});
                }),
                ThrowsMessage<InvalidArgument>(HasSubstr("xattention.threshold is nan")));
    SelectedAttention<Exec, float> three(selectors(3, "full"));
    EXPECT_THAT(
        [&] {
            three.prepare(float_config(2), {64, false, false});
        },
        ThrowsMessage<InvalidArgument>(HasSubstr("selectors is 3")));
}

TEST(LossAndLogits, LogitsAreThoseOfTheLoss) {
    const ModelConfig config = float_config(2);
    auto batch = random_batch(config, {0, 70, 200}, 71);
    const Device<float> parameters(float_parameters(config, 72));
    Decoder<Exec, float> decoder(Exec(), config);
    SelectedAttention<Exec, float> full(selectors(2, "full:block=64"));
    const std::vector<std::int32_t> chosen = {199, 0, 69, 70};
    const int vocabulary = config.vocab_size;
    const Device<float> logits(chosen.size() * vocabulary);
    const double loss = decoder.loss_and_logits(batch, full, parameters.flat(), chosen, logits.matrix(chosen.size()));
    EXPECT_EQ(loss, decoder.loss(batch, full, parameters.flat()));
    const auto values = logits.host();
    for (std::size_t i = 0; i < chosen.size(); ++i) {
        std::vector<std::int32_t> labels(200, -1);
        labels[chosen[i]] = 5;
        batch.labels = detail::to_device(Exec(), "labels", labels);
        double sum = 0;
        for (int c = 0; c < vocabulary; ++c) sum += std::exp(static_cast<double>(values[i * vocabulary + c]));
        const double wanted = decoder.loss(batch, full, parameters.flat());
        EXPECT_NEAR(std::log(sum) - values[i * vocabulary + 5], wanted, 1e-5 * std::max(1.0, wanted)) << chosen[i];
    }
    const auto refused = [&](const std::vector<std::int32_t>& tokens, std::size_t rows, const char* message) {
        EXPECT_THAT([&] { decoder.loss_and_logits(batch, full, parameters.flat(), tokens, logits.matrix(rows)); },
                    ThrowsMessage<InvalidArgument>(HasSubstr(message)));
    };
    refused({1, 2, 3, 200}, 4, "tokens[3] is 200");
    refused({1, 2}, 4, "logits.size() is 4");
    refused({1, 2}, 2, "logits.extent(1)");
}

/// The elements of a strided array of any memory, row-major.
std::vector<float> values_of(const HeadsView<const float, Exec::memory_space>& heads) {
    const std::size_t rows = heads.extent(1), columns = heads.extent(2);
    const Array1<float, Exec::memory_space> flat("values", heads.size());
    Kokkos::parallel_for(
        Kokkos::RangePolicy<Exec>(0, heads.size()),
        KOKKOS_LAMBDA(std::size_t i) { flat(i) = heads(i / columns / rows, i / columns % rows, i % columns); });
    return detail::to_host(Exec(), flat);
}

TEST(CaptureAttention, WritesWhatTheLayersReadAndChangesNothing) {
    const ModelConfig config = float_config(3);
    const auto batch = random_batch(config, {0, 70, 200}, 81);
    const Device<float> parameters(float_parameters(config, 82));
    const auto file = std::filesystem::temp_directory_path() /
                      concat("sparseattn_capture_", reinterpret_cast<std::uintptr_t>(&batch), ".h5");
    Decoder<Exec, float> decoder(Exec(), config);
    SelectedAttention<Exec, float> full(selectors(3, "full:block=64"));
    std::vector<std::vector<float>> queries, outputs;
    full.observe(
        [&](const SelectedLayer<Exec, float>& layer) { queries.push_back(values_of(layer.inputs.heads.query)); });
    CaptureAttention<Exec, float> capture(full, {0, 2}, file);
    EXPECT_EQ(decoder.loss(batch, capture, parameters.flat()), decoder.loss(batch, full, parameters.flat()));
    EXPECT_FALSE(std::filesystem::exists(file));
    capture.commit();
    const AttentionFileReader reader(file);
    EXPECT_EQ(reader.header().query_offsets, (std::vector<std::int32_t>{0, 70, 200}));
    EXPECT_TRUE(reader.header().causal);
    ASSERT_EQ(reader.layers().size(), 2u);
    EXPECT_EQ(reader.find(2).heads, 4);
    EXPECT_EQ(reader.find(2).kv_heads, 2);
    EXPECT_EQ(reader.read<float>(0, AttentionTensor::query), queries[0]);
    EXPECT_EQ(reader.read<float>(2, AttentionTensor::query), queries[2]);
    EXPECT_EQ(reader.read<float>(2, AttentionTensor::value).size(), 200u * 2 * 32);
    EXPECT_THAT([&] { capture.commit(); }, ThrowsMessage<InvalidArgument>(HasSubstr("committed already")));

    CaptureAttention<Exec, float> missing(full, {3}, file);
    EXPECT_THAT([&] { decoder.loss(batch, missing, parameters.flat()); },
                ThrowsMessage<InvalidArgument>(HasSubstr("layer to capture is 3")));
    EXPECT_THAT([&] { missing.commit(); }, ThrowsMessage<InvalidArgument>(HasSubstr("1 not seen yet")));
    std::filesystem::remove(file);
}

}  // namespace
}  // namespace sparseattn::test
