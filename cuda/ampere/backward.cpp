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

/// What a plain and a gated call have in common.
template <class Params>
BackwardArgs arguments_of(const Params& params, int branches) {
    BackwardArgs args{};
    args.batch = params.batch;
    args.branches = branches;
    for (int b = 0; b < branches; ++b) {
        args.branch[b].rows =
            reinterpret_cast<float2*>(static_cast<char*>(params.workspace) + static_cast<std::size_t>(b) * rows_bytes(params));
    }
    args.branch[0].layout = params.layout;
    args.branch[0].transposed = params.transposed;
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

template <class Params>
const char* gap(const Params& params) {
    const char* gap = problem_gap(params);
    if (*gap != '\0') return gap;
    if (!copyable(params.dout)) return "dout is not 16-byte aligned";
    if (!storable(params.dq)) return "dq is not 4-byte aligned";
    if (!storable(params.dk)) return "dk is not 4-byte aligned";
    if (!storable(params.dv)) return "dv is not 4-byte aligned";
    return "";
}

template <int HeadDim>
Status passes(const BackwardArgs& args, cudaStream_t stream) {
    const cudaError_t error = launch_key_pass<HeadDim>(args, stream);
    if (error != cudaSuccess) return {error, "key pass"};
    return {launch_query_pass<HeadDim>(args, stream), "query pass"};
}

Status run(const BackwardArgs& args, const ForwardResults& results, float* dgate, cudaStream_t stream) {
    cudaError_t error = launch_prepare(args, results, stream);
    if (error != cudaSuccess) return {error, "prepare kernel"};
    if (dgate != nullptr) error = launch_dgate(args, dgate, stream);
    if (error != cudaSuccess) return {error, "dgate kernel"};
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

const char* backward_gap(const BackwardParams& params) {
    const char* missing = gap(params);
    return *missing == '\0' && !copyable(params.out) ? "out is not 16-byte aligned" : missing;
}

std::size_t backward_workspace(const BackwardParams& params) {
    return rows_bytes(params);
}

Status backward(const BackwardParams& params) {
    return run(arguments_of(params, 1), {{params.out, {}}, {params.lse, {}}}, nullptr, params.stream);
}

const char* gated_backward_gap(const GatedBackwardParams& params) {
    const char* missing = gap(params);
    if (*missing != '\0') return missing;
    if (!copyable(params.full_out)) return "full_out is not 16-byte aligned";
    return copyable(params.sparse_out) ? "" : "sparse_out is not 16-byte aligned";
}

std::size_t gated_backward_workspace(const GatedBackwardParams& params) {
    return 2 * rows_bytes(params);
}

Status gated_backward(const GatedBackwardParams& params) {
    BackwardArgs args = arguments_of(params, 2);
    args.branch[1].layout = params.sparse;
    args.branch[1].transposed = params.sparse_transposed;
    args.gate = params.gate;
    return run(args, {{params.full_out, params.sparse_out}, {params.full_lse, params.sparse_lse}}, params.dgate,
               params.stream);
}

}  // namespace sparseattn::cuda::ampere
