#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "sparseattn/core/types.hpp"

namespace sparseattn {
namespace {

TEST(Bf16, RoundTripsEveryFinitePattern) {
    for (std::uint32_t word = 0; word < 0x10000; ++word) {
        bf16 value;
        value.bits = static_cast<std::uint16_t>(word);
        const float wide = value;
        if (std::isnan(wide)) {
            EXPECT_TRUE(std::isnan(static_cast<float>(bf16(wide))));
        } else {
            EXPECT_EQ(bf16(wide).bits, value.bits) << word;
        }
    }
}

TEST(Bf16, RoundsToNearestEven) {
    const float step = 0x1p-7F;  // between neighbours of 1
    EXPECT_EQ(static_cast<float>(bf16(1.0F + 0.5F * step)), 1.0F);
    EXPECT_EQ(static_cast<float>(bf16(1.0F + 1.5F * step)), 1.0F + 2 * step);
    EXPECT_EQ(static_cast<float>(bf16(1.0F + 0.5001F * step)), 1.0F + step);
    EXPECT_EQ(static_cast<float>(bf16(std::numeric_limits<float>::max())), std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace sparseattn
