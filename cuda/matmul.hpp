#pragma once
/// \file
/// Matrix products of bf16 factors through cuBLASLt. As cuda/attention.hpp: no Kokkos, C++17, device pointers, calls
/// that enqueue on a stream and neither wait nor throw.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace sparseattn::cuda {

/// Storage type of a product's result. Factors are bf16, sums are formed in fp32 and then rounded; with beta,
/// cuBLASLt's kernels for a bf16 result may round the product and then its sum with c.
enum class MatmulResult { bf16, fp32 };

/// c = alpha op_a(a) op_b(b) + beta c: row-major and contiguous, op_a(a) [m, k], op_b(b) [k, n], c [m, n]; with
/// transpose_a, `a` is stored as [k, m], likewise b as [n, k]. With beta = 0 the old content of c is not read. m, n and
/// k are at least 1; c overlaps neither a nor b.
struct MatmulParams {
    std::int64_t m = 0, n = 0, k = 0;
    bool transpose_a = false, transpose_b = false;
    float alpha = 1, beta = 0;
    const void* a = nullptr;
    const void* b = nullptr;
    void* c = nullptr;
    MatmulResult result = MatmulResult::bf16;
    void* workspace = nullptr;  // matmul_workspace bytes, 256-byte aligned
    cudaStream_t stream = nullptr;
};

/// Bytes of workspace of every product: what NVIDIA recommends for Hopper.
inline constexpr std::size_t matmul_workspace = std::size_t{32} << 20;

/// Outcome of a product: the call of cuBLASLt or CUDA that failed and what it says; string literals.
struct MatmulStatus {
    const char* where = "";
    const char* reason = "";
    [[nodiscard]] bool ok() const { return *where == '\0'; }
};

/// Enqueues the product. The same arguments give the same bits on the same kind of device. The first call on a device
/// makes the library's handle, the first of a shape chooses its kernel; later ones allocate nothing. Thread-safe.
[[nodiscard]] MatmulStatus matmul(const MatmulParams& params);

}  // namespace sparseattn::cuda
