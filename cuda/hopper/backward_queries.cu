#include "cuda/hopper/backward_queries.cuh"
#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/tensor_map.hpp"

namespace sparseattn::cuda::hopper {
namespace {

template <int D, int B, bool Singles>
cudaError_t launch(const BackwardArgs& args, const QueryPassMaps& maps, int processors, cudaStream_t stream) {
    constexpr int bytes = static_cast<int>(sizeof(typename QueryPass<D, B, Singles>::Shared));
    static_assert(bytes <= 227 * 1024);
    const auto kernel = query_pass_kernel<D, B, Singles>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    return launch_overlapping(kernel, dim3(static_cast<unsigned>(processors)), 384, bytes, stream, args, maps);
}

template <int D>
cudaError_t launch(const BackwardArgs& args, const QueryPassMaps& maps, int processors, cudaStream_t stream) {
    const bool narrow = args.layout.block == 64;
    if constexpr (D < 256) {
        if (args.lines.taken == nullptr) {
            return narrow ? launch<D, 64, false>(args, maps, processors, stream)
                          : launch<D, 128, false>(args, maps, processors, stream);
        }
    }
    return narrow ? launch<D, 64, true>(args, maps, processors, stream)
                  : launch<D, 128, true>(args, maps, processors, stream);
}

}  // namespace

cudaError_t launch_query_pass(const BackwardArgs& args, const GatedBackwardParams& params, int processors) {
    QueryPassMaps maps{};
    const auto make = [&](CUtensorMap& map, const Heads& array, bool queries) {
        const int tokens = queries ? args.batch.queries : args.batch.keys;
        if (tokens == 0) return cudaSuccess;  // never loaded from
        return make_heads_map(map, array, tokens, queries ? args.query_heads : args.key_heads, params.head_dim,
                              queries || params.head_dim < 256 ? args.layout.block : 64);
    };
    cudaError_t error = make(maps.query, params.query, true);
    if (error == cudaSuccess) error = make(maps.dout, params.dout, true);
    if (error == cudaSuccess) error = make(maps.key, params.key, false);
    if (error == cudaSuccess) error = make(maps.value, params.value, false);
    if (error != cudaSuccess) return error;
    if (params.head_dim <= 64) return launch<64>(args, maps, processors, params.stream);
    if (params.head_dim <= 128) return launch<128>(args, maps, processors, params.stream);
    return launch<256>(args, maps, processors, params.stream);
}

}  // namespace sparseattn::cuda::hopper
