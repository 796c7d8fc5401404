#include "cuda/hopper/tensor_map.hpp"

#include <cuda_runtime_api.h>

namespace sparseattn::cuda::hopper {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode find_encoder() {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
    return reinterpret_cast<Encode>(entry);
}

}  // namespace

cudaError_t make_heads_map(CUtensorMap& map, const Heads& array, int tokens, int heads, int head_dim, int box_tokens,
                           int box_heads, bool streamed) {
    static const Encode encode = find_encoder();
    if (encode == nullptr) return cudaErrorNotSupported;
    constexpr cuuint32_t channels = 64;  // 128 bytes, the width of the swizzle
    const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(heads),
                                 static_cast<cuuint64_t>(tokens)};
    // The stride of a dimension of one element may be anything, but the encoder looks at it.
    const std::int64_t head_stride = heads > 1 ? array.head_stride : head_dim;
    const std::int64_t token_stride = tokens > 1 ? array.token_stride : head_stride * heads;
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(head_stride) * 2, static_cast<cuuint64_t>(token_stride) * 2};
    const cuuint32_t box[3] = {channels, static_cast<cuuint32_t>(box_heads), static_cast<cuuint32_t>(box_tokens)};
    const cuuint32_t steps[3] = {1, 1, 1};
    const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, array.data, sizes, strides, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   streamed ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace sparseattn::cuda::hopper
