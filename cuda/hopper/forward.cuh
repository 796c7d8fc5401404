#pragma once
/// \file
/// Block-sparse attention forward for Hopper: one warpgroup loads and schedules, two compute.

#include "cuda/hopper/forward_compute.cuh"
#include "cuda/hopper/forward_load.cuh"

namespace sparseattn::cuda::hopper {

template <class Shape>
__device__ __forceinline__ void init_barriers(TeamControl<Shape>& control) {
    constexpr int consumer_warps = 4 * Shape::warpgroups;
    for (int i = 0; i < Shape::stages; ++i) {
        barrier_init(&control.full[i], Shape::filling_lanes);
        barrier_init(&control.empty[i], consumer_warps * releasing_lanes);
    }
    for (int i = 0; i < Shape::query_stages; ++i) {
        barrier_init(&control.query_full[i], 1);
        barrier_init(&control.query_empty[i], consumer_warps * releasing_lanes);
    }
    for (int i = 0; i < Shape::tile_slots; ++i) {
        barrier_init(&control.tile_full[i], 1);
        barrier_init(&control.tile_empty[i], 32 * (consumer_warps + 1));  // every reader, and the loader's
    }
    control.gathering.init();
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1) forward_kernel(const __grid_constant__ ForwardArgs args) {
    extern __shared__ __align__(1024) unsigned char raw[];
    auto& storage = *reinterpret_cast<ForwardStorage<Shape>*>(raw);
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32 % 4, 0);
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int team = 0; team < Shape::teams; ++team) init_barriers<Shape>(storage.control[team]);
        barrier_init_fence();
        tensor_prefetch(&args.query);
        tensor_prefetch(&args.key);
        tensor_prefetch(&args.value);
    }
    __syncthreads();
    if (args.pieces.cut) dependents_may_launch();  // the kernel that merges
    if (warpgroup == 0) {
        give_registers<56>();
        const int team = warp % 2;
        if (team < Shape::teams) {
            if (warp < 2) {
                load_tiles<Shape>(args, storage.data[team], storage.control[team], lane);
            } else {
                schedule_tiles<Shape>(args, storage.control[team], team, lane);
            }
        } else if constexpr (Shape::helpers > 0) {
            help_to_gather<Shape>(args, storage.data[0], storage.control[0], 1 + warp / 2, lane);
        }
    } else {
        take_registers<224>();
        const int team = Shape::paired ? 0 : warpgroup - 1;
        Consumer<Shape>(args, storage.data[team], storage.control[team], warpgroup - 1, lane).run();
    }
}

template <int HeadDim, int Block, Team Kind, bool Singles>
cudaError_t launch_forward(const ForwardArgs& args, int grid, cudaStream_t stream) {
    using Shape = ForwardShape<HeadDim, Block, Kind, Singles>;
    constexpr int bytes = static_cast<int>(sizeof(ForwardStorage<Shape>));
    static_assert(bytes <= 227 * 1024, "shared memory of one multiprocessor");
    const cudaError_t error =
        cudaFuncSetAttribute(forward_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute overlap{};  // the kernel's set-up runs under the one that sorts its tiles
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(Shape::threads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, forward_kernel<Shape>, args);
}

}  // namespace sparseattn::cuda::hopper
