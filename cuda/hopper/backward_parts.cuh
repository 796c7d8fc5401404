#pragma once
/// \file
/// Pieces that the backward kernels of Hopper share. Device code for sm_90a only.

#include "cuda/hopper/backward_lists.cuh"
#include "cuda/hopper/ptx.cuh"
#include "cuda/hopper/wgmma.cuh"
#include "cuda/shared.cuh"
#include "cuda/token_rule.cuh"

namespace sparseattn::cuda::hopper {

/// Reads a list by a whole warp, 32 entries at a time and 32 ahead. Entries must be asked for in order from 0.
class ListWalk {
  public:
    __device__ __forceinline__ ListWalk(const std::int32_t* list, int count, int lane)
        : list_(list), count_(count), lane_(lane), ahead_(load(0)) {}
    __device__ __forceinline__ int entry(int index) {
        if (index % 32 == 0) {
            chunk_ = ahead_;
            ahead_ = load(index + 32);
        }
        return __shfl_sync(0xffffffffu, chunk_, index % 32);
    }

  private:
    __device__ __forceinline__ std::int32_t load(int first) const {
        return first + lane_ < count_ ? list_[first + lane_] : 0;
    }
    const std::int32_t* list_;
    int count_, lane_;
    std::int32_t chunk_ = 0, ahead_;
};

/// Hands out pieces to a producer warp. With `Ahead` their numbers are drawn a piece before they are needed, which
/// hides the latency of short pieces; long ones would be kept from whoever is free first.
template <bool Ahead>
class PieceQueue {
  public:
    __device__ __forceinline__ PieceQueue(int* counter, const Piece* pieces, int count, int lane)
        : counter_(counter), pieces_(pieces), count_(count), lane_(lane), ahead_(Ahead ? draw() : 0) {}
    /// The next piece; item < 0 when all are taken.
    __device__ __forceinline__ Piece take() {
        const int number = __shfl_sync(0xffffffffu, Ahead ? ahead_ : draw(), 0);
        if (number >= count_) return {-1, 0, 0, -1};
        if (Ahead) ahead_ = draw();
        const int4 piece = __ldg(reinterpret_cast<const int4*>(pieces_) + number);
        return {piece.x, piece.y, piece.z, piece.w};
    }

  private:
    __device__ __forceinline__ int draw() const { return lane_ == 0 ? atomicAdd(counter_, 1) : 0; }
    int* counter_;
    const Piece* pieces_;
    int count_, lane_, ahead_;
};

/// One tile of work of a stage, written by the producer before the stage's barrier.
struct TileNote {
    int begin;   // first query (key pass) or key (query pass) in its sequence; -1 ends the item
    int masked;  // 0, or 1 + the branch whose token rule hides pairs
    int head;    // query head (key pass); of an end mark of the query pass: the next branch of the item, or -1
    int tile;    // number over all heads (key pass)
};

/// One item, written by the producer before the barrier of what an item keeps in shared memory.
struct ItemNote {
    int head;   // key head (key pass), query head (query pass); -1: no more work
    int token;  // first key of the sequence, first query of the block (query pass), in the packed batch
    int begin;  // first query in its sequence (query pass); part of the block (key pass)
    int tile;   // first query tile over all heads (query pass)
    int queries, keys;
    int slot;    // of partial sums; -1: results are written
    int branch;  // the first (query pass)
};

/// Loads `Bytes` in a row from global to shared memory, both 16-byte aligned, and reports them to `barrier`.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, int bytes, Barrier* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
/// Loads one head's [Tokens, D] as panels of 64 channels.
template <int Tokens, int D>
__device__ __forceinline__ void load_tile(unsigned char* shared, const CUtensorMap* map, Barrier* barrier, int token,
                                          int head) {
#pragma unroll
    for (int panel = 0; panel < D / 64; ++panel) {
        tensor_load(shared + panel * Tokens * swizzle_row, map, barrier, panel * 64, head, token);
    }
}

/// Loads tiles that reach past the end of a sequence, by a whole warp that waits for them: what lies beyond becomes
/// zeros, because NaN or infinity of the next sequence would reach a sum through a factor of 0.
struct RaggedLoader {
    Barrier* barrier;  // of its own
    int lane;
    std::uint32_t phase = 0;

