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
#define SPARSEATTN_F32(d, i) \
    SPARSEATTN_F8(d, i), SPARSEATTN_F8(d, i + 8), SPARSEATTN_F8(d, i + 16), SPARSEATTN_F8(d, i + 24)

template <bool AcrossA = false, bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[16], std::uint64_t a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %18, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1, %19, %20;\n}\n"
        : SPARSEATTN_F8(d, 0), SPARSEATTN_F8(d, 8)
        : "l"(a), "l"(b), "r"(accumulate), "n"(AcrossA ? 1 : 0), "n"(AcrossB ? 1 : 0));
}
template <bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[16], const std::uint32_t* a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %21, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}\n"
        : SPARSEATTN_F8(d, 0), SPARSEATTN_F8(d, 8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(AcrossB ? 1 : 0));
}

template <bool AcrossA = false, bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[32], std::uint64_t a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %34, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, %35, %36;\n}\n"
        : SPARSEATTN_F32(d, 0)
        : "l"(a), "l"(b), "r"(accumulate), "n"(AcrossA ? 1 : 0), "n"(AcrossB ? 1 : 0));
}
template <bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[32], const std::uint32_t* a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %37, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
        : SPARSEATTN_F32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(AcrossB ? 1 : 0));
}

template <bool AcrossA = false, bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[48], std::uint64_t a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %50, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, %48, %49, p, 1, 1, %51, %52;\n}\n"
        : SPARSEATTN_F32(d, 0), SPARSEATTN_F8(d, 32), SPARSEATTN_F8(d, 40)
        : "l"(a), "l"(b), "r"(accumulate), "n"(AcrossA ? 1 : 0), "n"(AcrossB ? 1 : 0));
}
template <bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[48], const std::uint32_t* a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %53, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, {%48, %49, %50, %51}, %52, p, 1, 1, %54;\n}\n"
        : SPARSEATTN_F32(d, 0), SPARSEATTN_F8(d, 32), SPARSEATTN_F8(d, 40)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(AcrossB ? 1 : 0));
}

template <bool AcrossA = false, bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[64], std::uint64_t a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %66, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
        : SPARSEATTN_F32(d, 0), SPARSEATTN_F32(d, 32)
        : "l"(a), "l"(b), "r"(accumulate), "n"(AcrossA ? 1 : 0), "n"(AcrossB ? 1 : 0));
}
template <bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[64], const std::uint32_t* a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %69, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
        : SPARSEATTN_F32(d, 0), SPARSEATTN_F32(d, 32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(AcrossB ? 1 : 0));
}

template <bool AcrossA = false, bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[128], std::uint64_t a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %130, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
        : SPARSEATTN_F32(d, 0), SPARSEATTN_F32(d, 32), SPARSEATTN_F32(d, 64), SPARSEATTN_F32(d, 96)
        : "l"(a), "l"(b), "r"(accumulate), "n"(AcrossA ? 1 : 0), "n"(AcrossB ? 1 : 0));
}
template <bool AcrossB = false>
__device__ __forceinline__ void product(float (&d)[128], const std::uint32_t* a, std::uint64_t b, int accumulate) {
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %133, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, {%128, %129, %130, %131}, %132, p, 1, 1, %134;\n}\n"
        : SPARSEATTN_F32(d, 0), SPARSEATTN_F32(d, 32), SPARSEATTN_F32(d, 64), SPARSEATTN_F32(d, 96)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(AcrossB ? 1 : 0));
}

#undef SPARSEATTN_F32
#undef SPARSEATTN_F8

}  // namespace sparseattn::cuda::hopper
