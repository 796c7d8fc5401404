#include "sparseattn/attention/detail/device_kernels.hpp"
#include "sparseattn/core/instantiate.hpp"

namespace sparseattn::detail::device {

template <class Exec, class T>
void launch_forward(const Exec& exec, const ForwardProblem<T, typename Exec::memory_space>& problem) {
    with_head_dim(problem.head_dim, [&](auto d) {
        using Kernel = ForwardKernel<T, typename Exec::memory_space, d()>;
        Kernel kernel{problem};
        kernel.problem.shape = {Kernel::Tile::side, Kernel::Tile::side};
        launch<resident_teams<d()>>("SparseAttn::generic_forward", exec, query_teams(kernel.problem), kernel);
    });
}

#define SPARSEATTN_INSTANTIATE_T(EXEC, T) \
    template void launch_forward(const EXEC&, const ForwardProblem<T, EXEC::memory_space>&);
#define SPARSEATTN_INSTANTIATE(EXEC) SPARSEATTN_INSTANTIATE_T(EXEC, float) SPARSEATTN_INSTANTIATE_T(EXEC, bf16)
SPARSEATTN_FOR_DEVICE(SPARSEATTN_INSTANTIATE)

}  // namespace sparseattn::detail::device
