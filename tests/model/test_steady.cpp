// A training pass whose memory has grown: nothing is allocated, and the host waits once, for the loss.
#include <gmock/gmock.h>

#include "model/problem.hpp"
#include "support/kokkos_tools.hpp"

namespace sparseattn::test {
namespace {

template <class T>
class SteadyPass : public ::testing::Test {};
using Types = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(SteadyPass, Types);

TYPED_TEST(SteadyPass, AllocatesNothingAndWaitsOnce) {
    using T = TypeParam;
    for (const bool gated : {false, true}) {
        for (const bool recompute : {false, true}) {
            SCOPED_TRACE(concat(gated ? "gated" : "plain", recompute ? ", recomputed layers" : ""));
            const auto config = tiny_config(false, true, 64);
            const auto batch = random_batch(config, {0, 100, 330}, 11);
            const Layouts layouts(config, batch.sequences, 20, 40);
            const Device<float> gate(layouts.gates), dgate(layouts.gates.size());
            const auto plan = gated ? layouts.gated(gate) : layouts.plain();
            const Span2<float, Mem> gate_gradients = gated ? dgate.matrix(layouts.layers) : Span2<float, Mem>();
            const auto values = random_parameters(config, 12);
            const Device<T> parameters(std::vector<T>(values.begin(), values.end()));
            const Device<accumulate_t<T>> gradients(values.size());
            Decoder<Exec, T> decoder(Exec(), config);
            const auto pass = [&] {
                (void)decoder.loss_and_gradients(batch, plan, parameters.flat(), 1, gradients.flat(), gate_gradients,
                                                 {recompute, 64});
            };
            pass();
            pass();
            const ::sparseattn::testing::KokkosRecording recording;
            pass();
            EXPECT_FALSE(recording.kernels().empty());
            EXPECT_THAT(recording.allocations(), ::testing::IsEmpty());
            EXPECT_LE(recording.fences().size(), 1U) << recording.fences().front();
        }
    }
}

}  // namespace
}  // namespace sparseattn::test
