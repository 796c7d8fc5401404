#pragma once
/// \file
/// The instructions of compute capability 8.0 that C++ has no names for: asynchronous copies, fragment loads, the
/// matrix product of a warp.

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/shared.cuh"

namespace sparseattn::cuda::ampere {

inline constexpr unsigned all_lanes = 0xffffffffu;

/// Address of shared memory as the instructions want it.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes from global to shared memory; zeros, and nothing is read, when `valid` is false.
__device__ __forceinline__ void copy_16(std::uint32_t shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
/// The same for 8 bytes.
__device__ __forceinline__ void copy_8(std::uint32_t shared, const void* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared), "l"(global), "r"(valid ? 8 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Until at most `Pending` groups of the thread's copies are incomplete.
template <int Pending>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// Four 8 x 8 tiles of 16-bit elements: lane l gives the address of row l % 8 of tile l / 8 and gets, of each tile,
/// elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
/// The same, each tile transposed on the way.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/// c += a b for a of 16 x 16, b of 16 x 8 (as load_matrices leaves them) and c of 16 x 8: a lane holds columns
/// 2 (lane % 4), + 1 of row lane / 4 in c[0], c[1] and of row lane / 4 + 8 in c[2], c[3].
__device__ __forceinline__ void multiply_add(float* c, const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace sparseattn::cuda::ampere
