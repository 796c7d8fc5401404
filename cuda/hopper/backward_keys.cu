#include "cuda/hopper/backward_keys.cuh"
#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/tensor_map.hpp"

namespace sparseattn::cuda::hopper {
namespace {

template <int D, int B, bool WithQueries>
cudaError_t launch(const BackwardArgs& args, const KeyPassMaps& maps, int processors, cudaStream_t stream) {
    constexpr int bytes = static_cast<int>(sizeof(typename KeyPass<D, B, WithQueries>::Shared));
    static_assert(bytes <= 227 * 1024);
    const auto kernel = key_pass_kernel<D, B, WithQueries>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    return launch_overlapping(kernel, dim3(static_cast<unsigned>(processors)), 384, bytes, stream, args, maps);
}

template <int D>
cudaError_t launch(const BackwardArgs& args, const KeyPassMaps& maps, int processors, cudaStream_t stream) {
    const bool with_queries = args.dq_sums != nullptr;
    if (args.layout.block == 128) {
        return with_queries ? launch<D, 128, true>(args, maps, processors, stream)
                            : launch<D, 128, false>(args, maps, processors, stream);
    }
    if constexpr (D == 64) {
        if (with_queries) return launch<D, 64, true>(args, maps, processors, stream);
    }
    return with_queries ? cudaErrorNotSupported : launch<D, 64, false>(args, maps, processors, stream);
}

}  // namespace

cudaError_t launch_key_pass(const BackwardArgs& args, const GatedBackwardParams& params, int processors) {
    KeyPassMaps maps{};
    const int block = args.layout.block;
    const auto make = [&](CUtensorMap& map, const Heads& array, bool queries) {
        const int tokens = queries ? args.batch.queries : args.batch.keys;
        if (tokens == 0) return cudaSuccess;  // never loaded from
        return make_heads_map(map, array, tokens, queries ? args.query_heads : args.key_heads, params.head_dim,
                              queries ? query_tile : block);
    };
    cudaError_t error = make(maps.query, params.query, true);
    if (error == cudaSuccess) error = make(maps.dout, params.dout, true);
    if (error == cudaSuccess) error = make(maps.key, params.key, false);
    if (error == cudaSuccess) error = make(maps.value, params.value, false);
    if (error != cudaSuccess) return error;
    return params.head_dim <= 64 ? launch<64>(args, maps, processors, params.stream)
                                 : launch<128>(args, maps, processors, params.stream);
}

}  // namespace sparseattn::cuda::hopper
