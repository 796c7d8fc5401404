// The host implementation through the public calls, against the fp64 reference over the shared case table. Its own
// program: the case table and the one of the host kernels' own tests share names.
#include <gmock/gmock.h>

#include "attention/run_case.hpp"

namespace sparseattn::testing {
namespace {

using HostExec = Kokkos::DefaultHostExecutionSpace;

class HostAttention : public ::testing::TestWithParam<Case> {
  public:
    static void TearDownTestSuite() { table_.print(std::cout); }

  protected:
    static ErrorTable table_;
};
ErrorTable HostAttention::table_;

TEST_P(HostAttention, AgreesWithReference) {
    check_case<float>(HostExec(), Implementation::host, GetParam(), "host float", table_);
    check_case<bf16>(HostExec(), Implementation::host, GetParam(), "host bf16", table_);
}

INSTANTIATE_TEST_SUITE_P(Cases, HostAttention, ::testing::ValuesIn(attention_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(HostAttentionChoice, IsAutomatic) {
    const Case c = attention_cases().front();
    const DenseProblem& problem = yardstick<float>(c).problem;
    EXPECT_TRUE((evaluate<HostExec, float>(HostExec(), Implementation::automatic, c, problem) ==
                 evaluate<HostExec, float>(HostExec(), Implementation::host, c, problem)));
}

}  // namespace
}  // namespace sparseattn::testing
