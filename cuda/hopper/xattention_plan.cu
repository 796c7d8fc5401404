#include "cuda/hopper/xattention_plan.cuh"

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/ptx.cuh"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int plan_threads = 1024;

__global__ void __launch_bounds__(plan_threads)
    make_plan(const __grid_constant__ XAttentionShape shape, const __grid_constant__ XAttentionPlan plan) {
    __shared__ int warp_sum[plan_threads / 32];
    dependents_may_launch();
    wait_for_previous_kernel();
    build_plan<plan_threads>(shape, plan, warp_sum);
}

}  // namespace

cudaError_t launch_plan(const XAttentionShape& shape, const XAttentionPlan& plan, cudaStream_t stream) {
    return launch_overlapping(make_plan, dim3(1), plan_threads, 0, stream, shape, plan);
}

}  // namespace sparseattn::cuda::hopper
