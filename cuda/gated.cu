#include <cuda_bf16.h>

#include "cuda/arguments.hpp"
#include "cuda/hopper/forward.hpp"

namespace sparseattn::cuda {
namespace {

/// out = z full + (1 - z) sparse, eight channels a thread.
__global__ void blend(GatedForwardParams p) {
    const int pieces = p.head_dim / 8;
    const std::int64_t count = static_cast<std::int64_t>(p.batch.queries) * p.query_heads * pieces;
    for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
         i += std::int64_t{gridDim.x} * blockDim.x) {
        const std::int64_t piece = i % pieces, head = i / pieces % p.query_heads, token = i / pieces / p.query_heads;
        const auto at = [&](const Heads& array) {
            return reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(array.data) + token * array.token_stride +
                                            head * array.head_stride + piece * 8);
        };
        const float z = p.gate[head];
        uint4 full = *at(p.full_out), sparse = *at(p.sparse_out);
        auto* f = reinterpret_cast<__nv_bfloat162*>(&full);
        const auto* s = reinterpret_cast<const __nv_bfloat162*>(&sparse);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const float2 a = __bfloat1622float2(f[pair]), b = __bfloat1622float2(s[pair]);
            f[pair] = __floats2bfloat162_rn(z * a.x + (1.0f - z) * b.x, z * a.y + (1.0f - z) * b.y);
        }
        *at(p.out) = full;
    }
}

ForwardParams branch(const GatedForwardParams& params, bool full) {
    ForwardParams result{};
    static_cast<Problem&>(result) = params;
    if (!full) result.layout = params.sparse;
    result.out = full ? params.full_out : params.sparse_out;
    result.lse = full ? params.full_lse : params.sparse_lse;
    result.gate = params.gate;
    result.closed = full ? 0.0f : 1.0f;
    return result;
}

}  // namespace

Kernel gated_forward_kernel(const GatedForwardParams& params, const char** why) {
    ForwardParams blended = branch(params, true);
    blended.out = params.out;
    Kernel result = Kernel::hopper;
    for (const ForwardParams& part : {branch(params, true), branch(params, false), blended}) {
        const Kernel kernel = forward_kernel(part, why);
        if (kernel == Kernel::none) return Kernel::none;
        if (kernel != Kernel::hopper) result = kernel;
    }
    return result;
}

std::size_t gated_forward_workspace(const GatedForwardParams& params) {
    if (gated_forward_kernel(params) == Kernel::hopper) return hopper::branches_workspace(params);
    const std::size_t full = forward_workspace(branch(params, true)), sparse = forward_workspace(branch(params, false));
    return full > sparse ? full : sparse;  // one after the other
}

Status gated_forward(const GatedForwardParams& params) {
    if (params.gate == nullptr) return {cudaErrorInvalidValue, "gate"};
    if (params.sparse.block != params.layout.block || params.sparse.rows != params.layout.rows) {
        return {cudaErrorInvalidValue, "sparse"};
    }
    const bool empty = params.layout.rows == 0 || params.batch.queries == 0;
    if (!empty && params.out.data == nullptr) return {cudaErrorInvalidValue, "out"};
    for (const bool full : {true, false}) {
        if (const char* argument = broken_argument(branch(params, full))) return {cudaErrorInvalidValue, argument};
    }
    const char* why = "";
    const Kernel kernel = gated_forward_kernel(params, &why);
    if (kernel == Kernel::none) return {cudaErrorNotSupported, why};
    if (empty) return {};
    if (params.workspace_bytes < gated_forward_workspace(params)) return {cudaErrorInvalidValue, "workspace_bytes"};
    // The Hopper kernels walk both branches in one launch.
    Status status = kernel == Kernel::hopper ? hopper::branches_forward(params) : forward(branch(params, true));
    if (kernel != Kernel::hopper && status.ok()) status = forward(branch(params, false));
    if (!status.ok()) return status;
    constexpr int threads = 256;
    const std::int64_t pieces =
        static_cast<std::int64_t>(params.batch.queries) * params.query_heads * params.head_dim / 8;
    const std::int64_t blocks = (pieces + threads - 1) / threads;
    blend<<<static_cast<unsigned>(blocks < 4096 ? blocks : 4096), threads, 0, params.stream>>>(params);
    return {cudaGetLastError(), "blend kernel"};
}

}  // namespace sparseattn::cuda
