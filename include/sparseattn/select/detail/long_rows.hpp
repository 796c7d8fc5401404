#pragma once
// Team kernels in which each team walks one long row.

#include "sparseattn/core/kokkos_compat.hpp"

namespace sparseattn::detail {

// `rows` teams. On a device each has as many threads as the kernel can have: with the automatic choice, a warp or two,
// a row of 16k scores takes milliseconds.
template <class Exec, class Functor>
void for_long_rows(const char* label, const Exec& exec, int rows, const Functor& functor) {
    using Policy = Kokkos::TeamPolicy<Exec>;
    const Policy automatic(exec, rows, Kokkos::AUTO);
    if constexpr (host_accessible<Exec>) {
        Kokkos::parallel_for(label, automatic, functor);
    } else {
        const int most = automatic.team_size_max(functor, Kokkos::ParallelForTag());
        int threads = 32;  // a power of two, as team scans want it
        while (threads <= most / 2) threads *= 2;
        Kokkos::parallel_for(label, Policy(exec, rows, threads), functor);
    }
}

}  // namespace sparseattn::detail
