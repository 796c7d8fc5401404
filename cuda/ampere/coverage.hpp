#pragma once
/// \file
/// What every kernel of cuda/ampere asks of a case.

#include <cmath>
#include <cstdint>

#include "cuda/attention.hpp"

namespace sparseattn::cuda::ampere {

/// In pieces of 16 bytes.
inline bool copyable(const Heads& array) {
    return reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0 && array.token_stride % 8 == 0 &&
           array.head_stride % 8 == 0;
}
/// In pairs of bf16.
inline bool storable(const Heads& array) {
    return reinterpret_cast<std::uintptr_t>(array.data) % 4 == 0 && array.token_stride % 2 == 0 &&
           array.head_stride % 2 == 0;
}

/// "" or what is not covered, a string literal.
inline const char* problem_gap(const Problem& params) {
    if (params.type != Type::bf16) return "type is not bf16";
    const int d = params.head_dim;
    if (d != 32 && d != 64 && d != 96 && d != 128 && d != 256) return "head dimension is not 32, 64, 96, 128 or 256";
    if (params.layout.block != 64 && params.layout.block != 128) return "block is not 64 or 128";
    if (params.key_heads < 1 || params.query_heads % params.key_heads != 0) {
        return "query heads are not a multiple of key heads";
    }
    if (params.query_heads > 65535) return "more than 65535 query heads";
    if (!(params.scale > 0) || !std::isfinite(params.scale)) return "scale is not positive";
    if (!copyable(params.query)) return "query is not 16-byte aligned";
    if (!copyable(params.key)) return "key is not 16-byte aligned";
    if (!copyable(params.value)) return "value is not 16-byte aligned";
    return "";
}

}  // namespace sparseattn::cuda::ampere
