// The decoder's loss against a naive one, its types against each other, its memory and its errors.
#include <gmock/gmock.h>

#include "model/naive_decoder.hpp"
#include "model/problem.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

template <class T>
std::vector<T> cast(const std::vector<double>& values) {
    return std::vector<T>(values.begin(), values.end());
}

TEST(Decoder, LossMatchesTheNaiveDecoderForAnyLossBlock) {
    const std::vector<std::int32_t> offsets = {0, 13, 14, 90};
    for (const bool tied : {false, true}) {
        for (const bool qk_norm : {false, true}) {
            const auto config = tiny_config(tied, qk_norm);
            const auto batch = random_batch(config, offsets, 1);
            const auto parameters = random_parameters(config, 2);
            const auto tokens = detail::to_host(Exec(), batch.tokens), labels = detail::to_host(Exec(), batch.labels);
            const NaiveDecoder naive(config, parameters);
            double wanted = 0;
            for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
                const int begin = offsets[s], end = offsets[s + 1];
                wanted += naive.loss({tokens.begin() + begin, tokens.begin() + end},
                                     {labels.begin() + begin, labels.begin() + end});
            }
            const Layouts layouts(config, batch.sequences);
            const Device<double> device(parameters);
            Decoder<Exec, double> decoder(Exec(), config);
            for (const int block : {1, 7, 90, 4096}) {
                EXPECT_NEAR(decoder.loss(batch, layouts.plain(), device.flat(), block), wanted, 1e-10) << block;
            }
        }
    }
}

// Shapes that every float implementation covers; long enough for several blocks.
TEST(Decoder, FloatAgreesWithDouble) {
    for (const bool gated : {false, true}) {
        auto config = tiny_config(false, gated, 32);
        config.hidden_size = 48;
        const auto batch = random_batch(config, {0, 150, 151, 200}, 3);
        const Layouts layouts(config, batch.sequences, 20, 40);
        const Device<float> gate(layouts.gates);
        const auto plan = gated ? layouts.gated(gate) : layouts.plain();
        const auto single = cast<float>(random_parameters(config, 4));
        const std::vector<double> parameters(single.begin(), single.end());
        Decoder<Exec, double> exact(Exec(), config);
        Decoder<Exec, float> decoder(Exec(), config);
        const auto wanted = run_gradients<double>(exact, batch, plan, parameters, 0.01, {false, 64});
        const auto result = run_gradients<float>(decoder, batch, plan, single, 0.01F, {true, 64});
        EXPECT_NEAR(result.loss, wanted.loss, 1e-5 * wanted.loss);
        for (const ParameterInfo& info : decoder.table().parameters()) {
            double error = 0, largest = 0;
            for (std::int64_t i = info.offset; i < info.offset + info.count; ++i) {
                error = std::max(error, std::abs(result.parameters[i] - wanted.parameters[i]));
                largest = std::max(largest, std::abs(wanted.parameters[i]));
            }
            EXPECT_LT(error, 2e-5 * largest) << info.name;
        }
        for (std::size_t i = 0; i < wanted.gate.size(); ++i) EXPECT_NEAR(result.gate[i], wanted.gate[i], 1e-5) << i;
    }
}

TEST(Decoder, FreshWeightsPredictNothing) {
    auto config = tiny_config(false, true, 32);
    config.hidden_size = 64;
    config.vocab_size = 259;
    const ParameterTable table(config);
    const Device<float> parameters(table.total());
    Decoder<Exec, float>::initialise(Exec(), config, 5, parameters.flat());
    const auto batch = random_batch(config, {0, 300}, 6);
    const Layouts layouts(config, batch.sequences);
    Decoder<Exec, float> decoder(Exec(), config);
    const double mean =
        decoder.loss(batch, layouts.plain(), parameters.flat()) / static_cast<double>(batch.label_count);
    EXPECT_NEAR(mean, std::log(259.0), 0.1);
}