    template <int Tokens, int D>
    __device__ __forceinline__ void load(unsigned char* shared, const CUtensorMap* map, int token, int head,
                                         int valid) {
        if (elect_one()) {
            barrier_expect(barrier, Tokens * D * 2);
            load_tile<Tokens, D>(shared, map, barrier, token, head);
        }
        __syncwarp();
        barrier_wait(barrier, phase);
        phase ^= 1;
#pragma unroll 1
        for (int panel = 0; panel < D / 64; ++panel) {
#pragma unroll 1
            for (int piece = valid * 8 + lane; piece < Tokens * 8; piece += 32) {
                *reinterpret_cast<uint4*>(shared + panel * Tokens * swizzle_row + piece * 16) = make_uint4(0, 0, 0, 0);
            }
        }
        fence_async_shared();
        __syncwarp();
    }
};

/// Rows of some keys of one head and sequence, whose first token is `token`, to panels of 64 channels, by `Threads`
/// threads of which this is number `thread`; zeros for no_key. Then waits for them, not for those of other threads.
template <int Rows, int D, int Threads>
__device__ __forceinline__ void gather_rows(unsigned char* shared, const Heads& array, int head, int token, int d,
                                            const int* keys, int thread) {
    constexpr int pieces = D / 8;
    const auto* base =
        static_cast<const __nv_bfloat16*>(array.data) + head * array.head_stride + token * array.token_stride;
#pragma unroll 1
    for (int item = thread; item < Rows * pieces; item += Threads) {
        const int row = item / pieces, piece = item % pieces, key = keys[row];
        const bool valid = key < no_key && piece * 8 < d;
        copy_16(shared + piece / 8 * Rows * swizzle_row + swizzled(row, piece % 8),
                base + (valid ? key * array.token_stride + piece * 8 : 0), valid);
    }
    copy_wait_all();
    fence_async_shared();
}

/// All lanes of a warp are done with what the barrier guards.
__device__ __forceinline__ void warp_release(Barrier* barrier, int lane) {
    __syncwarp();
    if (lane < releasing_lanes) barrier_arrive(barrier);
}

/// d = A B^T over D channels: 64 rows of A by the rows of B, both in panels of 64 channels.
template <int D, int N>
__device__ __forceinline__ void product_of_rows(float (&d)[N], const unsigned char* a, int a_panel,
                                                const unsigned char* b, int b_panel) {
    std::uint64_t a0 = operand(a);
    const std::uint64_t b0 = operand(b);
    if constexpr (D == 256) asm volatile("" : "+l"(a0));  // else its advances are kept in registers from tile to tile
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
        product(d, advance(a0, step / 4 * a_panel + step % 4 * 32), advance(b0, step / 4 * b_panel + step % 4 * 32),
                step > 0);
    }
}
/// d += A B: A in packed registers [64, Rows], B rows of channels [Rows, D] in panels.
template <int Rows, int N>
__device__ __forceinline__ void product_of_packed(float (&d)[N], const std::uint32_t (&a)[Rows / 4],
                                                  const unsigned char* b, int b_panel) {
    const std::uint64_t b0 = operand(b, b_panel);
#pragma unroll
    for (int step = 0; step < Rows / 16; ++step) {
        product<true>(d, a + 4 * step, advance(b0, step * 2 * swizzle_atom), 1);
    }
}

/// Accumulators to packed bf16 in the order of an A operand.
template <int N>
__device__ __forceinline__ void pack(const float (&values)[N], std::uint32_t (&packed)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) packed[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
}

/// The two halves of packed bf16.
__device__ __forceinline__ float unpack_low(std::uint32_t packed) {
    return __uint_as_float(packed << 16);
}
__device__ __forceinline__ float unpack_high(std::uint32_t packed) {
    return __uint_as_float(packed & 0xffff0000u);
}

/// Keeps the arithmetic that leads to these bits before the product_wait that follows (see stay_before). `sign` holds
/// sign bits that are never set.
template <int Count>
__device__ __forceinline__ void stay_before(const std::uint32_t (&bits)[Count], std::uint32_t sign) {
    std::uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < Count; ++i) all |= bits[i];
    asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %0, 0;\n @p nanosleep.u32 0;\n}\n" ::"r"(all & sign) : "memory");
}

/// Of a product of 64 rows, the thread's first row; its second one is 8 below.
__device__ __forceinline__ int first_row_of(int thread) {
    return thread / 32 * 16 + thread % 32 / 4;
}
/// Writes a thread's rows of a product (columns [column, column + 2 * Count)) to tokens of a [tokens, heads, d] array,
/// what is below `d` of the columns. Token -1: not written.
template <int Count>
__device__ __forceinline__ void store_rows(const Heads& array, const float* values, float scale,
                                           const std::int64_t (&tokens)[2], int head, int column, int d, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (tokens[half] < 0) continue;
        auto* row = static_cast<__nv_bfloat16*>(array.data) + tokens[half] * array.token_stride +
                    head * array.head_stride + column + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < Count; i += 4) {
            if (column + i * 2 >= d) break;
            *reinterpret_cast<std::uint32_t*>(row + i * 2) =
                pack_bf16(values[i + 2 * half] * scale, values[i + 2 * half + 1] * scale);
        }
    }
}

/// Accumulators to and from shared or global memory in fragment order: 16 bytes of thread t at (f * 128 + t) * 16.
template <int Count>
__device__ __forceinline__ void write_fragments(float* memory, const float* values, int thread) {
#pragma unroll
    for (int f = 0; f < Count / 4; ++f) {
        reinterpret_cast<float4*>(memory)[f * 128 + thread] =
            make_float4(values[4 * f], values[4 * f + 1], values[4 * f + 2], values[4 * f + 3]);
    }
}
template <int Count>
__device__ __forceinline__ void add_fragments(float* values, const float* memory, int thread) {
#pragma unroll
    for (int f = 0; f < Count / 4; ++f) {
        const float4 other = reinterpret_cast<const float4*>(memory)[f * 128 + thread];
        values[4 * f] += other.x;
        values[4 * f + 1] += other.y;
        values[4 * f + 2] += other.z;
        values[4 * f + 3] += other.w;
    }
}

}  // namespace sparseattn::cuda::hopper
