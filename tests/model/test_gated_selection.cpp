// Gated heads whose sparse branch is selected from each layer's queries and keys.
#include <gmock/gmock.h>

#include "model/problem.hpp"
#include "sparseattn/core/error.hpp"
#include "sparseattn/model/selected_attention.hpp"

namespace sparseattn::test {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// Several blocks of 64 tokens in each document, and selectors that leave some out.
const std::vector<std::int32_t> documents = {0, 330, 331, 520};
const std::vector<std::string> methods = {"xattention:stride=8,block=64,threshold=0.3",
                                          "flexprefill:block=64,gamma=0.3,min_budget=0",
                                          "minference:adaptive_budget=0.05"};

ModelConfig config_of(int layers) {
    ModelConfig config = tiny_config(false, true, 32);
    config.num_hidden_layers = layers;
    return config;
}

std::vector<LayerSelector> selectors(int layers, const std::string& text) {
    return std::vector<LayerSelector>(layers, LayerSelector{parse_selector(text), {}});
}

struct Result {
    double loss;
    std::vector<float> gradients, dgate;
    BlockLayout<Mem> layout;  // of the last layer
};

Result run_selected(const ModelConfig& config, const Batch<Mem>& batch, const Layouts& layouts,
                    const std::string& method, const std::vector<double>& parameters, bool recompute,
                    bool host_gates = false) {
    const Device<float> device(std::vector<float>(parameters.begin(), parameters.end())), gate(layouts.gates);
    const Device<float> gradients(parameters.size()), dgate(layouts.gates.size());
    SelectedAttention<Exec, float> attention(selectors(config.num_hidden_layers, method), {}, true);
    attention.set_gates({{layouts.full, layouts.full_transposed},
                         gate.matrix(layouts.layers),
                         dgate.matrix(layouts.layers),
                         host_gates ? layouts.gates : std::vector<float>()});
    Result run;
    attention.observe([&](const SelectedLayer<Exec, float>& layer) { run.layout = layer.layout; });
    Decoder<Exec, float> decoder(Exec(), config);
    run.loss = decoder.loss_and_gradients(batch, attention, device.flat(), 0.5F, gradients.flat(), {recompute, 100});
    run.gradients = gradients.host();
    run.dgate = dgate.host();
    return run;
}

TEST(GatedSelection, GradientsAreThoseOfTheChosenLayout) {
    const ModelConfig config = config_of(1);
    const auto batch = random_batch(config, documents, 51);
    const Layouts layouts(config, batch.sequences);
    const auto parameters = random_parameters(config, 52);
    const Device<float> gate(layouts.gates);
    for (const std::string& method : methods) {
        const Result run = run_selected(config, batch, layouts, method, parameters, false);
        EXPECT_LT(statistics(Exec(), batch.sequences, run.layout).density(), 0.97) << method;
        const auto transposed = transpose(Exec(), batch.sequences, run.layout);
        const LayoutPair<Mem> sparse{run.layout, transposed};
        const AttentionPlan<Mem> plan{
            {layouts.full, layouts.full_transposed}, &sparse, gate.matrix(layouts.layers), {}};
        Decoder<Exec, float> decoder(Exec(), config);
        const auto wanted = run_gradients<float>(
            decoder, batch, plan, std::vector<float>(parameters.begin(), parameters.end()), 0.5F, {false, 100});
        EXPECT_EQ(run.loss, wanted.loss) << method;
        EXPECT_EQ(run.gradients, wanted.parameters) << method;
        EXPECT_EQ(run.dgate, wanted.gate) << method;

        // The same in double, against central differences with the layout held.
        Decoder<Exec, double> exact(Exec(), config);
        const auto doubles = run_gradients<double>(exact, batch, plan, parameters, 1.0, {false, 100});
        const auto loss = [&](const std::vector<double>& at) {
            return exact.loss(batch, plan, Device<double>(at).flat());
        };
        expect_gradient(method, parameters, doubles.parameters, loss, 1e-6, 12);
        double largest = 0, worst = 0;
        for (std::size_t i = 0; i < parameters.size(); ++i) {
            largest = std::max(largest, std::abs(doubles.parameters[i]));
            worst = std::max(worst, std::abs(2 * run.gradients[i] - doubles.parameters[i]));
        }
        EXPECT_LT(worst, 1e-4 * largest) << method;
    }
}

TEST(GatedSelection, RecomputedLayersGiveTheSameGradients) {
    const ModelConfig config = config_of(3);
    const auto batch = random_batch(config, documents, 61);
    const Layouts layouts(config, batch.sequences);
    const auto parameters = random_parameters(config, 62);
    for (const std::string& method : methods) {
        const Result kept = run_selected(config, batch, layouts, method, parameters, false);
        const Result again = run_selected(config, batch, layouts, method, parameters, true);
        EXPECT_EQ(kept.loss, again.loss) << method;
        EXPECT_EQ(kept.gradients, again.gradients) << method;
        EXPECT_EQ(kept.dgate, again.dgate) << method;
    }
}

// The branch of an open gate does not run: with the gates known on the host its heads are not estimated, and nothing
// else changes.
TEST(GatedSelection, OpenGatesAreNotEstimated) {
    const ModelConfig config = config_of(1);
    const auto batch = random_batch(config, documents, 91);
    const Layouts layouts(config, batch.sequences);  // gate 0 is 1
    const auto parameters = random_parameters(config, 92);
    for (const std::string& method : methods) {
        const Result all = run_selected(config, batch, layouts, method, parameters, false);
        const Result some = run_selected(config, batch, layouts, method, parameters, false, true);
        EXPECT_EQ(all.loss, some.loss) << method;
        EXPECT_EQ(all.gradients, some.gradients) << method;
        EXPECT_EQ(all.dgate, some.dgate) << method;
        const auto density = [&](const Result& run, int head) {
            return statistics(Exec(), batch.sequences, run.layout).head_density[head];
        };
        EXPECT_LT(density(some, 0), 0.02) << method;
        for (const int head : {1, 2, 3}) EXPECT_EQ(density(some, head), density(all, head)) << method;
    }
}

// Closed gates are the selection alone, open ones dense attention.
TEST(GatedSelection, EndsAreTheBranches) {
    const ModelConfig config = config_of(2);
    const auto batch = random_batch(config, documents, 71);
    const Layouts layouts(config, batch.sequences);
    const auto exact = random_parameters(config, 72);
    const Device<float> parameters(std::vector<float>(exact.begin(), exact.end()));
    Decoder<Exec, float> decoder(Exec(), config);
    for (const std::string& method : methods) {
        SelectedAttention<Exec, float> gated(selectors(2, method), {}, true), plain(selectors(2, method));
        for (const float z : {0.0F, 1.0F}) {
            const Device<float> gate(layouts.gates.size(), z);
            gated.set_gates({{layouts.full, layouts.full_transposed}, gate.matrix(2), {}, {}});
            const double wanted = z == 0 ? decoder.loss(batch, plain, parameters.flat())
                                         : decoder.loss(batch, layouts.plain(), parameters.flat());
            EXPECT_NEAR(decoder.loss(batch, gated, parameters.flat()), wanted, 1e-5 * wanted) << method << ", z " << z;
        }
    }
}

TEST(GatedSelection, RefusesGatesThatDoNotFit) {
    const ModelConfig config = config_of(2);
    const auto batch = random_batch(config, {0, 100}, 81);
    const Layouts layouts(config, batch.sequences);
    SelectedAttention<Exec, float> gated(selectors(2, methods[0]), {}, true), plain(selectors(2, methods[0]));
    const auto message = [&](const auto& call, const char* text) {
        EXPECT_THAT(call, ThrowsMessage<InvalidArgument>(HasSubstr(text)));
    };
    message([&] { gated.prepare(config, {100, false, false}); }, "gates is not set");
    const Device<float> gate(2 * 4), few(2 * 3);
    const LayoutPair<Mem> full{layouts.full, layouts.full_transposed};
    message([&] { plain.set_gates({full, gate.matrix(2), {}, {}}); }, "made without gates");
    gated.set_gates({full, few.matrix(2), {}, {}});
    message([&] { gated.prepare(config, {100, false, false}); }, "extents of gate is 2 x 3");
    gated.set_gates({full, gate.matrix(2), {}, {}});
    gated.prepare(config, {100, false, false});
    message([&] { gated.prepare(config, {100, true, false}); }, "extents of dgate is 0 x 0");
}

}  // namespace
}  // namespace sparseattn::test
