#pragma once
// Softmax of one row in place.

#include "sparseattn/core/elementary.hpp"

namespace sparseattn::detail {

// score[0, end) becomes its softmax, score[end, size) becomes 0; a team works on the row. end >= 1.
template <class Team>
KOKKOS_INLINE_FUNCTION void row_softmax(const Team& team, float* score, std::int32_t end, std::int32_t size) {
    float top;
    Kokkos::parallel_reduce(
        Kokkos::TeamVectorRange(team, end),
        [=](std::int32_t j, float& partial) { partial = score[j] > partial ? score[j] : partial; },
        Kokkos::Max<float>(top));
    Kokkos::parallel_for(Kokkos::TeamVectorRange(team, end),
                         [=](std::int32_t j) { score[j] = exponential(score[j] - top); });
    team.team_barrier();
    double total;
    Kokkos::parallel_reduce(
        Kokkos::TeamVectorRange(team, end), [=](std::int32_t j, double& partial) { partial += score[j]; }, total);
    const float scale = static_cast<float>(1 / total);
    Kokkos::parallel_for(Kokkos::TeamVectorRange(team, size),
                         [=](std::int32_t j) { score[j] = j < end ? score[j] * scale : 0.0F; });
    team.team_barrier();
}

}  // namespace sparseattn::detail