TEST(Decoder, InitialWeightsHaveTheirSpreadAndDependOnTheSeedOnly) {
    auto config = tiny_config(false, true);
    config.hidden_size = 200;
    config.initializer_range = 0.5;
    const ParameterTable table(config);
    const auto fresh = [&]<class T>(T, std::uint64_t seed) {
        const Device<T> parameters(table.total());
        Decoder<Exec, T>::initialise(Exec(), config, seed, parameters.flat());
        return parameters.host();
    };
    const auto values = fresh(0.0, 9);
    EXPECT_EQ(fresh(0.0F, 9), cast<float>(values));
    EXPECT_NE(fresh(0.0, 10), values);
    for (const ParameterInfo& info : table.parameters()) {
        double sum = 0, squares = 0;
        for (std::int64_t i = info.offset; i < info.offset + info.count; ++i) {
            sum += values[i];
            squares += values[i] * values[i];
        }
        const double n = static_cast<double>(info.count);
        if (!info.decay) {
            EXPECT_EQ(sum, n) << info.name;
            continue;
        }
        const bool residual =
            info.name.find("o_proj") != std::string::npos || info.name.find("down") != std::string::npos;
        const double deviation = residual ? 0.25 : 0.5;  // 2 layers
        EXPECT_NEAR(sum / n, 0, 5 * deviation / std::sqrt(n)) << info.name;
        EXPECT_NEAR(std::sqrt(squares / n), deviation, 5 * deviation / std::sqrt(2 * n)) << info.name;
    }
}

TEST(Decoder, SameCallSameBits) {
    const auto config = tiny_config(true, true, 32);
    const auto batch = random_batch(config, {0, 100, 230}, 11);
    const Layouts layouts(config, batch.sequences);
    const Device<float> gate(layouts.gates);
    const auto parameters = cast<float>(random_parameters(config, 12));
    Decoder<Exec, float> decoder(Exec(), config), other(Exec(), config);
    const auto first = run_gradients<float>(decoder, batch, layouts.gated(gate), parameters, 1.0F, {false, 50});
    for (auto* again : {&decoder, &other}) {
        const auto second = run_gradients<float>(*again, batch, layouts.gated(gate), parameters, 1.0F, {true, 50});
        EXPECT_EQ(first.loss, second.loss);
        EXPECT_EQ(first.parameters, second.parameters);
        EXPECT_EQ(first.gate, second.gate);
    }
}

// A gate of 1 in every head is plain attention, one of 0 the sparse layout alone.
TEST(Decoder, GatesAtTheirLimitsAreThePlainModels) {
    const auto config = tiny_config(false, false);
    const auto batch = random_batch(config, {0, 40, 130}, 13);
    const Layouts layouts(config, batch.sequences);
    const Device<double> parameters(random_parameters(config, 14));
    Decoder<Exec, double> decoder(Exec(), config);
    const Device<float> ones(layouts.gates.size(), 1.0F), zeros(layouts.gates.size(), 0.0F);
    const AttentionPlan<Mem> sparse{layouts.sparse_pair, nullptr, {}, {}};
    EXPECT_NEAR(decoder.loss(batch, layouts.gated(ones), parameters.flat()),
                decoder.loss(batch, layouts.plain(), parameters.flat()), 1e-10);
    EXPECT_NEAR(decoder.loss(batch, layouts.gated(zeros), parameters.flat()),
                decoder.loss(batch, sparse, parameters.flat()), 1e-10);
}

TEST(Decoder, MemoryPlanIsWhatIsHeld) {
    auto config = tiny_config(false, true, 64);
    config.hidden_size = 128;
    config.intermediate_size = 256;
    const auto batch = random_batch(config, {0, 700, 1024}, 15);
    const Layouts layouts(config, batch.sequences);
    const Device<float> gate(layouts.gates);
    const auto parameters = cast<float>(random_parameters(config, 16));
    const Device<float> device(parameters);
    std::int64_t last = 0;
    const auto expect_plan = [](const MemoryPlan& plan, std::int64_t held) {
        EXPECT_NEAR(static_cast<double>(held), static_cast<double>(plan.total()),
                    0.1 * static_cast<double>(plan.total()));
    };
    {
        Decoder<Exec, float> decoder(Exec(), config);
        EXPECT_EQ(decoder.allocated(), 0);
        decoder.loss(batch, layouts.gated(gate), device.flat(), 128);
        decoder.loss(batch, layouts.gated(gate), device.flat(), 128);
        expect_plan(decoder.memory_plan(1024, true, false, {false, 128}), last = decoder.allocated());
    }
    for (const bool gated : {false, true}) {
        for (const bool recompute : {true, false}) {
            Decoder<Exec, float> decoder(Exec(), config);
            const auto plan = gated ? layouts.gated(gate) : layouts.plain();
            const TrainingMemory memory{recompute, 128};
            for (int i = 0; i < 2; ++i) run_gradients<float>(decoder, batch, plan, parameters, 1.0F, memory);
            const auto held = decoder.allocated();
            expect_plan(decoder.memory_plan(1024, gated, true, memory), held);
            if (gated) {  // evaluation < recompute < stored
                EXPECT_GT(held, last);
                last = held;
            }
            for (int i = 0; i < 3; ++i) run_gradients<float>(decoder, batch, plan, parameters, 1.0F, memory);
            decoder.loss(batch, plan, device.flat(), 128);
            EXPECT_EQ(decoder.allocated(), held);
        }
    }
}

