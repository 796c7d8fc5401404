#include "cuda/hopper/forward.hpp"

#include <algorithm>
#include <cmath>

#include "cuda/hopper/forward_args.hpp"
#include "cuda/hopper/tensor_map.hpp"

namespace sparseattn::cuda::hopper {
namespace {

bool copyable(const Heads& array) {  // by the copy engine and in pieces of 16 bytes
    return reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0 && array.token_stride % 8 == 0 &&
           array.head_stride % 8 == 0 && array.token_stride >= 0 && array.head_stride >= 0;
}

constexpr double l2_share = 0.6;          // of the cache, for the keys and values of a section
constexpr std::size_t order_begin = 256;  // bytes into the workspace, behind the counter

/// Heads 2u and 2u + 1 have one list and one key head: a 64-row tile of each makes one of 128.
bool foldable(const ForwardParams& params) {
    const int shared = params.layout.lists == 1 ? params.query_heads : params.layout.shared_heads;
    return params.layout.block == 64 && shared % 2 == 0 && (params.query_heads / params.key_heads) % 2 == 0;
}

Schedule make_schedule(const ForwardParams& params, int l2_bytes) {
    Schedule schedule{};
    schedule.counter = static_cast<int*>(params.workspace);
    schedule.order = schedule.counter + order_begin / sizeof(int);
    schedule.rows = params.layout.rows;
    schedule.heads_per_unit = foldable(params) ? 2 : 1;
    schedule.units = params.query_heads / schedule.heads_per_unit;
    schedule.tiles = schedule.rows * schedule.units;
    const double head_bytes = 4.0 * params.head_dim * std::max(params.batch.keys, 1);  // keys and values
    const int heads =
        static_cast<int>(std::clamp(l2_share * l2_bytes / head_bytes, 1.0, static_cast<double>(params.key_heads)));
    schedule.section_units = heads * (schedule.units / params.key_heads);
    return schedule;
}

template <int HeadDim>
cudaError_t launch(const ForwardParams& params, const ForwardArgs& args, int grid) {
    if (params.layout.block == 128) return launch_forward<HeadDim, 128, true>(args, grid, params.stream);
    if (args.schedule.heads_per_unit == 2) return launch_forward<HeadDim, 64, true>(args, grid, params.stream);
    if constexpr (HeadDim <= 128) return launch_forward<HeadDim, 64, false>(args, grid, params.stream);
    return cudaErrorNotSupported;
}

cudaError_t launch(const ForwardParams& params, const ForwardArgs& args, int grid) {
    switch (params.head_dim) {
        case 32:
            return launch<32>(params, args, grid);
        case 64:
            return launch<64>(params, args, grid);
        case 96:
            return launch<96>(params, args, grid);
        case 128:
            return launch<128>(params, args, grid);
        case 256:
            return launch<256>(params, args, grid);
        default:
            return cudaErrorNotSupported;
    }
}

}  // namespace

const char* forward_gap(const ForwardParams& params) {
    if (params.type != Type::bf16) return "type is not bf16";
    const int d = params.head_dim;
    if (d != 32 && d != 64 && d != 96 && d != 128 && d != 256) return "head dimension is not 32, 64, 96, 128 or 256";
    if (params.layout.block != 64 && params.layout.block != 128) return "block is not 64 or 128";
    if (params.key_heads < 1 || params.query_heads % params.key_heads != 0) {
        return "query heads are not a multiple of key heads";
    }
    if (d == 256 && params.layout.block == 64 && !foldable(params)) {
        return "head dimension 256 with blocks of 64 needs pairs of heads that share a list";
    }
    if (!(params.scale > 0) || !std::isfinite(params.scale)) return "scale is not positive";
    if (!copyable(params.query)) return "query is not 16-byte aligned";
    if (!copyable(params.key)) return "key is not 16-byte aligned";
    if (!copyable(params.value)) return "value is not 16-byte aligned";
    if (!copyable(params.out)) return "out is not 16-byte aligned";
    return "";
}

std::size_t forward_workspace(const ForwardParams& params) {
    return order_begin + sizeof(int) * static_cast<std::size_t>(params.layout.rows) * params.query_heads;
}

Status forward(const ForwardParams& params) {
    int device = 0, multiprocessors = 0, l2_bytes = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device);
    if (error != cudaSuccess) return {error, "device"};

    ForwardArgs args{};
    args.schedule = make_schedule(params, l2_bytes);
    args.batch = params.batch;
    args.layout = params.layout;
    args.key_rows = params.key;
    args.value_rows = params.value;
    args.out = params.out;
    args.lse = params.lse;
    args.gate = params.gate;
    args.closed = params.closed;
    args.group = params.query_heads / params.key_heads;
    args.scale = params.scale;
    args.scale_log2 = params.scale * 1.4426950408889634f;

    const int heads = params.key_heads, dim = params.head_dim, keys = params.batch.keys;
    const int box = std::min(params.layout.block, tile_keys(dim));
    error = make_heads_map(args.query, params.query, params.batch.queries, params.query_heads, dim, 64);
    if (error != cudaSuccess) return {error, "tensor map of query"};
    args.key = args.value = args.query;
    if (keys > 0) {  // else every list is empty and these maps are never loaded from
        error = make_heads_map(args.key, params.key, keys, heads, dim, box);
        if (error != cudaSuccess) return {error, "tensor map of key"};
        error = make_heads_map(args.value, params.value, keys, heads, dim, box);
        if (error != cudaSuccess) return {error, "tensor map of value"};
    }
    error = launch_schedule(args.schedule, params.layout, params.stream);
    if (error != cudaSuccess) return {error, "schedule kernel"};
    error = launch(params, args, std::min(multiprocessors, args.schedule.tiles));
    return {error, "forward kernel"};
}

}  // namespace sparseattn::cuda::hopper
