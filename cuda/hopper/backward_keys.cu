#include "cuda/hopper/backward_keys.cuh"
#include "cuda/hopper/backward_keys_wide.cuh"
#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/tensor_map.hpp"

namespace sparseattn::cuda::hopper {
namespace {

using Kernel = void (*)(BackwardArgs, KeyPassMaps);

template <class Pass>
cudaError_t launch(Kernel kernel, const BackwardArgs& args, const KeyPassMaps& maps, int processors,
                   cudaStream_t stream) {
    constexpr int bytes = static_cast<int>(sizeof(typename Pass::Shared));
    static_assert(bytes <= 227 * 1024);
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    return launch_overlapping(kernel, dim3(static_cast<unsigned>(processors)), 384, bytes, stream, args, maps);
}

template <int D, int B, KeyPassWith With>
cudaError_t launch(const BackwardArgs& args, const KeyPassMaps& maps, int processors, cudaStream_t stream) {
    return launch<KeyPass<D, B, With>>(key_pass_kernel<D, B, With>, args, maps, processors, stream);
}
template <int D, int B>
cudaError_t launch(const BackwardArgs& args, const KeyPassMaps& maps, int processors, cudaStream_t stream) {
    const bool with_queries = args.dq_sums != nullptr;
    if constexpr (D == 256) {
        if (with_queries) return cudaErrorNotSupported;
        return launch<WideKeyPass<B>>(wide_key_pass_kernel<B>, args, maps, processors, stream);
    } else {
        if (with_queries) {
            if constexpr (B == 128 || D == 64) {
                return launch<D, B, KeyPassWith::queries>(args, maps, processors, stream);
            }
            return cudaErrorNotSupported;
        }
        return args.lines.taken != nullptr ? launch<D, B, KeyPassWith::singles>(args, maps, processors, stream)
                                           : launch<D, B, KeyPassWith::nothing>(args, maps, processors, stream);
    }
}
template <int D>
cudaError_t launch(const BackwardArgs& args, const KeyPassMaps& maps, int processors, cudaStream_t stream) {
    return args.layout.block == 128 ? launch<D, 128>(args, maps, processors, stream)
                                    : launch<D, 64>(args, maps, processors, stream);
}

}  // namespace

cudaError_t launch_key_pass(const BackwardArgs& args, const GatedBackwardParams& params, int processors) {
    KeyPassMaps maps{};
    const int tile = params.head_dim > 128 ? 64 : args.layout.block;
    const auto make = [&](CUtensorMap& map, const Heads& array, bool queries) {
        const int tokens = queries ? args.batch.queries : args.batch.keys;
        if (tokens == 0) return cudaSuccess;  // never loaded from
        return make_heads_map(map, array, tokens, queries ? args.query_heads : args.key_heads, params.head_dim,
                              queries ? query_tile : tile);
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
