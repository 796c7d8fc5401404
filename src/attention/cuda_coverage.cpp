// Asks the door of the CUDA kernels which of them would serve a case on this device.
#include <algorithm>

#include "cuda/attention.hpp"
#include "sparseattn/attention/detail/coverage.hpp"

namespace sparseattn::detail {
namespace {

// The smallest call of a case that the door would look at: two query heads on one key head, arrays that nothing reads.
cuda::Problem problem_of(const KernelCase& c) {
    static constexpr std::int64_t no_keys[1] = {0};
    cuda::Problem problem;
    problem.query_heads = 2;
    problem.key_heads = 1;
    problem.head_dim = c.head_dim;
    problem.scale = 1;
    problem.batch.sequences = 1;
    problem.batch.queries = c.pass == Pass::decode ? 1 : 1024;
    problem.batch.keys = 1024;
    problem.layout.block = c.block;
    problem.layout.rows = problem.layout.key_blocks = 1024 / c.block;
    problem.layout.lists = 2;
    if (c.pass == Pass::single_keys || c.pass == Pass::single_keys_backward) problem.layout.key_offsets = no_keys;
    return problem;
}
template <class Params>
Params params_of(const KernelCase& c) {
    Params params;
    static_cast<cuda::Problem&>(params) = problem_of(c);
    return params;
}
template <class Params>
Params gated_of(const KernelCase& c) {
    auto params = params_of<Params>(c);
    params.sparse = params.layout;
    return params;
}

cuda::Kernel kernel_of(const KernelCase& c, const char** why) {
    switch (c.pass) {
        case Pass::forward:
        case Pass::single_keys:
        case Pass::decode:
            return cuda::forward_kernel(params_of<cuda::ForwardParams>(c), why);
        case Pass::gated_forward:
            return cuda::gated_forward_kernel(gated_of<cuda::GatedForwardParams>(c), why);
        case Pass::backward:
        case Pass::single_keys_backward:
            return cuda::backward_kernel(params_of<cuda::BackwardParams>(c), why);
        case Pass::gated_backward:
            return cuda::gated_backward_kernel(gated_of<cuda::GatedBackwardParams>(c), why);
    }
    return cuda::Kernel::none;
}

}  // namespace

std::string cuda_kernel(const KernelCase& c, const char** why) {
    switch (kernel_of(c, why)) {
        case cuda::Kernel::hopper:
            return "hopper";
        case cuda::Kernel::ampere:
            return "ampere";
        case cuda::Kernel::none:
            break;
    }
    return "generic";
}

std::int64_t cuda_workspace_bytes(const PackShape& pack) {
    std::size_t most = 0;
    for (const int block : {64, 128}) {
        cuda::Problem problem;
        problem.query_heads = pack.query_heads;
        problem.key_heads = pack.key_heads;
        problem.head_dim = pack.head_dim;
        problem.scale = 1;
        problem.batch.sequences = 1;
        problem.batch.queries = problem.batch.keys = static_cast<int>(pack.tokens);
        problem.layout.block = block;
        // some blocks more than of one document
        problem.layout.rows = problem.layout.key_blocks = static_cast<int>(pack.tokens / block) + 16;
        problem.layout.lists = pack.query_heads;
        const auto take = [&](auto params, const auto& bytes) {
            static constexpr float gate = 0;  // not read
            static_cast<cuda::Problem&>(params) = problem;
            if constexpr (requires { params.sparse; }) {
                params.sparse = problem.layout;
                params.gate = &gate;
            }
            most = std::max(most, bytes(params));
        };
        if (pack.gated) {
            take(cuda::GatedForwardParams(), [](const auto& p) { return cuda::gated_forward_workspace(p); });
            if (pack.training)
                take(cuda::GatedBackwardParams(), [](const auto& p) { return cuda::gated_backward_workspace(p); });
        } else {
            take(cuda::ForwardParams(), [](const auto& p) { return cuda::forward_workspace(p); });
            if (pack.training) take(cuda::BackwardParams(), [](const auto& p) { return cuda::backward_workspace(p); });
        }
    }
    return static_cast<std::int64_t>(most);
}

}  // namespace sparseattn::detail
