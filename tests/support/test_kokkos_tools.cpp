#include <gtest/gtest.h>

#include <algorithm>

#include "support/kokkos_tools.hpp"

namespace sparseattn::testing {
namespace {

using Exec = Kokkos::DefaultHostExecutionSpace;

// Growing scratch makes every thread of the pool allocate at the same time; each must be heard once.
TEST(KokkosRecording, HearsEveryThread) {
    using Policy = Kokkos::TeamPolicy<Exec>;
    const auto threads = static_cast<std::size_t>(Exec().concurrency());
    for (int round = 1; round <= 100; ++round) {
        const KokkosRecording recording;
        Policy policy(Exec(), 8, 1);
        policy.set_scratch_size(0, Kokkos::PerTeam((1 << 20) + round * (1 << 14)));
        Kokkos::parallel_for("SparseAttn::scratch", policy, [](const Policy::member_type&) {});
        ASSERT_EQ(recording.kernels().size(), 1U);
        EXPECT_EQ(recording.kernels()[0].label, "SparseAttn::scratch");
        const auto& allocations = recording.allocations();
        ASSERT_LE(allocations.size(), threads);
        ASSERT_TRUE(
            std::all_of(allocations.begin(), allocations.end(), [](const auto& label) { return !label.empty(); }));
    }
}

}  // namespace
}  // namespace sparseattn::testing
