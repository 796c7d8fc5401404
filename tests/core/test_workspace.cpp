#include <gtest/gtest.h>

#include <cstdint>

#include "sparseattn/core/workspace.hpp"

namespace sparseattn {
namespace {

using HostWorkspace = Workspace<Kokkos::HostSpace>;

TEST(Workspace, ArraysAreAlignedAndDisjoint) {
    HostWorkspace workspace;
    HostWorkspace::Frame frame(workspace);
    const auto a = frame.take<float>(3);
    const auto b = frame.take<double>(5, 7);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data()) % 64, 0U);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % 64, 0U);
    EXPECT_EQ(b.extent(0), 5U);
    EXPECT_EQ(b.extent(1), 7U);
    for (std::size_t i = 0; i < 3; ++i) a(i) = 1.0F;
    for (std::size_t i = 0; i < 35; ++i) b.data()[i] = 2.0;
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(a(i), 1.0F);
}

TEST(Workspace, StopsGrowingAfterTheFirstUse) {
    HostWorkspace workspace;
    const auto use = [&] {
        HostWorkspace::Frame outer(workspace);
        const auto a = outer.take<float>(1000);
        a(999) = 1.0F;
        {
            HostWorkspace::Frame inner(workspace);
            inner.take<float>(100000)(99999) = 2.0F;
        }
        HostWorkspace::Frame inner(workspace);
        inner.take<float>(50000)(0) = 3.0F;
        EXPECT_EQ(a(999), 1.0F);
    };
    use();
    const std::size_t settled = workspace.capacity();
    const auto first = [&] {
        HostWorkspace::Frame frame(workspace);
        return frame.take<float>(1).data();
    };
    const float* start = first();
    for (int i = 0; i < 5; ++i) use();
    EXPECT_EQ(workspace.capacity(), settled);
    EXPECT_EQ(first(), start);
}

TEST(Workspace, ZeroElementsAreFine) {
    HostWorkspace workspace;
    HostWorkspace::Frame frame(workspace);
    EXPECT_EQ(frame.take<float>(0).extent(0), 0U);
}

}  // namespace
}  // namespace sparseattn
