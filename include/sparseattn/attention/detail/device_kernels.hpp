#pragma once
// The generic implementation's kernels where the execution space is a device; a CPU has others (generic_forward.cpp,
// generic_backward.cpp).

#include "sparseattn/attention/detail/device_backward.hpp"
#include "sparseattn/attention/detail/device_forward.hpp"

namespace sparseattn::detail::device {

template <class Exec, class T>
void launch_forward(const Exec& exec, const ForwardProblem<T, typename Exec::memory_space>& problem);
template <class Exec, class T>
void launch_queries(const Exec& exec, const BackwardProblem<T, typename Exec::memory_space>& problem);
template <class Exec, class T>
void launch_keys(const Exec& exec, const BackwardProblem<T, typename Exec::memory_space>& problem,
                 const TransposedLayout<typename Exec::memory_space>* const (&transposes)[2]);

/// A kernel as the body of a team.
template <class Exec, class Kernel>
struct TeamKernel {
    Kernel kernel;
    template <class Team>
    KOKKOS_INLINE_FUNCTION void operator()(const Team& team) const {
        using View = Kokkos::View<float*, typename Exec::scratch_memory_space, Unmanaged>;
        float* const memory = View(team.team_scratch(0), Kernel::floats + 4).data();
        kernel.run(team, memory + (16 - reinterpret_cast<std::uintptr_t>(memory) % 16) % 16 / sizeof(float));
    }
};

/// Lets a kernel's arguments travel with its launch. CUDA's back end copies larger ones to constant memory else, and
/// for that the host waits until an earlier kernel has read its own.
template <class Policy>
auto light(const Policy& policy) {
    return Kokkos::Experimental::require(policy, Kokkos::Experimental::WorkItemProperty::HintLightWeight);
}

/// Teams of the forward and the query kernel that fit on a multiprocessor at once without spilling much.
template <int d>
inline constexpr int resident_teams = d <= 64    ? 3
                                      : d <= 128 ? 2
                                                 : 1;

/// Runs a kernel in `teams` teams, `resident` of them on a multiprocessor at once as far as registers go.
template <int resident, class Exec, class Kernel>
void launch(const char* label, const Exec& exec, std::int64_t teams, const Kernel& kernel) {
    if (teams == 0) return;
    using Policy = Kokkos::TeamPolicy<Exec, Kokkos::LaunchBounds<Kernel::Tile::threads, resident>>;
    Policy policy(exec, static_cast<int>(teams), Kernel::Tile::threads, 1);
    policy.set_scratch_size(0, Kokkos::PerTeam(static_cast<int>((Kernel::floats + 4) * sizeof(float) + 16)));
    Kokkos::parallel_for(label, light(policy), TeamKernel<Exec, Kernel>{kernel});
}

/// use(std::integral_constant<int, d>) for a head dimension of the generic implementation.
template <class Use>
void with_head_dim(int head_dim, const Use& use) {
    switch (head_dim) {
        case 32:
            return use(std::integral_constant<int, 32>());
        case 64:
            return use(std::integral_constant<int, 64>());
        case 96:
            return use(std::integral_constant<int, 96>());
        case 128:
            return use(std::integral_constant<int, 128>());
        default:
            return use(std::integral_constant<int, 256>());
    }
}

}  // namespace sparseattn::detail::device
