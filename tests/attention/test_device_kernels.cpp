// The generic implementation's device kernels on a CPU: teams of fibers, against the fp64 reference. Each case runs
// with the threads of a team in rising and in falling order; a thread that reads what another has yet to write, or has
// overwritten, makes the two differ.
#include <gmock/gmock.h>

#include "attention/fibers.hpp"
#include "attention/run_case.hpp"
#include "sparseattn/attention/detail/arguments.hpp"
#include "sparseattn/attention/detail/device_kernels.hpp"

namespace sparseattn::testing {
namespace {

using Exec = Kokkos::DefaultHostExecutionSpace;
using Mem = Exec::memory_space;

template <class Kernel>
void run_teams(const Kernel& kernel, std::int64_t teams, Order order) {
    FiberTeam team(Kernel::Tile::threads, order);
    std::vector<detail::device::Four> scratch(Kernel::floats / 4);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (std::int64_t rank = 0; rank < teams; ++rank) {
        std::fill(scratch.begin(), scratch.end(), detail::device::Four{nan, nan, nan, nan});
        team.run(static_cast<int>(rank), [&](const FiberMember& member) { kernel.run(member, scratch.front().x); });
    }
}

/// The library's calls by the device kernels, what surrounds them by plain loops.
template <class T>
struct FiberCalls : LibraryCalls<Exec, T> {
    using Base = LibraryCalls<Exec, T>;
    using typename Base::Gate, typename Base::Gradients, typename Base::Inputs, typename Base::Layout,
        typename Base::Outputs, typename Base::Pair;
    using Forward = detail::generic::ForwardProblem<T, Mem>;
    using Backward = detail::generic::BackwardProblem<T, Mem>;
    Order order;

    void forward(const Inputs& inputs, const Sequences<Mem>& sequences, const Layout& layout, Workspace<Mem>&,
                 const Outputs& outputs) const {
        Forward problem{problem_of(inputs), {outputs, {}}, {}};
        problem.branch[0] = {layout, sequences};
        run_forward(problem);
    }
    void gated_forward(const Inputs& inputs, const Sequences<Mem>& sequences, const Layout& full, const Layout& sparse,
                       const Gate& gate, Workspace<Mem>&, const HeadsView<T, Mem>& out, const Outputs& full_out,
                       const Outputs& sparse_out) const {
        Forward problem{problem_of(inputs), {full_out, sparse_out}, out};
        problem.branch[0] = {full, sequences};
        problem.branch[1] = {sparse, sequences};
        problem.gate = gate;
        run_forward(problem);
    }
    void backward(const HeadsView<const T, Mem>& dout, const Inputs& inputs, const Outputs& outputs,
                  const Sequences<Mem>& sequences, const Pair& layout, Workspace<Mem>&,
                  const Gradients& gradients) const {
        Backward problem{problem_of(inputs), dout, {outputs, {}}, {}, gradients};
        problem.branch[0] = {layout.layout, sequences};
        run_backward(problem, {&layout.transposed, nullptr}, Gate());
    }
    void gated_backward(const HeadsView<const T, Mem>& dout, const Inputs& inputs, const Outputs& full_out,
                        const Outputs& sparse_out, const Sequences<Mem>& sequences, const Pair& full,
                        const Pair& sparse, const Gate& gate, Workspace<Mem>&, const Gradients& gradients,
                        const Gate& dgate) const {
        Backward problem{problem_of(inputs), dout, {full_out, sparse_out}, {}, gradients};
        problem.branch[0] = {full.layout, sequences};
        problem.branch[1] = {sparse.layout, sequences};
        problem.gate = gate;
        run_backward(problem, {&full.transposed, &sparse.transposed}, dgate);
    }

  private:
    static detail::GenericProblem<T, Mem> problem_of(const Inputs& inputs) {
        struct {
            float scale;
        } const arguments{1.0F / std::sqrt(static_cast<float>(inputs.query.extent(2)))};
        auto problem = detail::make_generic_problem(arguments, inputs);
        problem.shape = {64, 64};
        return problem;
    }
    void run_forward(const Forward& problem) const {
        detail::device::with_head_dim(problem.head_dim, [&](auto d) {
            run_teams(detail::device::ForwardKernel<T, Mem, d()>{problem}, query_teams(problem), order);
        });
    }
    void run_backward(Backward problem, const TransposedLayout<Mem>* const (&transposes)[2], const Gate& dgate) const {
        const int queries = static_cast<int>(problem.dout.extent(0));
        std::vector<Array2<float, Mem>> deltas;
        for (int b = 0; b < (problem.gated() ? 2 : 1); ++b) {
            deltas.emplace_back("delta", queries, problem.heads);
            problem.delta[b] = deltas.back();
        }
        for (int h = 0; h < problem.heads; ++h) {
            const detail::HeadWork work = problem.work(h);
            double sum = 0;
            for (int q = 0; q < queries; ++q) {
                for (int b = 0; b < (problem.gated() ? 2 : 1); ++b) {
                    double delta = 0;
                    for (int c = 0; c < problem.head_dim && (b == work.outer || b == work.inner); ++c) {
                        delta += static_cast<double>(problem.dout(q, h, c)) * problem.outputs[b].out(q, h, c);
                    }
                    problem.delta[b](q, h) = static_cast<float>(delta);
                    sum += b == 0 ? delta : -delta;
                }
            }
            if (problem.gated()) dgate(h) = work.inner >= 0 ? static_cast<float>(sum) : 0.0F;
        }
        detail::device::with_head_dim(problem.head_dim, [&](auto d) {
            run_teams(detail::device::QueryKernel<T, Mem, d()>{problem}, query_teams(problem), order);
            detail::device::KeyKernel<T, Mem, d()> keys{problem, {}};
            for (int b = 0; b < (problem.gated() ? 2 : 1); ++b) keys.transpose[b] = *transposes[b];
            const auto& grid = problem.branch[0].layout.grid;
            run_teams(keys, std::int64_t{problem.heads / problem.group} * grid.key_blocks * (grid.block / 64), order);
        });
    }
};

class DeviceKernels : public ::testing::TestWithParam<Case> {
  public:
    static void TearDownTestSuite() { table_.print(std::cout); }

  protected:
    static ErrorTable table_;
};
ErrorTable DeviceKernels::table_;

template <class T>
Results check(const Case& c, Order order, const std::string& column, ErrorTable& table) {
    const DenseProblem& problem = yardstick(c).problem;
    const Results results = evaluate_calls<Exec, T>(Exec(), FiberCalls<T>{{Exec(), {}}, order}, c, problem);
    check_results<T>(results, c, column, table);
    return results;
}
TEST_P(DeviceKernels, AgreeWithReferenceInAnyOrderOfThreads) {
    const Results rising = check<float>(GetParam(), Order::rising, "float", table_);
    EXPECT_TRUE(rising == check<float>(GetParam(), Order::falling, "float", table_))
        << "the order of the threads decides";
    check<bf16>(GetParam(), Order::falling, "bf16", table_);  // differs in what is loaded and stored only
}
INSTANTIATE_TEST_SUITE_P(Cases, DeviceKernels, ::testing::ValuesIn(attention_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sparseattn::testing
