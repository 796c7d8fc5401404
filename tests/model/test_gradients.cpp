// Gradients of the whole decoder against central differences of its loss, in double.
#include "model/problem.hpp"

namespace sparseattn::test {
namespace {

// Documents of one token, none at all, and more than a block.
const std::vector<std::int32_t> documents = {0, 9, 10, 10, 79};

struct Variant {
    bool tied, qk_norm, gated;
};
std::ostream& operator<<(std::ostream& out, const Variant& v) {
    return out << (v.tied ? "tied" : "untied") << (v.qk_norm ? "_qknorm" : "") << (v.gated ? "_gated" : "_plain");
}

class DecoderGradients : public testing::TestWithParam<Variant> {
  protected:
    ModelConfig config = tiny_config(GetParam().tied, GetParam().qk_norm);
    Batch<Mem> batch = random_batch(config, documents, 7);
    Layouts layouts{config, batch.sequences};
    Device<float> gate{layouts.gates};
    AttentionPlan<Mem> plan = GetParam().gated ? layouts.gated(gate) : layouts.plain();
    std::vector<double> parameters = random_parameters(config, 8);
    Decoder<Exec, double> decoder{Exec(), config};

    double loss(const std::vector<double>& values) {
        const Device<double> device(values);
        return decoder.loss(batch, plan, device.flat(), 16);
    }
};

TEST_P(DecoderGradients, EveryTensorMatchesDifferences) {
    const double scale = 0.5;
    const auto result = run_gradients<double>(decoder, batch, plan, parameters, scale, {false, 16});
    EXPECT_DOUBLE_EQ(result.loss, loss(parameters));
    for (const ParameterInfo& info : decoder.table().parameters()) {
        const auto begin = static_cast<std::size_t>(info.offset),
                   end = static_cast<std::size_t>(info.offset + info.count);
        const std::vector<double> at(&parameters[begin], &parameters[begin] + info.count);
        const std::vector<double> gradient(&result.parameters[begin], &result.parameters[begin] + info.count);
        const auto f = [&](const std::vector<double>& part) {
            auto all = parameters;
            std::copy(part.begin(), part.end(), all.begin() + info.offset);
            return scale * loss(all);
        };
        ASSERT_EQ(end - begin, at.size());
        expect_gradient(info.name, at, gradient, f, 1e-7, 7);
    }
}

TEST_P(DecoderGradients, RecomputedLayersGiveTheSameBits) {
    const auto stored = run_gradients<double>(decoder, batch, plan, parameters, 1.0, {false, 32});
    const auto again = run_gradients<double>(decoder, batch, plan, parameters, 1.0, {true, 32});
    EXPECT_EQ(stored.loss, again.loss);
    EXPECT_EQ(stored.parameters, again.parameters);
    EXPECT_EQ(stored.gate, again.gate);
}

TEST_P(DecoderGradients, AreFinalWhenTheDecoderSaysSo) {
    const auto end = run_gradients<double>(decoder, batch, plan, parameters, 1.0, {true, 16});
    const Device<double> device(parameters), gradients(parameters.size());
    const Device<float> dgate(layouts.gates.size());
    PlannedAttention<Exec, double> attention;
    attention.set(plan, plan.gated() ? dgate.matrix(layouts.layers) : Span2<float, Mem>());
    std::vector<std::int64_t> begins;
    const auto final = [&](std::int64_t begin) {
        begins.push_back(begin);
        const auto now = gradients.host();
        for (auto i = static_cast<std::size_t>(begin); i < now.size(); ++i) ASSERT_EQ(now[i], end.parameters[i]) << i;
    };
    decoder.loss_and_gradients(batch, attention, device.flat(), 1.0, gradients.flat(), {true, 16}, final);
    std::vector<std::int64_t> cuts = decoder.gradient_cuts();
    EXPECT_EQ(cuts.front(), 0);
    EXPECT_EQ(cuts.size(), static_cast<std::size_t>(config.num_hidden_layers + (GetParam().tied ? 2 : 3)));
    std::reverse(cuts.begin(), cuts.end());
    EXPECT_EQ(begins, cuts);
}

TEST_P(DecoderGradients, GatesMatchDifferences) {
    if (!GetParam().gated) {
        EXPECT_FALSE(plan.gated());
        return;
    }
    const auto result = run_gradients<double>(decoder, batch, plan, parameters, 0.5, {false, 16});
    const float step = 1.0F / 4096;
    const auto loss_at = [&](std::size_t i, float z) {
        auto gates = layouts.gates;
        gates[i] = z;
        const Device<float> device(gates);
        const Device<double> values(parameters);
        return decoder.loss(batch, layouts.gated(device), values.flat(), 16);
    };
    double largest = 0;
    for (const float d : result.gate) largest = std::max(largest, std::abs(static_cast<double>(d)));
    ASSERT_GT(largest, 0);
    for (std::size_t i = 0; i < layouts.gates.size(); ++i) {
        const float z = layouts.gates[i];
        if (z == 0.0F || z == 1.0F) {
            EXPECT_EQ(result.gate[i], 0.0F) << i;
            continue;
        }
        const double expected = 0.5 * (loss_at(i, z + step) - loss_at(i, z - step)) / (2 * step);
        EXPECT_NEAR(result.gate[i], expected, 1e-5 * largest) << i;
    }
}

INSTANTIATE_TEST_SUITE_P(Variants, DecoderGradients,
                         testing::Values(Variant{false, false, false}, Variant{true, false, false},
                                         Variant{false, true, false}, Variant{false, false, true},
                                         Variant{true, true, true}),
                         testing::PrintToStringParamName());

TEST(DecoderGradients, AddToWhatIsThereAndScale) {
    const auto config = tiny_config(true, false);
    const auto batch = random_batch(config, documents, 17);
    const Layouts layouts(config, batch.sequences);
    const Device<float> gate(layouts.gates);
    const auto plan = layouts.gated(gate);
    const auto parameters = random_parameters(config, 18);
    Decoder<Exec, double> decoder(Exec(), config);
    const auto once = run_gradients<double>(decoder, batch, plan, parameters, 1.0, {false, 64});

    const Device<double> device(parameters), gradients(parameters.size(), 2.0);
    const Device<float> dgate(layouts.gates.size(), 2.0F);
    for (const double scale : {1.0, 0.25}) {
        decoder.loss_and_gradients(batch, plan, device.flat(), scale, gradients.flat(), dgate.matrix(layouts.layers),
                                   {false, 64});
    }
    const auto sum = gradients.host();
    for (std::size_t i = 0; i < sum.size(); ++i) {
        ASSERT_NEAR(sum[i], 2.0 + 1.25 * once.parameters[i], 1e-11) << i;
    }
    const auto gate_sum = dgate.host();
    for (std::size_t i = 0; i < gate_sum.size(); ++i) ASSERT_NEAR(gate_sum[i], 2.0 + 1.25 * once.gate[i], 1e-5) << i;
}

}  // namespace
}  // namespace sparseattn::test
