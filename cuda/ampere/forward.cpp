#include "cuda/ampere/forward.hpp"

#include "cuda/ampere/coverage.hpp"
#include "cuda/ampere/forward_args.hpp"

namespace sparseattn::cuda::ampere {
namespace {

template <int HeadDim>
cudaError_t launch(const ForwardParams& params) {
    // with 256 channels, 128 queries and their keys and values would not fit into the 99 KiB that every device has
    if constexpr (HeadDim <= 128) {
        if (params.layout.block == 128) return launch_forward<HeadDim, 128>(params);
    }
    return launch_forward<HeadDim, 64>(params);
}

cudaError_t launch(const ForwardParams& params) {
    switch (params.head_dim) {
        case 32:
            return launch<32>(params);
        case 64:
            return launch<64>(params);
        case 96:
            return launch<96>(params);
        case 128:
            return launch<128>(params);
        case 256:
            return launch<256>(params);
        default:
            return cudaErrorNotSupported;
    }
}

}  // namespace

const char* forward_gap(const ForwardParams& params) {
    const char* gap = problem_gap(params);
    if (*gap == '\0' && !copyable(params.out)) gap = "out is not 16-byte aligned";
    return gap;
}

Status forward(const ForwardParams& params) {
    return {launch(params), "forward kernel"};
}

}  // namespace sparseattn::cuda::ampere