TEST(Decoder, EmptyPackHasNoLoss) {
    const auto config = tiny_config(false, false);
    const auto batch = random_batch(config, {0, 0}, 1);
    const Layouts layouts(config, batch.sequences);
    Decoder<Exec, double> decoder(Exec(), config);
    const auto result = run_gradients<double>(decoder, batch, layouts.plain(), random_parameters(config, 1), 1.0, {});
    EXPECT_EQ(result.loss, 0);
    for (const double g : result.parameters) ASSERT_EQ(g, 0);
}

TEST(Decoder, BadArgumentsAreNamed) {
    const auto config = tiny_config(false, false);
    const auto good = random_batch(config, {0, 20}, 1);
    const Layouts layouts(config, good.sequences);
    const Device<double> parameters(random_parameters(config, 2)), short_parameters(10);
    Decoder<Exec, double> decoder(Exec(), config);
    const auto expect_refused = [&](const Batch<Mem>& batch, const AttentionPlan<Mem>& plan,
                                    const Device<double>& values, int block, const char* name, const char* was) {
        EXPECT_THAT([&] { decoder.loss(batch, plan, values.flat(), block); },
                    ThrowsMessage<InvalidArgument>(AllOf(HasSubstr(name), HasSubstr(was))));
    };
    const auto with = [&](Array1<std::int32_t, Mem> Batch<Mem>::*member, const std::vector<std::int32_t>& values) {
        Batch<Mem> batch = good;
        batch.*member = detail::to_device(Exec(), "values", values);
        return batch;
    };
    std::vector<std::int32_t> ids(20, 1);
    ids[17] = 23;
    expect_refused(with(&Batch<Mem>::tokens, ids), layouts.plain(), parameters, 8, "batch.tokens[17]", "23");
    ids[17] = -2;
    expect_refused(with(&Batch<Mem>::tokens, ids), layouts.plain(), parameters, 8, "batch.tokens[17]", "-2");
    expect_refused(with(&Batch<Mem>::labels, ids), layouts.plain(), parameters, 8, "batch.labels[17]", "-2");
    expect_refused(with(&Batch<Mem>::tokens, {1, 2}), layouts.plain(), parameters, 8, "batch.tokens.size()", "2");
    expect_refused(with(&Batch<Mem>::positions, {1}), layouts.plain(), parameters, 8, "batch.positions.size()", "1");
    expect_refused(with(&Batch<Mem>::labels, {}), layouts.plain(), parameters, 8, "batch.labels.size()", "0");
    expect_refused(good, layouts.plain(), short_parameters, 8, "parameters.size()", "10");
    expect_refused(good, layouts.plain(), parameters, 0, "loss_block", "0");

    const Device<float> gate(layouts.gates), few(3);
    auto no_sparse = layouts.gated(gate), small_gate = layouts.gated(gate);
    no_sparse.sparse = nullptr;
    expect_refused(good, no_sparse, parameters, 8, "plan.sparse", "null");
    small_gate.gate = few.matrix(1);
    expect_refused(good, small_gate, parameters, 8, "plan.gate", "1 x 3");
    const Device<double> gradients(parameters.array.extent(0));
    EXPECT_THAT(
        [&] {
            decoder.loss_and_gradients(good, layouts.gated(gate), parameters.flat(), 1.0, gradients.flat(), {}, {});
        },
        ThrowsMessage<InvalidArgument>(HasSubstr("dgate")));
    EXPECT_THAT(
        [&] {
            decoder.loss_and_gradients(good, layouts.plain(), parameters.flat(), 1.0, short_parameters.flat(), {}, {});
        },
        ThrowsMessage<InvalidArgument>(HasSubstr("gradients.size()")));
    ModelConfig bad = config;
    bad.head_dim = 5;
    EXPECT_THROW((Decoder<Exec, double>(Exec(), bad)), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn::test
