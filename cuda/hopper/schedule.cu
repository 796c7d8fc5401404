#include "cuda/hopper/forward_lists.cuh"
#include "cuda/hopper/ptx.cuh"

namespace sparseattn::cuda::hopper {
namespace {

constexpr int threads = 1024;
constexpr int buckets = 2 * threads;  // of list lengths; longer ones share the last
constexpr int held = 2;               // lengths that a thread keeps between the passes

/// Sorts the tiles of one section by the length of their lists, longest first, by counting. One thread block a section.
__global__ void __launch_bounds__(threads) sort_tiles(const __grid_constant__ ForwardArgs args) {
    __shared__ int count[buckets];
    __shared__ int warp_total[threads / 32];
    dependents_may_launch();
    const Schedule& schedule = args.schedule;
    const int first_unit = static_cast<int>(blockIdx.x) * schedule.section_units;
    const int units = min(schedule.section_units, schedule.units - first_unit);
    const int tiles = units * schedule.rows;
    const int thread = static_cast<int>(threadIdx.x);
    int* order = schedule.order + static_cast<std::int64_t>(first_unit) * schedule.rows;
    if (blockIdx.x == 0 && thread == 0) *schedule.counter = 0;
    count[thread] = count[thread + threads] = 0;
    __syncthreads();

    // Neighbouring threads look at neighbouring rows of one list, last rows first.
    const auto tile_of = [&](int item) {
        const int unit = item / schedule.rows, row = schedule.rows - 1 - item % schedule.rows;
        return row * schedule.section_units + unit;
    };
    const auto bucket_of = [&](int item) {
        const int unit = item / schedule.rows, row = schedule.rows - 1 - item % schedule.rows;
        const int number = first_unit + unit;
        const ForwardBranch& branch = args.branch[number % schedule.branches];
        const UnitList list = unit_list(branch, args.gate, unit_head(schedule, number), schedule.heads_per_unit, row);
        const std::int64_t keys = static_cast<std::int64_t>(list.blocks) * branch.layout.block + list.singles;
        return buckets - 1 - static_cast<int>(min(static_cast<long long>(keys / 64), buckets - 1LL));
    };
    int kept[held];
#pragma unroll
    for (int i = 0; i < held; ++i) {
        const int item = thread + i * threads;
        kept[i] = item < tiles ? bucket_of(item) : 0;
    }
#pragma unroll
    for (int i = 0; i < held; ++i) {
        if (thread + i * threads < tiles) atomicAdd(&count[kept[i]], 1);
    }
    for (int item = thread + held * threads; item < tiles; item += threads) atomicAdd(&count[bucket_of(item)], 1);
    __syncthreads();

    // Where each bucket begins: thread t owns buckets 2t and 2t + 1.
    const int own = count[2 * thread], both = own + count[2 * thread + 1];
    int before = both;  // sum over the warp's lanes up to this one
    for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, before, distance);
        if (thread % 32 >= distance) before += other;
    }
    if (thread % 32 == 31) warp_total[thread / 32] = before;
    __syncthreads();
    for (int warp = 0; warp < thread / 32; ++warp) before += warp_total[warp];
    count[2 * thread] = before - both;
    count[2 * thread + 1] = before - both + own;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < held; ++i) {
        const int item = thread + i * threads;
        if (item < tiles) order[atomicAdd(&count[kept[i]], 1)] = tile_of(item);
    }
    for (int item = thread + held * threads; item < tiles; item += threads) {
        order[atomicAdd(&count[bucket_of(item)], 1)] = tile_of(item);
    }
}

}  // namespace

cudaError_t launch_schedule(const ForwardArgs& args, cudaStream_t stream) {
    const Schedule& schedule = args.schedule;
    const int sections = (schedule.units + schedule.section_units - 1) / schedule.section_units;
    sort_tiles<<<sections, threads, 0, stream>>>(args);
    return cudaGetLastError();
}

}  // namespace sparseattn::cuda::hopper
