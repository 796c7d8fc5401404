#pragma once
// Loops over the rows of row-major arrays: rows in parallel, columns inside a row by a "row team". On a CPU a team is
// one thread and the column loops are plain loops that the compiler vectorises; on a device it is a Kokkos team.

#include <cstdint>
#include <string>

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

struct HostRowTeam {};
template <class Exec, bool host = host_accessible<Exec>>
struct RowTeamOf {
    using type = HostRowTeam;
};
template <class Exec>
struct RowTeamOf<Exec, false> {
    using type = typename Kokkos::TeamPolicy<Exec>::member_type;
};
template <class Exec>
using RowTeam = typename RowTeamOf<Exec>::type;

// How many neighbouring columns one work item sums over many rows: a few cache lines on a CPU, one column (so that the
// reads of neighbouring threads coalesce) on a device.
template <class Exec>
inline constexpr int column_block = host_accessible<Exec> ? 64 : 1;

// body(const RowTeam<Exec>&, std::int64_t row) for rows [0, rows). `threads` of a team on a device; 0: as Kokkos likes.
template <class Exec, class Body>
void for_each_row(const Exec& exec, const std::string& label, std::int64_t rows, const Body& body,
                  [[maybe_unused]] int threads = 0) {
    if constexpr (host_accessible<Exec>) {
        Kokkos::parallel_for(label, Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(exec, 0, rows),
                             [=](std::int64_t row) { body(HostRowTeam{}, row); });
    } else {
        using Policy = Kokkos::TeamPolicy<Exec>;
        const int league = static_cast<int>(rows);
        Kokkos::parallel_for(
            label, threads > 0 ? Policy(exec, league, threads) : Policy(exec, league, Kokkos::AUTO),
            KOKKOS_LAMBDA(const RowTeam<Exec>& team) { body(team, team.league_rank()); });
    }
}

// body(column) for columns [0, n), which must not depend on each other: the compiler may vectorise without proof.
template <class Body>
KOKKOS_INLINE_FUNCTION void for_columns(const HostRowTeam&, int n, const Body& body) {
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#elif defined(__GNUC__)
#pragma GCC ivdep
#endif
    for (int i = 0; i < n; ++i) body(i);
}
template <class Team, class Body>
KOKKOS_INLINE_FUNCTION void for_columns(const Team& team, int n, const Body& body) {
    team.team_barrier();
    Kokkos::parallel_for(Kokkos::TeamVectorRange(team, n), body);
}

// Sum of term(column) over [0, n), the same for every thread of the team. The CPU version keeps sixteen partial sums so
// that a float sum vectorises without reassociation flags.
template <class T, class Term>
KOKKOS_INLINE_FUNCTION T sum_columns(const HostRowTeam&, int n, const Term& term) {
    constexpr int lanes = 16;
    T partial[lanes] = {};
    int i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int j = 0; j < lanes; ++j) partial[j] += term(i + j);
    }
    T tail = 0;
    for (; i < n; ++i) tail += term(i);
    for (int width = lanes / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; ++j) partial[j] += partial[j + width];
    }
    return partial[0] + tail;
}
template <class T, class Team, class Term>
KOKKOS_INLINE_FUNCTION T sum_columns(const Team& team, int n, const Term& term) {
    T sum = 0;
    team.team_barrier();
    Kokkos::parallel_reduce(
        Kokkos::TeamVectorRange(team, n), [&](int i, T& partial) { partial += term(i); }, sum);
    return sum;
}

// Largest term(column) over [0, n), n >= 1.
template <class T, class Term>
KOKKOS_INLINE_FUNCTION T max_columns(const HostRowTeam&, int n, const Term& term) {
    constexpr int lanes = 16;
    T partial[lanes];
    const T first = term(0);
    for (int j = 0; j < lanes; ++j) partial[j] = first;
    int i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int j = 0; j < lanes; ++j) {
            const T value = term(i + j);
            partial[j] = value > partial[j] ? value : partial[j];
        }
    }
    for (; i < n; ++i) {
        const T value = term(i);
        partial[0] = value > partial[0] ? value : partial[0];
    }
    for (int j = 1; j < lanes; ++j) partial[0] = partial[j] > partial[0] ? partial[j] : partial[0];
    return partial[0];
}
template <class T, class Team, class Term>
KOKKOS_INLINE_FUNCTION T max_columns(const Team& team, int n, const Term& term) {
    T largest;
    team.team_barrier();
    Kokkos::parallel_reduce(
        Kokkos::TeamVectorRange(team, n),
        [&](int i, T& partial) {
            const T value = term(i);
            partial = value > partial ? value : partial;
        },
        Kokkos::Max<T>(largest));
    return largest;
}

}  // namespace sparseattn::detail
