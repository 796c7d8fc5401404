#include "sparseattn/attention/detail/device_kernels.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn::detail::device {

template <class Exec, class T>
void launch_keys(const Exec& exec, const BackwardProblem<T, typename Exec::memory_space>& problem,
                 const TransposedLayout<typename Exec::memory_space>* const (&transposes)[2]) {
    with_head_dim(problem.head_dim, [&](auto d) {
        using Kernel = KeyKernel<T, typename Exec::memory_space, d()>;
        Kernel kernel{problem, {}};
        kernel.problem.shape = {Kernel::Tile::side, Kernel::Tile::side};
        for (int b = 0; b < (problem.gated() ? 2 : 1); ++b) kernel.transpose[b] = *transposes[b];
        const auto& grid = problem.branch[0].layout.grid;
        const std::int64_t teams = static_cast<std::int64_t>(problem.heads / problem.group) * grid.key_blocks *
                                   (grid.block / Kernel::Tile::side);
        launch<d() == 256 ? 1 : 2>("SparseAttn::generic_backward_keys", exec, teams, kernel);
    });
}

#define SPARSEATTN_INSTANTIATE_T(EXEC, T)                                                 \
    template void launch_keys(const EXEC&, const BackwardProblem<T, EXEC::memory_space>&, \
                              const TransposedLayout<EXEC::memory_space>* const(&)[2]);
#define SPARSEATTN_INSTANTIATE(EXEC) SPARSEATTN_INSTANTIATE_T(EXEC, float) SPARSEATTN_INSTANTIATE_T(EXEC, bf16)
SPARSEATTN_FOR_DEVICE(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail::device
