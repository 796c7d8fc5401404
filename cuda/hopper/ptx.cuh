#pragma once
/// \file
/// The Hopper instructions that C++ has no names for: barriers in shared memory, bulk tensor copies, warpgroup matrix
/// products, register hand-over. Device code for sm_90a only.

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/shared.cuh"

namespace sparseattn::cuda::hopper {

// --- Addresses, lanes -------------------------------------------------------------------------------------------

/// Address of shared memory as the instructions want it.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// True in exactly one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
    std::uint32_t chosen;
    asm volatile("{\n .reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.u32 %0, 1, 0, p;\n}\n" : "=r"(chosen));
    return chosen != 0;
}

// --- Barriers in shared memory ----------------------------------------------------------------------------------

using Barrier = std::uint64_t;  // in shared memory, 8-byte aligned

__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine; before the __syncthreads that follows the inits.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives and tells the barrier to wait for `bytes` more bytes of bulk copies.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ bool barrier_test(Barrier* barrier, std::uint32_t parity) {
    std::uint32_t done;
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done != 0;
}
/// Waits until the phase of the given parity is complete. With SPARSEATTN_CUDA_WAIT_LIMIT (tests) a wait that lasts
/// that many tries traps instead of hanging. `Nanoseconds`: of sleep between looks, for waits that are long and whose
/// end is not urgent (a thread that looks takes an issue slot every 24 cycles).
template <unsigned Nanoseconds = 0>
__device__ __forceinline__ void barrier_wait(Barrier* barrier, std::uint32_t parity) {
#ifdef SPARSEATTN_CUDA_WAIT_LIMIT
    std::uint32_t tries = 0;
#endif
    while (!barrier_test(barrier, parity)) {
        if constexpr (Nanoseconds > 0) __nanosleep(Nanoseconds);
#ifdef SPARSEATTN_CUDA_WAIT_LIMIT
        if (++tries == SPARSEATTN_CUDA_WAIT_LIMIT) asm volatile("trap;");
#endif
    }
}

/// Arrives, and waits for all others that arrive in the same phase.
__device__ __forceinline__ void barrier_meet(Barrier* barrier) {
    std::uint64_t phase;
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(phase) : "r"(shared_address(barrier)) : "memory");
    std::uint32_t done = 0;
    while (done == 0) {
        asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}\n"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "l"(phase)
                     : "memory");
    }
}

/// Builds for tools that look for races (scripts/check_device_memory) synchronise in ways that these understand.
#ifdef SPARSEATTN_CUDA_CHECKED
inline constexpr bool checked = true;
#else
inline constexpr bool checked = false;
#endif

/// How many lanes of a warp arrive when it releases or announces what a barrier guards. The tools do not see that
/// __syncwarp orders what the others read or wrote before the arrival of one; builds for them let all arrive.
inline constexpr int releasing_lanes = checked ? 32 : 1;

/// What completes a barrier on which one lane of one warp announces what `Warps` warps have written: one arrival, or in
/// builds for tools one of each lane.
template <int Warps = 1>
inline constexpr int announcements = checked ? 32 * Warps : 1;
/// By all lanes of a warp, of which one arrived on such a barrier (`arrived`): makes that `Warps` arrivals of each
/// lane. The warp announces for itself, and for others that have written nothing this time.
template <int Warps = 1>
__device__ __forceinline__ void announce_all(Barrier* barrier, bool arrived) {
    if constexpr (checked) {
        for (int i = arrived ? 1 : 0; i < Warps; ++i) barrier_arrive(barrier);
    }
}

/// Position in a ring of `Stages` buffers: which one, and the parity of its current round.
template <int Stages>
struct Ring {
    int stage = 0;
    std::uint32_t phase = 0;
    /// The position after `count` steps.
    static __device__ __forceinline__ Ring at(int count) {
        return {count % Stages, static_cast<std::uint32_t>(count / Stages) & 1};
    }
    __device__ __forceinline__ void next() {
        if (++stage == Stages) {
            stage = 0;
            phase ^= 1;
        }
    }
};

/// Writes 16 bytes to where `shared` lies in thread block `rank` of the cluster, and reports them to that block's
/// `barrier` (both given by this block's addresses).
__device__ __forceinline__ void store_remote(void* shared, Barrier* barrier, int rank, std::uint64_t low,
                                             std::uint64_t high) {
    asm volatile(
        "{\n .reg .b32 to, at;\n mapa.shared::cluster.u32 to, %0, %2;\n mapa.shared::cluster.u32 at, %1, %2;\n"
        " st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 [to], {%3, %4}, [at];\n}\n" ::"r"(
            shared_address(shared)),
        "r"(shared_address(barrier)), "r"(rank), "l"(low), "l"(high)
        : "memory");
}

// --- Named barriers (0 is __syncthreads) ------------------------------------------------------------------------

