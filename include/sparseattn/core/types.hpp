#pragma once
/// \file
/// Storage types and view aliases that every room shares.

#include <cstdint>
#include <cstring>

#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn {

/// bfloat16 storage: two bytes on every backend (Kokkos' own is a 4-byte float on host builds). Arithmetic is in float.
/// Conversion from float rounds to nearest even; NaN stays NaN.
struct bf16 {
    std::uint16_t bits = 0;

    bf16() = default;
    KOKKOS_INLINE_FUNCTION explicit bf16(float value) {
        std::uint32_t word;
        memcpy(&word, &value, sizeof word);
        if ((word & 0x7fffffffU) > 0x7f800000U) {
            bits = static_cast<std::uint16_t>((word >> 16) | 0x0040U);
        } else {
            bits = static_cast<std::uint16_t>((word + 0x7fffU + ((word >> 16) & 1U)) >> 16);
        }
    }
    KOKKOS_INLINE_FUNCTION explicit bf16(double value) : bf16(static_cast<float>(value)) {}
    KOKKOS_INLINE_FUNCTION operator float() const {
        const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
        float value;
        memcpy(&value, &word, sizeof value);
        return value;
    }
};
static_assert(sizeof(bf16) == 2);

/// The type sums and products of a storage type are formed in: float for float and bf16, double for double.
template <class T>
struct AccumulateType {
    using type = float;
};
template <>
struct AccumulateType<double> {
    using type = double;
};
template <class T>
using accumulate_t = typename AccumulateType<std::remove_const_t<T>>::type;

using Unmanaged = Kokkos::MemoryTraits<Kokkos::Unmanaged>;

/// Managed contiguous arrays in memory space `Mem`.
template <class T, class Mem>
using Array1 = Kokkos::View<T*, Kokkos::LayoutRight, Mem>;
template <class T, class Mem>
using Array2 = Kokkos::View<T**, Kokkos::LayoutRight, Mem>;
template <class T, class Mem>
using Array3 = Kokkos::View<T***, Kokkos::LayoutRight, Mem>;

/// Non-owning counterparts: what functions take and workspaces hand out.
template <class T, class Mem>
using Span1 = Kokkos::View<T*, Kokkos::LayoutRight, Mem, Unmanaged>;
template <class T, class Mem>
using Span2 = Kokkos::View<T**, Kokkos::LayoutRight, Mem, Unmanaged>;

/// Packed per-token head vectors [tokens, heads, head_dim]: any token and head stride, last dimension contiguous, so
/// that parts of a fused qkv buffer pass without a copy.
template <class T, class Mem>
using HeadsView = Kokkos::View<T***, Kokkos::LayoutStride, Mem, Unmanaged>;
/// Per-token head scalars [tokens, heads] (lse, delta).
template <class T, class Mem>
using RowsView = Kokkos::View<T**, Kokkos::LayoutStride, Mem, Unmanaged>;

}  // namespace sparseattn
