#pragma once
// Exponential for softmax loops and for the sigmoid of SwiGLU.

#include <cstdint>
#include <cstring>

#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn::detail {

// e^x in float, without branches or calls so that loops over it vectorise: e^x = 2^n e^r with n the nearest integer to
// x log2(e) and |r| <= ln(2) / 2; e^r by its Taylor polynomial of degree 7 (truncation 5e-9 of the value). The relative
// error is below 3e-7 in [-87, 88]; x outside counts as the nearer end. NaN stays NaN.
KOKKOS_INLINE_FUNCTION float exponential(float x) {
    // These comparisons let a NaN through.
    const float clamped = x < -87.0F ? -87.0F : (x > 88.0F ? 88.0F : x);
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const float shifted = clamped * 1.44269504F + 12582912.0F;
    const float n = shifted - 12582912.0F;
    const float r = (clamped - n * 0.693145752F) - n * 1.42860677e-6F;  // ln(2) in two parts
    float p = 1.98412698e-4F;
    p = p * r + 1.38888889e-3F;
    p = p * r + 8.33333333e-3F;
    p = p * r + 4.16666667e-2F;
    p = p * r + 1.66666667e-1F;
    p = p * r + 0.5F;
    p = p * r + 1.0F;
    p = p * r + 1.0F;
    std::uint32_t word;
    memcpy(&word, &shifted, sizeof word);
    const std::uint32_t scale_word = (word - 0x4b400000U + 127U) << 23;
    float scale;
    memcpy(&scale, &scale_word, sizeof scale);
    return p * scale;
}
KOKKOS_INLINE_FUNCTION double exponential(double x) {
    return math::exp(x);
}

}  // namespace sparseattn::detail
