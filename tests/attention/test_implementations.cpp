// Every implementation against the fp64 reference over the whole case table.
#include <gmock/gmock.h>

#include "attention/run_case.hpp"

namespace sparseattn::testing {
namespace {

using HostExec = Kokkos::DefaultHostExecutionSpace;
#if defined(KOKKOS_ENABLE_SERIAL)
using OneThread = Kokkos::Serial;
#else
using OneThread = Kokkos::DefaultHostExecutionSpace;
#endif

class AttentionCases : public ::testing::TestWithParam<Case> {
  public:
    static void TearDownTestSuite() { table_.print(std::cout); }

  protected:
    static ErrorTable table_;
};
ErrorTable AttentionCases::table_;

TEST_P(AttentionCases, AgreeWithReference) {
    check_case<float>(HostExec(), Implementation::generic, GetParam(), "generic float", table_);
    check_case<bf16>(HostExec(), Implementation::generic, GetParam(), "generic bf16", table_);
    check_case<float>(HostExec(), Implementation::host, GetParam(), "host float", table_);
    check_case<bf16>(HostExec(), Implementation::host, GetParam(), "host bf16", table_);
}
// On the device of this build, if it has one; `automatic` takes the hand-written kernels where they cover a case.
TEST_P(AttentionCases, AgreeWithReferenceOnTheDevice) {
    using Device = Kokkos::DefaultExecutionSpace;
    if constexpr (std::is_same_v<Device, HostExec>) {
        EXPECT_EQ(std::string(Device::name()), HostExec::name());
    } else {
        check_case<float>(Device(), Implementation::generic, GetParam(), "device float", table_);
        check_case<bf16>(Device(), Implementation::generic, GetParam(), "device bf16", table_);
        check_case<bf16>(Device(), Implementation::automatic, GetParam(), "device automatic", table_);
    }
}
INSTANTIATE_TEST_SUITE_P(Cases, AttentionCases, ::testing::ValuesIn(attention_cases()),
                         [](const auto& info) { return info.param.name; });

// The same bits from run to run, on one thread and on several.
class AttentionDeterminism : public ::testing::TestWithParam<Case> {};
TEST_P(AttentionDeterminism, SameBitsEveryTime) {
    const DenseProblem problem = case_problem(GetParam());
    const HostExec exec;
    for (const auto implementation : {Implementation::generic, Implementation::host}) {
        const Results once = evaluate<HostExec, float>(exec, implementation, GetParam(), problem);
        EXPECT_TRUE((once == evaluate<HostExec, float>(exec, implementation, GetParam(), problem)));
        EXPECT_TRUE((once == evaluate<OneThread, float>(OneThread(), implementation, GetParam(), problem)));
    }
}
INSTANTIATE_TEST_SUITE_P(Cases, AttentionDeterminism, ::testing::ValuesIn(attention_cases(2, 7)),
                         [](const auto& info) { return info.param.name; });

TEST(AttentionChoice, AutomaticIsHostOnTheProcessor) {
    const Case c = attention_cases().front();
    const DenseProblem problem = case_problem(c);
    const HostExec exec;
    EXPECT_TRUE((evaluate<HostExec, float>(exec, Implementation::automatic, c, problem) ==
                 evaluate<HostExec, float>(exec, Implementation::host, c, problem)));
}

}  // namespace
}  // namespace sparseattn::testing