__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Named barriers FirstId, FirstId + 1, ..., each of `Threads` threads (whole warps), that lie in shared memory in
/// builds for tools. Of named ones, synccheck calls the aligned form (bar) divergent where warps reach it from several
/// places of the program; racecheck loses some of the other form, and those at which some threads only arrive.
template <int FirstId, int Count, int Threads>
class NamedBarriers {
  public:
#ifdef SPARSEATTN_CUDA_CHECKED
    __device__ __forceinline__ void init() {  // by one thread, before a __syncthreads
        for (Barrier& barrier : barriers_) barrier_init(&barrier, Threads);
    }
    __device__ __forceinline__ void arrive(int which = 0) {
        barrier_arrive(&barriers_[which]);
    }
    __device__ __forceinline__ void sync(int which = 0) {
        barrier_meet(&barriers_[which]);
    }

  private:
    Barrier barriers_[Count];
#else
    __device__ __forceinline__ void init() {}
    __device__ __forceinline__ void arrive(int which = 0) {
        named_arrive(FirstId + which, Threads);
    }
    __device__ __forceinline__ void sync(int which = 0) {
        named_sync(FirstId + which, Threads);
    }
#endif
};

// --- Order between ordinary accesses and those of the copy engine and the matrix unit ----------------------------

/// By every thread that wrote shared memory with ordinary stores, before the barrier after which the copy engine or the
/// matrix unit touches it.
__device__ __forceinline__ void fence_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Lets the next kernel of the stream start when it was launched to overlap with this one.
__device__ __forceinline__ void dependents_may_launch() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
/// In such a kernel: until everything that the kernel before it wrote can be read.
__device__ __forceinline__ void wait_for_previous_kernel() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// --- Bulk tensor copies -----------------------------------------------------------------------------------------

__device__ __forceinline__ void tensor_prefetch(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/// Loads the box at the given element coordinates (innermost first) and reports its bytes to `barrier`. Elements
/// outside the tensor read as zero and count.
__device__ __forceinline__ void tensor_load(void* shared, const CUtensorMap* map, Barrier* barrier, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
        "[%2];" ::"r"(shared_address(shared)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
        : "memory");
}
__device__ __forceinline__ void tensor_load(void* shared, const CUtensorMap* map, Barrier* barrier, int c0, int c1,
                                            int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2];" ::"r"(shared_address(shared)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
__device__ __forceinline__ void tensor_load(void* shared, const CUtensorMap* map, Barrier* barrier, int c0, int c1,
                                            int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6}], [%2];" ::"r"(shared_address(shared)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}
/// Stores a box from shared memory; elements outside the tensor are dropped. Ends with bulk_commit and bulk_wait.
__device__ __forceinline__ void tensor_store(const CUtensorMap* map, const void* shared, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}
/// Adds `bytes` (a multiple of 16) of floats from shared to global memory, both 16-byte aligned.
__device__ __forceinline__ void bulk_add_f32(float* global, const void* shared, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
                 "r"(shared_address(shared)), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Until at most `Pending` groups have still to read their shared memory (it may then be written again).
template <int Pending>
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
/// Until at most `Pending` groups are incomplete.
template <int Pending>
__device__ __forceinline__ void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

/// 16 bytes from global to shared memory by an ordinary asynchronous copy; zeros when `valid` is false.
__device__ __forceinline__ void copy_16(void* shared, const void* global, bool valid) {
    asm volatile("{\n .reg .pred p;\n setp.eq.u32 p, %2, 0;\n cp.async.cg.shared.global [%0], [%1], 16, p;\n}\n" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(static_cast<std::uint32_t>(valid))
                 : "memory");
}
__device__ __forceinline__ void copy_wait_all() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
/// Keeps the phase of `barrier` open until the thread's copies so far have come; counts as no arrival, so one must
/// follow. Who has waited for the barrier needs fence_async_shared before the matrix unit reads what was copied. Builds
/// for tools that look for races wait here.
__device__ __forceinline__ void barrier_hold_for_copies(Barrier* barrier) {
#ifdef SPARSEATTN_CUDA_CHECKED
    copy_wait_all();
#else
    asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

/// Four 8 x 8 tiles of 16-bit elements to shared memory: lane l gives the address of row l % 8 of tile l / 8.
__device__ __forceinline__ void store_matrix_x4(void* shared, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                                std::uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared)),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}
/// The same, each tile transposed on the way.
__device__ __forceinline__ void store_matrix_x4_transposed(void* shared, std::uint32_t a, std::uint32_t b,
                                                           std::uint32_t c, std::uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared)),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// --- Registers --------------------------------------------------------------------------------------------------

template <int Registers>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

/// Exchanges a 4 x 4 matrix held by a quad of lanes (row: lane, column: register) for its transpose.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&x)[4], int lane) {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
        const bool upper = (lane & distance) != 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if ((i & distance) != 0) continue;
            const std::uint32_t mine = upper ? x[i] : x[i + distance];
            const std::uint32_t theirs = __shfl_xor_sync(0xffffffffu, mine, distance);
            if (upper)
                x[i] = theirs;
            else
                x[i + distance] = theirs;
        }
    }
}

}  // namespace sparseattn::cuda::hopper
