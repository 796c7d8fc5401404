#include "cuda/hopper/backward.hpp"

#include <algorithm>
#include <cmath>

#include "cuda/hopper/backward_args.hpp"

namespace sparseattn::cuda::hopper {
namespace {

bool copyable(const Heads& array) {  // by the copy engine and in pieces of 16 bytes
    return reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0 && array.token_stride % 8 == 0 &&
           array.head_stride % 8 == 0 && array.token_stride >= 0 && array.head_stride >= 0;
}
bool storable(const Heads& array) {  // in pairs of bf16
    return reinterpret_cast<std::uintptr_t>(array.data) % 4 == 0 && array.token_stride % 2 == 0 &&
           array.head_stride % 2 == 0;
}

/// Whether dQ is summed by the key pass, in no fixed order. Blocks of 64 with 128 channels: a second pass is faster.
bool sums_dq(const BackwardParams& params) {
    return !params.deterministic && (params.layout.block == 128 || params.head_dim == 64);
}

/// The parts of the workspace, as offsets in bytes.
struct Parts {
    static constexpr std::size_t row_values = 256;  // after the work counters
    std::size_t dq_sums, end;

    explicit Parts(const BackwardParams& params) {
        const std::size_t tiles = static_cast<std::size_t>(std::max(params.layout.rows, 0)) *
                                  (std::max(params.layout.block, 0) / query_tile) *
                                  std::max(params.query_heads, 0);
        dq_sums = row_values + tiles * 2 * query_tile * sizeof(float);
        end = dq_sums;
        if (sums_dq(params)) end += tiles * query_tile * std::max(params.head_dim, 0) * sizeof(float);
    }
};

}  // namespace

const char* backward_gap(const BackwardParams& params) {
    if (params.type != Type::bf16) return "type is not bf16";
    if (params.head_dim != 64 && params.head_dim != 128) return "head dimension is not 64 or 128";
    if (params.layout.block != 64 && params.layout.block != 128) return "block is not 64 or 128";
    if (params.key_heads < 1 || params.query_heads % params.key_heads != 0) {
        return "query heads are not a multiple of key heads";
    }
    if (params.layout.key_offsets != nullptr) return "single keys";
    if (!(params.scale > 0) || !std::isfinite(params.scale)) return "scale is not positive";
    if (!copyable(params.query)) return "query is not 16-byte aligned";
    if (!copyable(params.key)) return "key is not 16-byte aligned";
    if (!copyable(params.value)) return "value is not 16-byte aligned";
    if (!copyable(params.out)) return "out is not 16-byte aligned";
    if (!copyable(params.dout)) return "dout is not 16-byte aligned";
    if (!storable(params.dq)) return "dq is not 4-byte aligned";
    if (!storable(params.dk)) return "dk is not 4-byte aligned";
    if (!storable(params.dv)) return "dv is not 4-byte aligned";
    return "";
}

std::size_t backward_workspace(const BackwardParams& params) {
    return Parts(params).end;
}

Status backward(const BackwardParams& params) {
    int device = 0, multiprocessors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return {error, "device"};

    const Parts parts(params);
    auto* workspace = static_cast<char*>(params.workspace);
    BackwardArgs args{};
    args.query_heads = params.query_heads;
    args.key_heads = params.key_heads;
    args.tiles = params.layout.rows * (params.layout.block / query_tile);
    args.scale = params.scale;
    args.scale_log2 = params.scale * 1.4426950408889634f;
    args.batch = params.batch;
    args.layout = params.layout;
    args.transposed = params.transposed;
    args.next_item = reinterpret_cast<int*>(workspace);
    args.row_values = reinterpret_cast<float*>(workspace + Parts::row_values);
    const bool sums = sums_dq(params);
    args.dq_sums = sums ? reinterpret_cast<float*>(workspace + parts.dq_sums) : nullptr;
    args.dq = params.dq;
    args.dk = params.dk;
    args.dv = params.dv;

    error = launch_prepare(args, params);
    if (error != cudaSuccess) return {error, "prepare kernel"};
    error = launch_key_pass(args, params, multiprocessors);
    if (error != cudaSuccess) return {error, "key pass"};
    error = sums ? launch_finish(args, params) : launch_query_pass(args, params, multiprocessors);
    return {error, sums ? "finish kernel" : "query pass"};
}

}  // namespace sparseattn::cuda::hopper
