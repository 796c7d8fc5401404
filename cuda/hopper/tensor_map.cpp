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

/// A bf16 tensor whose boxes hold 64 channels, the width of the swizzle, of `box_heads` entries of the second
/// and `box` of the last dimension.
template <int Rank>
cudaError_t encode_map(CUtensorMap& map, void* data, const cuuint64_t (&sizes)[Rank],
                       const std::int64_t (&strides)[Rank - 1], int box, int box_heads = 1, bool streamed = false) {
    static const Encode encode = find_encoder();
    if (encode == nullptr) return cudaErrorNotSupported;
    cuuint64_t bytes[Rank - 1];
    cuuint32_t boxes[Rank], steps[Rank];
    for (int i = 0; i < Rank; ++i) boxes[i] = steps[i] = 1;
    for (int i = 0; i < Rank - 1; ++i) bytes[i] = static_cast<cuuint64_t>(strides[i]) * 2;
    boxes[0] = 64;
    boxes[1] = static_cast<cuuint32_t>(box_heads);
    boxes[Rank - 1] = static_cast<cuuint32_t>(box);
    const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, Rank, data, sizes, bytes, boxes, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   streamed ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/// The stride of a dimension of one element may be anything, but the encoder looks at it.
std::int64_t head_stride(const Heads& array, int heads, int head_dim) {
    return heads > 1 ? array.head_stride : head_dim;
}

}  // namespace

cudaError_t make_heads_map(CUtensorMap& map, const Heads& array, int tokens, int heads, int head_dim, int box_tokens,
                           int box_heads, bool streamed) {
    const std::int64_t between_heads = head_stride(array, heads, head_dim);
    return encode_map<3>(
        map, array.data,
        {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(tokens)},
        {between_heads, tokens > 1 ? array.token_stride : between_heads * heads}, box_tokens, box_heads, streamed);
}

cudaError_t make_strided_map(CUtensorMap& map, const Heads& array, int heads, int head_dim, int stride, int phases,
                             int rows, int box_rows) {
    const std::int64_t between_heads = head_stride(array, heads, head_dim);
    return encode_map<4>(map, array.data,
                         {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(heads),
                          static_cast<cuuint64_t>(phases), static_cast<cuuint64_t>(rows)},
                         {between_heads, phases > 1 || rows > 1 ? array.token_stride : between_heads * heads,
                          rows > 1 ? array.token_stride * stride : between_heads * heads * stride},
                         box_rows);
}

}  // namespace sparseattn::cuda::hopper
