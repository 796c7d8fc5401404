#include "cuda/matmul.hpp"

#include <cublasLt.h>

#include <array>
#include <map>
#include <mutex>

namespace sparseattn::cuda {
namespace {

// What decides the kernel of a product.
using Key = std::array<std::int64_t, 10>;

// A product as cuBLASLt takes it; the opaque structs live here, so that making one allocates nothing elsewhere.
struct Plan {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t first, second, result;
    cublasLtMatmulAlgo_t algorithm;
};

// Handles and plans of the process. They stay until it ends: destroying them after the CUDA runtime has gone fails.
struct Cache {
    std::mutex mutex;
    std::map<int, cublasLtHandle_t> handles;
    std::map<Key, Plan> plans;
};
Cache& cache() {
    static Cache* const one = new Cache;
    return *one;
}

// The first failure of a sequence of calls.
class Calls {
  public:
    bool operator()(const char* where, cublasStatus_t status) {
        if (status != CUBLAS_STATUS_SUCCESS && outcome.ok()) outcome = {where, cublasLtGetStatusString(status)};
        return outcome.ok();
    }
    MatmulStatus outcome;
};

std::uint32_t alignment_of(const void* pointer) {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    std::uint32_t alignment = 256;
    while (address % alignment != 0) alignment /= 2;
    return alignment;
}

cudaDataType_t type_of(MatmulResult result) {
    return result == MatmulResult::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

Key key_of(const MatmulParams& p, int device) {
    const std::int64_t flags = (p.transpose_a ? 1 : 0) + (p.transpose_b ? 2 : 0) + (p.beta == 0 ? 4 : 0);
    return {device,
            p.m,
            p.n,
            p.k,
            flags,
            static_cast<std::int64_t>(p.result),
            alignment_of(p.a),
            alignment_of(p.b),
            alignment_of(p.c),
            alignment_of(p.workspace)};
}

// cuBLASLt's matrices are column-major: our row-major c is its c^T = op_b(b)^T op_a(a)^T, b comes first, and a stored
// [rows, columns] array is a [columns, rows] matrix there.
void describe(const MatmulParams& p, Plan& plan, Calls& calls) {
    const cublasOperation_t op_first = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_second = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const std::int64_t b_columns = p.transpose_b ? p.k : p.n, b_rows = p.transpose_b ? p.n : p.k;
    const std::int64_t a_columns = p.transpose_a ? p.m : p.k, a_rows = p.transpose_a ? p.k : p.m;
    const cudaDataType_t result = type_of(p.result);
    calls("cublasLtMatmulDescInit", cublasLtMatmulDescInit(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    calls("cublasLtMatmulDescSetAttribute",
          cublasLtMatmulDescSetAttribute(&plan.product, CUBLASLT_MATMUL_DESC_TRANSA, &op_first, sizeof op_first));
    calls("cublasLtMatmulDescSetAttribute",
          cublasLtMatmulDescSetAttribute(&plan.product, CUBLASLT_MATMUL_DESC_TRANSB, &op_second, sizeof op_second));
    calls("cublasLtMatrixLayoutInit (b)",
          cublasLtMatrixLayoutInit(&plan.first, CUDA_R_16BF, b_columns, b_rows, b_columns));
    calls("cublasLtMatrixLayoutInit (a)",
          cublasLtMatrixLayoutInit(&plan.second, CUDA_R_16BF, a_columns, a_rows, a_columns));
    calls("cublasLtMatrixLayoutInit (c)", cublasLtMatrixLayoutInit(&plan.result, result, p.n, p.m, p.n));
}

// Of split sums only those that keep their parts in fp32 and add them in a fixed order.
void choose(cublasLtHandle_t handle, const MatmulParams& p, Plan& plan, Calls& calls) {
    cublasLtMatmulPreferenceOpaque_t preference;
    calls("cublasLtMatmulPreferenceInit", cublasLtMatmulPreferenceInit(&preference));
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
        calls("cublasLtMatmulPreferenceSetAttribute",
              cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{matmul_workspace});
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.b));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.a));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.c));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.c));
    if (!calls.outcome.ok()) return;
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    calls("cublasLtMatmulAlgoGetHeuristic",
          cublasLtMatmulAlgoGetHeuristic(handle, &plan.product, &plan.first, &plan.second, &plan.result, &plan.result,
                                         &preference, 1, &found, &count));
    if (calls.outcome.ok() && count == 0) calls.outcome = {"cublasLtMatmulAlgoGetHeuristic", "no kernel for the shape"};
    if (calls.outcome.ok()) calls("cublasLtMatmulAlgoGetHeuristic (kernel)", found.state);
    plan.algorithm = found.algo;
}

const char* fault(const MatmulParams& p) {
    if (p.m < 1 || p.n < 1 || p.k < 1) return "m, n or k";
    if (p.a == nullptr || p.b == nullptr || p.c == nullptr) return "a, b or c";
    if (p.workspace == nullptr || alignment_of(p.workspace) < 256) return "workspace";
    return "";
}

}  // namespace

MatmulStatus matmul(const MatmulParams& p) {
    if (*fault(p) != '\0') return {fault(p), "argument of matmul is missing or out of range"};
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
        return {"cudaGetDevice", cudaGetErrorString(error)};
    }
    Calls calls;
    Cache& known = cache();
    const std::lock_guard<std::mutex> lock(known.mutex);
    cublasLtHandle_t& handle = known.handles[device];
    if (handle == nullptr && !calls("cublasLtCreate", cublasLtCreate(&handle))) return calls.outcome;
    const Key key = key_of(p, device);
    auto found = known.plans.find(key);
    if (found == known.plans.end()) {
        Plan plan{};
        describe(p, plan, calls);
        choose(handle, p, plan, calls);
        if (!calls.outcome.ok()) return calls.outcome;
        found = known.plans.emplace(key, plan).first;
    }
    Plan& plan = found->second;  // cuBLASLt takes pointers to what it does not change
    calls("cublasLtMatmul",
          cublasLtMatmul(handle, &plan.product, &p.alpha, p.b, &plan.first, p.a, &plan.second, &p.beta, p.c,
                         &plan.result, p.c, &plan.result, &plan.algorithm, p.workspace, matmul_workspace, p.stream));
    return calls.outcome;
}

}  // namespace sparseattn::cuda
