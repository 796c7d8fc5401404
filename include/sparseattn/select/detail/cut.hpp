#pragma once
// The smallest set of largest values whose weights reach a sum, without a sort: bisection on the bits of the value. One
// team works on one set; the answer depends on the values only (sums of the weights are in double).

#include <cstdint>
#include <cstring>

#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn::detail {

// A number that orders like the float: larger value, larger key.
KOKKOS_INLINE_FUNCTION std::uint32_t order_key(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

// Taken are the values above a key and, of those equal to it, the ones with the lower index.
struct Cut {
    std::uint32_t key = 0xffffffffU;
    std::int32_t tie_end = 0;

    KOKKOS_INLINE_FUNCTION bool takes(float value, std::int32_t index) const {
        const std::uint32_t k = order_key(value);
        return k > key || (k == key && index < tie_end);
    }
};

// Members `value(i)` and `weight(i)` (>= 0, double; 0 for an index that takes no part), i in [0, count). Takes values
// in descending order, ties lower index first, while the weight taken is below `required`; the one that reaches it is
// taken. Nothing when required <= 0, everything when the weights never reach it (also when any of them is NaN).
template <class Team, class Value, class Weight>
KOKKOS_INLINE_FUNCTION Cut find_cut(const Team& team, std::int32_t count, const Value& value, const Weight& weight,
                                    double required) {
    if (required <= 0) return {};
    const auto weight_from = [&](std::uint64_t key) {
        double sum = 0;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, count),
            [&](std::int32_t i, double& partial) { partial += order_key(value(i)) >= key ? weight(i) : 0.0; }, sum);
        return sum;
    };
    std::uint64_t low = 0, high = std::uint64_t(1) << 32;  // weight_from(low) reaches, weight_from(high) does not
    if (!(weight_from(low) >= required)) return {0, count};
    while (high - low > 1) {
        const std::uint64_t middle = (low + high) / 2;
        (weight_from(middle) >= required ? low : high) = middle;
    }
    const std::uint32_t key = static_cast<std::uint32_t>(low);
    const double rest = required - weight_from(high);
    std::int32_t below = 0, tie_end = count;  // ties [0, below) fall short, [0, tie_end) suffice
    while (tie_end - below > 1) {
        const std::int32_t middle = below + (tie_end - below) / 2;
        double sum = 0;
        Kokkos::parallel_reduce(
            Kokkos::TeamVectorRange(team, middle),
            [&](std::int32_t i, double& partial) { partial += order_key(value(i)) == key ? weight(i) : 0.0; }, sum);
        (sum >= rest ? tie_end : below) = middle;
    }
    return {key, tie_end};
}

}  // namespace sparseattn::detail
