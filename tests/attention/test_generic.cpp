// The generic implementation against the fp64 reference over the whole case table.
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

class GenericAttention : public ::testing::TestWithParam<Case> {
  public:
    static void TearDownTestSuite() { table_.print(std::cout); }

  protected:
    static ErrorTable table_;
};
ErrorTable GenericAttention::table_;

TEST_P(GenericAttention, AgreesWithReference) {
    check_case<float>(HostExec(), Implementation::generic, GetParam(), "generic float", table_);
    check_case<bf16>(HostExec(), Implementation::generic, GetParam(), "generic bf16", table_);
}

// The same bits from run to run, on one thread and on several.
TEST_P(GenericAttention, IsDeterministic) {
    const DenseProblem& problem = yardstick<float>(GetParam()).problem;
    const HostExec exec;
    const Results once = evaluate<HostExec, float>(exec, Implementation::generic, GetParam(), problem);
    EXPECT_TRUE((once == evaluate<HostExec, float>(exec, Implementation::generic, GetParam(), problem)));
    EXPECT_TRUE((once == evaluate<OneThread, float>(OneThread(), Implementation::generic, GetParam(), problem)));
}

INSTANTIATE_TEST_SUITE_P(Cases, GenericAttention, ::testing::ValuesIn(attention_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sparseattn::testing
