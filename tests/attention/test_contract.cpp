// What every attention call promises besides its numbers: checked arguments, labelled kernels on the given instance
// only, and a steady state without allocation, fence or copy.
#include <gmock/gmock.h>

#include "attention/run_case.hpp"
#include "support/kokkos_tools.hpp"

namespace sparseattn::testing {
namespace {

using Exec = Kokkos::DefaultHostExecutionSpace;
using Mem = Exec::memory_space;
using ::testing::HasSubstr;

/// A correct set of arguments of all calls, for tests to spoil one at a time.
template <class Space, class T>
struct Calls {
    using Memory = typename Space::memory_space;
    Space exec;
    Case c{"contract", {0, 70, 100}, {0, 70, 160}, 64, true, 4, 2, 32, Kind::lists_and_keys, true, 4};
    DenseProblem p = case_problem(c);
    CaseLayouts<Memory> layouts = case_layouts(exec, c);
    TransposedLayout<Memory> full_transposed = transpose(exec, layouts.sequences, layouts.full);
    TransposedLayout<Memory> sparse_transposed = transpose(exec, layouts.sequences, layouts.sparse);
    Workspace<Memory> workspace;
    Fused<T, Memory> in{p, true}, grads{p, true};
    Branch<T, Memory> dout{p, true}, out{p, true}, full{p, true}, sparse{p, true};
    AttentionInputs<T, Memory> inputs{in.view(0), in.view(1), in.view(2)};
    HeadsView<const T, Memory> dout_view = dout.out_view();
    AttentionGradients<T, Memory> gradients{grads.view(0), grads.view(1), grads.view(2)};
    AttentionOutputs<T, Memory> outputs = out.view(), full_outputs = full.view(), sparse_outputs = sparse.view();
    Array1<float, Memory> gate = detail::to_device(exec, "gate", case_gate(c));
    Array1<float, Memory> dgate{"dgate", 4};
    AttentionOptions options;

