#include "cuda/ampere/backward.hpp"

#include <algorithm>

#include "cuda/ampere/backward_args.hpp"
#include "cuda/ampere/coverage.hpp"

namespace sparseattn::cuda::ampere {
namespace {

/// Bytes of one branch's rows, kept apart at the workspace's alignment.
std::size_t rows_bytes(const Problem& params) {
    const auto number = [](int count) { return static_cast<std::size_t>(std::max(count, 0)); };
    return (number(params.batch.queries) * number(params.query_heads) * sizeof(float2) + 255) / 256 * 256;
}

BackwardArgs arguments_of(const GatedBackwardParams& params) {
    BackwardArgs args{};
    args.batch = params.batch;
    auto* rows = static_cast<char*>(params.workspace);
    args.branch[0] = {params.layout, params.transposed, reinterpret_cast<float2*>(rows)};
    args.branches = 1;
    if (params.gate != nullptr) {
        rows += rows_bytes(params);
        args.branch[1] = {params.sparse, params.sparse_transposed, reinterpret_cast<float2*>(rows)};
        args.branches = 2;
    }
    args.gate = params.gate;
    args.query = params.query;
    args.key = params.key;
    args.value = params.value;
    args.dout = params.dout;
    args.dq = params.dq;
    args.dk = params.dk;
    args.dv = params.dv;
    args.query_heads = params.query_heads;
    args.key_heads = params.key_heads;
    args.group = params.query_heads / params.key_heads;
    args.head_dim = params.head_dim;
    args.scale = params.scale;
    args.scale_log2 = params.scale * 1.4426950408889634f;
    return args;
}

template <int HeadDim>
Status passes(const BackwardArgs& args, cudaStream_t stream) {
    const cudaError_t error = launch_key_pass<HeadDim>(args, stream);
    if (error != cudaSuccess) return {error, "key pass"};
    return {launch_query_pass<HeadDim>(args, stream), "query pass"};
}

Status run_passes(const BackwardArgs& args, cudaStream_t stream) {
    switch (args.head_dim) {
        case 32:
            return passes<32>(args, stream);
        case 64:
            return passes<64>(args, stream);
        case 96:
            return passes<96>(args, stream);
        case 128:
            return passes<128>(args, stream);
        case 256:
            return passes<256>(args, stream);
        default:
            return {cudaErrorNotSupported, "head_dim"};
    }
}

}  // namespace

const char* backward_gap(const GatedBackwardParams& params) {
    const bool gated = params.gate != nullptr;
    const char* gap = problem_gap(params);
    if (*gap != '\0') return gap;
    if (!copyable(params.full_out)) return gated ? "full_out is not 16-byte aligned" : "out is not 16-byte aligned";
    if (gated && !copyable(params.sparse_out)) return "sparse_out is not 16-byte aligned";
    if (!copyable(params.dout)) return "dout is not 16-byte aligned";
    if (!storable(params.dq)) return "dq is not 4-byte aligned";
    if (!storable(params.dk)) return "dk is not 4-byte aligned";
    if (!storable(params.dv)) return "dv is not 4-byte aligned";
    return "";
}

std::size_t backward_workspace(const GatedBackwardParams& params) {
    return (params.gate != nullptr ? 2 : 1) * rows_bytes(params);
}

Status backward(const GatedBackwardParams& params) {
    const BackwardArgs args = arguments_of(params);
    const ForwardResults results{{params.full_out, params.sparse_out}, {params.full_lse, params.sparse_lse}};
    cudaError_t error = launch_prepare(args, results, params.stream);
    if (error != cudaSuccess) return {error, "prepare kernel"};
    if (args.branches == 2) error = launch_dgate(args, params.dgate, params.stream);
    if (error != cudaSuccess) return {error, "dgate kernel"};
    return run_passes(args, params.stream);
}

}  // namespace sparseattn::cuda::ampere
