// The vector kernels, for the instruction set that the including file defines:
// SPARSEATTN_HOST_TABLE (the table's name, a string for people is SPARSEATTN_HOST_NAME), SPARSEATTN_HOST_LANES (floats
// of a vector), SPARSEATTN_HOST_ROWS and SPARSEATTN_HOST_VECTORS (register block of the products, in rows and vectors).
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "kernels.hpp"

namespace sparseattn::detail::host {
namespace {

constexpr int kMicroRows = SPARSEATTN_HOST_ROWS;
constexpr int kMicroVecs = SPARSEATTN_HOST_VECTORS;

#include "simd.inl"

#include "gemm.inl"

#include "tiles.inl"

#include "rows.inl"

}  // namespace

extern const Kernels SPARSEATTN_HOST_TABLE{
    SPARSEATTN_HOST_NAME,
    forward_tile,
    backward_keys,
    backward_queries,
    finish,
    blend,
    {prefetch_rows<float>, load_rows<float>, load_transposed<float>, store_rows<float>, row_dots<float>},
    {prefetch_rows<std::uint16_t>, load_rows<std::uint16_t>, load_transposed<std::uint16_t>, store_rows<std::uint16_t>,
     row_dots<std::uint16_t>},
};

}  // namespace sparseattn::detail::host