    Calls() {
        in.write(0, p.query);
        in.write(1, p.key);
        in.write(2, p.value);
        dout.write_out(p.dout);
    }
    void forward() {
        attention_forward<Space, T>(exec, inputs, layouts.sequences, layouts.full, options, workspace, outputs);
    }
    void backward() {
        attention_backward<Space, T>(exec, dout_view, inputs, outputs, layouts.sequences,
                                     {layouts.full, full_transposed}, options, workspace, gradients);
    }
    void gated_forward() {
        gated_attention_forward<Space, T>(exec, inputs, layouts.sequences, layouts.full, layouts.sparse, gate, options,
                                          workspace, outputs.out, full_outputs, sparse_outputs);
    }
    void gated_backward() {
        gated_attention_backward<Space, T>(exec, dout_view, inputs, full_outputs, sparse_outputs, layouts.sequences,
                                           {layouts.full, full_transposed}, {layouts.sparse, sparse_transposed}, gate,
                                           options, workspace, gradients, dgate);
    }
    void all() {
        forward();
        backward();
        gated_forward();
        gated_backward();
    }
};
using FloatCalls = Calls<Exec, float>;

template <class Call>
std::string message(const Call& call) {
    try {
        call();
    } catch (const InvalidArgument& error) {
        return error.what();
    }
    return "no error";
}

template <class T>
HeadsView<T, Mem> resized(const HeadsView<T, Mem>& view, std::int64_t tokens, std::int64_t heads, std::int64_t d,
                          std::int64_t last_stride = 1) {
    return HeadsView<T, Mem>(view.data(),
                             Kokkos::LayoutStride(tokens, view.stride(0), heads, view.stride(1), d, last_stride));
}

TEST(AttentionArguments, GoodOnesPass) {
    FloatCalls calls;
    EXPECT_EQ(message([&] { calls.all(); }), "no error");
}

TEST(AttentionArguments, InputsMustFitTheSequences) {
    const auto spoiled = [](const auto& spoil) {
        FloatCalls calls;
        spoil(calls);
        return message([&] { calls.forward(); });
    };
    EXPECT_EQ(spoiled([](auto& a) { a.inputs.query = resized(a.inputs.query, 99, 4, 32); }),
              "inputs.query.extent(0) is 99, must be 100, the tokens of the sequences");
    EXPECT_EQ(spoiled([](auto& a) { a.inputs.key = resized(a.inputs.key, 161, 2, 32); }),
              "inputs.key.extent(0) is 161, must be 160, the tokens of the sequences");
    EXPECT_EQ(spoiled([](auto& a) { a.inputs.value = resized(a.inputs.value, 160, 1, 32); }),
              "inputs.value.extent(1) is 1, must be 2, the number of heads");
    EXPECT_EQ(spoiled([](auto& a) { a.inputs.value = resized(a.inputs.value, 160, 2, 31); }),
              "inputs.value.extent(2) is 31, must be 32, the head dimension");
    EXPECT_EQ(spoiled([](auto& a) { a.inputs.key = resized(a.inputs.key, 160, 3, 32); }),
              "inputs.key.extent(1) is 3, must be a divisor of the query heads, 4");
    EXPECT_EQ(spoiled([](auto& a) { a.inputs.key = resized(a.inputs.key, 160, 0, 32); }),
              "inputs.key.extent(1) is 0, must be a divisor of the query heads, 4");
    EXPECT_EQ(spoiled([](auto& a) { a.inputs.query = resized(a.inputs.query, 100, 0, 32); }),
              "inputs.query.extent(1) is 0, must be at least 1 head");
    EXPECT_EQ(spoiled([](auto& a) { a.inputs.query = resized(a.inputs.query, 100, 4, 32, 2); }),
              "inputs.query.stride(2) is 2, must be 1, each head's vector is contiguous");
    EXPECT_EQ(spoiled([](auto& a) { a.outputs.out = resized(a.outputs.out, 100, 3, 32); }),
              "outputs.out.extent(1) is 3, must be 4, the number of heads");
    EXPECT_EQ(spoiled([](auto& a) {
                  a.outputs.lse = RowsView<float, Mem>(a.outputs.lse.data(), Kokkos::LayoutStride(98, 4, 4, 1));
              }),
              "outputs.lse.extent(0) is 98, must be 100, the tokens of the sequences");
}

TEST(AttentionArguments, LayoutsMustFitTheSequences) {
    const auto spoiled = [](const auto& spoil) {
        FloatCalls calls;
        spoil(calls.layouts.full, calls);
        return message([&] { calls.backward(); });
    };
    EXPECT_EQ(spoiled([](auto& l, auto&) { l.heads = 8; }), "layout.heads is 8, must be 4, the number of query heads");
    EXPECT_EQ(spoiled([](auto& l, auto&) { l.grid.rows = 2; }),
              "layout.grid.rows is 2, must be 3, the query blocks of the sequences");
    EXPECT_EQ(spoiled([](auto& l, auto&) { l.grid.key_blocks = 5; }),
              "layout.grid.key_blocks is 5, must be 4, the key blocks of the sequences");
    EXPECT_EQ(spoiled([](auto& l, auto&) { l.grid.block = 96; }), "layout.grid.block is 96, must be 64 or 128");
    EXPECT_EQ(spoiled([](auto& l, auto&) { l.lists = 5; }),
              "layout.lists is 5, must be 1..4, at most one for each head");
    EXPECT_EQ(spoiled([](auto& l, auto&) { l.offsets = {}; }),
              "layout.offsets.extent(0) is 0, must be at least 7, lists * rows + 1");
    EXPECT_EQ(spoiled([](auto& l, auto&) { l.windows = {}; }),
              "layout.windows.extent(0) is 0, must be at least 4, the number of query heads");
    EXPECT_EQ(spoiled([](auto& l, auto&) { l.key_offsets = {}; }),
              "layout.key_offsets.extent(0) is 0, must be at least 7, lists * rows + 1");
    EXPECT_EQ(spoiled([](auto&, auto& a) { a.full_transposed.offsets = {}; }),
              "layout.transposed.offsets.extent(0) is 0, must be at least 9, lists * key blocks + 1");
    EXPECT_THAT(spoiled([](auto&, auto& a) { a.full_transposed.key_rows = {}; }),
                HasSubstr("layout.transposed.key_rows.extent(0) is 0, must be "));
}

TEST(AttentionArguments, BackwardAndGatedOnes) {
    FloatCalls calls;
    const auto dout = calls.dout_view;
    calls.dout_view = resized(dout, 100, 4, 16);
    EXPECT_EQ(message([&] { calls.backward(); }), "dout.extent(2) is 16, must be 32, the head dimension");
    calls.dout_view = dout;
    const auto dkey = calls.gradients.key;
    calls.gradients.key = resized(dkey, 159, 2, 32);
    EXPECT_EQ(message([&] { calls.gated_backward(); }),
              "gradients.key.extent(0) is 159, must be 160, the tokens of the sequences");
    calls.gradients.key = dkey;
    calls.dgate = Array1<float, Mem>("dgate", 2);
    EXPECT_EQ(message([&] { calls.gated_backward(); }), "dgate.extent(0) is 2, must be 4, the number of query heads");
    calls.gate = Array1<float, Mem>("gate", 5);
    EXPECT_EQ(message([&] { calls.gated_forward(); }), "gate.extent(0) is 5, must be 4, the number of query heads");
    calls.layouts.sparse =
        build_layout(calls.exec, calls.layouts.sequences, 128, true, std::vector<HeadMode>(4, HeadMode::stream(1, 1)));
    EXPECT_EQ(message([&] { calls.gated_forward(); }),
              "sparse layout's grid.block is 128, must be 64 like the full layout's");
    calls.layouts.sparse =
        build_layout(calls.exec, calls.layouts.sequences, 64, false, std::vector<HeadMode>(4, HeadMode::stream(1, 1)));
    EXPECT_EQ(message([&] { calls.gated_forward(); }), "sparse layout's causal is 0, must be 1 like the full layout's");
}

TEST(AttentionArguments, OptionsAndImplementations) {
    FloatCalls calls;
    for (const double scale : {-1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
        calls.options.scale = scale;
        EXPECT_THAT(message([&] { calls.forward(); }), HasSubstr("must be a positive number, or 0 for 1 / sqrt"));
    }
    calls.options = {};
    calls.c.head_dim = 48;
    for (const auto implementation : {Implementation::generic, Implementation::host, Implementation::automatic}) {
        Case odd = calls.c;
        const DenseProblem p = case_problem(odd);
        EXPECT_THAT(message([&] { evaluate<Exec, float>(Exec(), implementation, odd, p); }),
                    HasSubstr("inputs.query.extent(2) is 48, must be 32, 64, 96, 128 or 256 for implementation "));
    }
    Calls<Exec, double> doubles;
    EXPECT_EQ(message([&] { doubles.forward(); }), "no error");
    doubles.options.implementation = Implementation::generic;
    EXPECT_EQ(message([&] { doubles.forward(); }),
              "options.implementation is generic, must be reference or automatic for double");
    doubles.options.implementation = Implementation::host;
    EXPECT_EQ(message([&] { doubles.gated_backward(); }),
              "options.implementation is host, must be reference or automatic for double");
    EXPECT_THAT(attention_report(), HasSubstr("double by reference"));
}

/// The calls' kernels and layouts' kernels on one space: all labelled, none elsewhere.
template <class Space>
void check_kernels(Implementation implementation) {
    Calls<Space, float> calls;
    calls.options.implementation = implementation;
    const KokkosRecording recording;
    const std::uint32_t device = Kokkos::Tools::Experimental::device_id(calls.exec);
    case_layouts(calls.exec, calls.c);
    Case modes = calls.c;
    modes.kind = Kind::mixed;
    transpose(calls.exec, calls.layouts.sequences, case_layout(calls.exec, modes, calls.layouts.sequences));
    transpose(calls.exec, calls.layouts.sequences, calls.layouts.full);
    calls.all();
    EXPECT_GE(recording.kernels().size(), 8U);
    for (const auto& kernel : recording.kernels()) {
        // Freeing an array of structs (windows) runs Kokkos 3.4's own empty loop of destructors.
        const bool freed = kernel.label.rfind("Kokkos::View::destruction", 0) == 0;
        EXPECT_TRUE(freed || kernel.label.rfind("SparseAttn::", 0) == 0) << "unlabelled kernel: " << kernel.label;
        EXPECT_EQ(kernel.device, device) << kernel.label << " ran on another execution space";
    }
}

template <class Space>
void check_steady_state(Implementation implementation) {
    Calls<Space, float> calls;
    calls.options.implementation = implementation;
    for (int warm_up = 0; warm_up < 3; ++warm_up) calls.all();
    const KokkosRecording recording;
    calls.all();
    EXPECT_FALSE(recording.kernels().empty());
    EXPECT_THAT(recording.allocations(), ::testing::IsEmpty());
    EXPECT_THAT(recording.fences(), ::testing::IsEmpty());
    EXPECT_THAT(recording.copies(), ::testing::IsEmpty());
}

class AttentionKernels : public ::testing::TestWithParam<Implementation> {};
TEST_P(AttentionKernels, AreLabelledAndRunWhereAsked) {
    check_kernels<Exec>(GetParam());
#if defined(KOKKOS_ENABLE_SERIAL)
    check_kernels<Kokkos::Serial>(GetParam());
#endif
}
TEST_P(AttentionKernels, SteadyStateAllocatesAndWaitsForNothing) {
    check_steady_state<Exec>(GetParam());
#if defined(KOKKOS_ENABLE_SERIAL)
    check_steady_state<Kokkos::Serial>(GetParam());
#endif
}
INSTANTIATE_TEST_SUITE_P(Implementations, AttentionKernels,
                         ::testing::Values(Implementation::reference, Implementation::generic, Implementation::host),
                         [](const auto& info) {
                             return std::string(info.param == Implementation::reference ? "reference"
                                                : info.param == Implementation::generic ? "generic"
                                                                                        : "host");
                         });

}  // namespace
}  // namespace sparseattn::testing
