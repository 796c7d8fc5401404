#pragma once
/// \file
/// Warpgroup matrix products D[64, N] += A[64, 16] B[16, N], bf16 operands, fp32 accumulators. Device code for sm_90a.
///
/// Accumulator i of thread t (warp w = t / 32 % 4, lane l = t % 32) is row 16 w + l / 4 + 8 (i / 2 % 2), column
/// 8 (i / 4) + 2 (l % 4) + i % 2. A taken from registers has four packed pairs: accumulators 8k..8k+7 of a product,
/// packed two by two in order, are the A operand of columns 16k..16k+15.
///
/// Operands in shared memory are rows of 128 bytes (64 elements) written by the copy engine with the 128-byte swizzle,
/// 1024-byte aligned: an operand is "along" when its rows run along the summed dimension (A [M, K], B [N, K]), "across"
/// when they run along M or N (A [K, M], B [K, N]).

#include <cstdint>

#include "cuda/hopper/ptx.cuh"

namespace sparseattn::cuda::hopper {

// --- Operands in shared memory ------------------------------------------------------------------------------------

inline constexpr int swizzle_row = 128;       // bytes
inline constexpr int swizzle_atom = 8 * 128;  // bytes; the pattern repeats every 8 rows

/// Byte offset of 16-byte piece `piece` (0..7) of row `row` in a swizzled tile.
__device__ __forceinline__ int swizzled(int row, int piece) {
    return row * swizzle_row + ((piece ^ (row & 7)) << 4);
}

/// Descriptor of a swizzled operand. `panel_bytes` is the distance between panels of 64 elements along M or N and is
/// read for "across" operands only. Moving on by 16 along the summed dimension adds 32 bytes to the address of an
/// "along" operand (four times within a panel) and 2 * swizzle_atom to that of an "across" one.
__device__ __forceinline__ std::uint64_t operand(const void* shared, int panel_bytes = 16) {
    constexpr std::uint64_t swizzle_128 = std::uint64_t{1} << 62;
    constexpr std::uint64_t atom = std::uint64_t{swizzle_atom >> 4} << 32;
    return swizzle_128 | atom | (static_cast<std::uint64_t>(panel_bytes >> 4) << 16) |
           ((shared_address(shared) & 0x3ffffu) >> 4);
}
/// The operand `bytes` further on.
__device__ __forceinline__ std::uint64_t advance(std::uint64_t operand, int bytes) {
    return operand + static_cast<std::uint64_t>(bytes >> 4);
}

// --- Order ----------------------------------------------------------------------------------------------------------

/// Before the first product after the accumulators or A registers were written by ordinary instructions.
__device__ __forceinline__ void product_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// With SPARSEATTN_CUDA_CHECKED (builds for compute-sanitizer) also waits: the code that tools insert at loads and
/// stores would otherwise overwrite what a product is writing.
__device__ __forceinline__ void product_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#ifdef SPARSEATTN_CUDA_CHECKED
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
/// Until at most `Pending` committed groups are unfinished.
template <int Pending>
__device__ __forceinline__ void product_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
/// Keeps the compiler from moving ordinary uses of these registers across this point.
template <int Count>
__device__ __forceinline__ void pin(float (&registers)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int Count>
__device__ __forceinline__ void pin(std::uint32_t (&registers)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

/// Keeps the arithmetic that leads to `value` (never negative) before the product_wait that follows: ptxas would
/// otherwise move the wait ahead of it. An instruction with side effects that never executes, but needs the value to
/// know.
__device__ __forceinline__ void stay_before(float value) {
    asm volatile("{\n .reg .pred p;\n setp.lt.f32 p, %0, 0f00000000;\n @p nanosleep.u32 0;\n}\n" ::"f"(value)
                 : "memory");
}

// --- Products -------------------------------------------------------------------------------------------------------
// accumulate == 0 overwrites D. Across: the operand's rows run along M (A) or N (B).

#define SPARSEATTN_F8(d, i)                                                                                     \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define SPARSEATTN_F16(d, i) SPARSEATTN_F8(d, i), SPARSEATTN_F8(d, i + 8)
#define SPARSEATTN_F32(d, i) SPARSEATTN_F16(d, i), SPARSEATTN_F16(d, i + 16)
#define SPARSEATTN_F64(d, i) SPARSEATTN_F32(d, i), SPARSEATTN_F32(d, i + 32)

// The names of the accumulators, operands %0 to %N/2 - 1.
#define SPARSEATTN_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SPARSEATTN_NAMES_32 \
    SPARSEATTN_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SPARSEATTN_NAMES_48 \
    SPARSEATTN_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SPARSEATTN_NAMES_64 \
    SPARSEATTN_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SPARSEATTN_NAMES_96                                                                                       \
    SPARSEATTN_NAMES_64                                                                                           \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, " \
    "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SPARSEATTN_NAMES_128                                                                                     \
    SPARSEATTN_NAMES_96                                                                                          \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, " \
    "%114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// Both products of one width N: A from shared memory and from registers. `count` accumulators (N / 2), listed by
// `accumulators`; o0.. are the numbers of the operands that follow them: count, count + 1, ...
#define SPARSEATTN_PRODUCTS(N, count, accumulators, o0, o1, o2, o3, o4, o5, o6)                                       \
    template <bool AcrossA = false, bool AcrossB = false>                                                             \
    __device__ __forceinline__ void product(float(&d)[count], std::uint64_t a, std::uint64_t b, int accumulate) {     \
        asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #o2 ", 0;\n wgmma.mma_async.sync.aligned.m64n" #N         \
                     "k16.f32.bf16.bf16 {" SPARSEATTN_NAMES_##count "}, %" #o0 ", %" #o1 ", p, 1, 1, %" #o3 ", %" #o4 \
                                                                    ";\n}\n"                                          \
                     : accumulators                                                                                   \
                     : "l"(a), "l"(b), "r"(accumulate), "n"(AcrossA ? 1 : 0), "n"(AcrossB ? 1 : 0));                  \
    }                                                                                                                 \
    template <bool AcrossB = false>                                                                                   \
    __device__ __forceinline__ void product(float(&d)[count], const std::uint32_t* a, std::uint64_t b,                \
                                            int accumulate) {                                                         \
        asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #o5 ", 0;\n wgmma.mma_async.sync.aligned.m64n" #N         \
                     "k16.f32.bf16.bf16 {" SPARSEATTN_NAMES_##count "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3         \
                                                                    "}, %" #o4 ", p, 1, 1, %" #o6 ";\n}\n"            \
                     : accumulators                                                                                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(AcrossB ? 1 : 0));    \
    }

#define SPARSEATTN_LIST(...) __VA_ARGS__
SPARSEATTN_PRODUCTS(32, 16, SPARSEATTN_LIST(SPARSEATTN_F16(d, 0)), 16, 17, 18, 19, 20, 21, 22)
SPARSEATTN_PRODUCTS(64, 32, SPARSEATTN_LIST(SPARSEATTN_F32(d, 0)), 32, 33, 34, 35, 36, 37, 38)
SPARSEATTN_PRODUCTS(96, 48, SPARSEATTN_LIST(SPARSEATTN_F32(d, 0), SPARSEATTN_F16(d, 32)), 48, 49, 50, 51, 52, 53, 54)
SPARSEATTN_PRODUCTS(128, 64, SPARSEATTN_LIST(SPARSEATTN_F64(d, 0)), 64, 65, 66, 67, 68, 69, 70)
SPARSEATTN_PRODUCTS(192, 96, SPARSEATTN_LIST(SPARSEATTN_F64(d, 0), SPARSEATTN_F32(d, 64)), 96, 97, 98, 99, 100, 101,
                    102)
SPARSEATTN_PRODUCTS(256, 128, SPARSEATTN_LIST(SPARSEATTN_F64(d, 0), SPARSEATTN_F64(d, 64)), 128, 129, 130, 131, 132,
                    133, 134)

#undef SPARSEATTN_LIST
#undef SPARSEATTN_PRODUCTS
#undef SPARSEATTN_NAMES_128
#undef SPARSEATTN_NAMES_96
#undef SPARSEATTN_NAMES_64
#undef SPARSEATTN_NAMES_48
#undef SPARSEATTN_NAMES_32
#undef SPARSEATTN_NAMES_16
#undef SPARSEATTN_F64
#undef SPARSEATTN_F32
#undef SPARSEATTN_F16
#undef SPARSEATTN_F8

}  // namespace sparseattn::cuda::hopper
