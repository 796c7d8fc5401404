#pragma once
/// \file
/// Counter-based random numbers: a value is a pure function of (seed, purpose, step, index), so it is the same for any
/// number of ranks and threads and after a restart. Philox4x32-10 (Salmon et al., SC 2011) from Random123.

#include <Random123/philox.h>

#include <cstdint>

#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn {

/// What a stream of random numbers is for; streams of different purposes never overlap. Values are part of the
/// checkpoint format: append only.
enum class RandomPurpose : std::uint32_t {
    weight_init = 1,
    gate_init = 2,
    gate_sample = 3,
    data_order = 4,
    generation = 5,
    test = 6,
};

/// One stream: (seed, purpose, step). Copyable into kernels.
class RandomStream {
  public:
    KOKKOS_INLINE_FUNCTION RandomStream(std::uint64_t seed, RandomPurpose purpose, std::uint64_t step)
        : key_{{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}},
          purpose_(static_cast<std::uint32_t>(purpose)),
          step_(step) {}

    /// 64 random bits for `index`.
    KOKKOS_INLINE_FUNCTION std::uint64_t bits(std::uint64_t index) const {
        const auto block = generate(index);
        return static_cast<std::uint64_t>(block.v[0]) << 32 | block.v[1];
    }

    /// Uniform in the open interval (0, 1), 53 bits.
    KOKKOS_INLINE_FUNCTION double uniform(std::uint64_t index) const { return to_unit(bits(index)); }

    /// Standard normal (Box-Muller on the two halves of one Philox block).
    KOKKOS_INLINE_FUNCTION double normal(std::uint64_t index) const {
        const auto block = generate(index);
        const double u = to_unit(static_cast<std::uint64_t>(block.v[0]) << 32 | block.v[1]);
        const double w = to_unit(static_cast<std::uint64_t>(block.v[2]) << 32 | block.v[3]);
        return math::sqrt(-2.0 * math::log(u)) * math::cos(6.283185307179586476925287 * w);
    }

  private:
    KOKKOS_INLINE_FUNCTION r123::Philox4x32::ctr_type generate(std::uint64_t index) const {
        // 48 bits of step, 64 of index, 16 of purpose.
        const r123::Philox4x32::ctr_type counter = {
            {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
             static_cast<std::uint32_t>(step_), static_cast<std::uint32_t>(step_ >> 32) << 16 | purpose_}};
        return r123::Philox4x32()(counter, key_);
    }
    KOKKOS_INLINE_FUNCTION static double to_unit(std::uint64_t word) {
        return (static_cast<double>(word >> 11) + 0.5) * 0x1.0p-53;
    }

    r123::Philox4x32::key_type key_;
    std::uint32_t purpose_;
    std::uint64_t step_;
};

}  // namespace sparseattn
