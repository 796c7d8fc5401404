#pragma once
/// \file
/// What the host sides of the selections share.

#include <cstdint>

#include "cuda/select.hpp"

namespace sparseattn::cuda::hopper {

inline int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

/// Hands out pieces of the workspace, or only counts them while there is none.
struct Memory {
    std::size_t used = 0;
    char* base = nullptr;
    template <class T>
    T* take(std::size_t count) {
        T* start = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
        used += (count * sizeof(T) + 255) / 256 * 256;
        return start;
    }
};

/// Whether the copy engine can read the array.
inline bool copyable(const Heads& array) {
    return reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0 && array.token_stride % 8 == 0 &&
           array.head_stride % 8 == 0 && array.token_stride >= 0 && array.head_stride >= 0;
}

/// What no selection covers; "" when nothing.
inline const char* selection_gap(const SelectionParams& params) {
    if (params.type != Type::bf16) return "type is not bf16";
    if (params.block != 64 && params.block != 128) return "block is not 64 or 128";
    if (params.key_heads < 1 || params.query_heads % params.key_heads != 0) {
        return "query heads are not a multiple of key heads";
    }
    if (params.query_heads > 32767) return "more than 32767 query heads";
    if (params.head_dim < 8 || params.head_dim % 8 != 0) return "head dimension is not a multiple of 8";
    if (!copyable(params.query)) return "query is not 16-byte aligned";
    if (!copyable(params.key)) return "key is not 16-byte aligned";
    return "";
}

}  // namespace sparseattn::cuda::hopper
