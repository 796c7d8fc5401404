#pragma once
/// \file
/// What the kernels of every selection know of a row, and their choice of the largest values.

#include <cooperative_groups.h>

#include <type_traits>

#include "cuda/hopper/launch.hpp"
#include "cuda/hopper/ptx.cuh"

namespace sparseattn::cuda::hopper {

inline constexpr unsigned every_lane = 0xffffffffu;

/// The key blocks that matter to a query block, as select/detail/problem.hpp has them.
struct RowSpan {
    int end, own_begin, own_end;

    __device__ __forceinline__ RowSpan(int block, bool causal, int row, int queries, int keys) {
        const int shift = keys - queries, blocks = (keys + block - 1) / block;
        const int last = min((row + 1) * block, queries) - 1 + shift, first = row * block + shift;
        end = min(causal ? last / block + 1 : blocks, blocks);
        own_begin = first < 0 ? 0 : first / block;
        own_end = min(last < 0 ? 0 : last / block + 1, blocks);
    }
};

/// A number that orders like the float: larger value, larger number.
__device__ __forceinline__ std::uint32_t order_key(float value) {
    const std::uint32_t bits = __float_as_uint(value);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// Taken are the values whose key is above `key` and, of those equal to it, the ones below `tie_end`.
struct Cut {
    std::uint32_t key = 0xffffffffu;
    int tie_end = 0;
    int taken = 0;  // how many

    __device__ __forceinline__ bool takes(float value, int index) const {
        const std::uint32_t own = order_key(value);
        return own > key || (own == key && index < tie_end);
    }
};

/// A sum of weights, and of how many values.
struct Tally {
    double weight;
    int count;

    __device__ __forceinline__ Tally& operator+=(const Tally& other) {
        weight += other.weight;
        count += other.count;
        return *this;
    }
};

// Thread blocks of a cluster that search one set together; racecheck takes large clusters for a deadlock.
inline constexpr int search_blocks = checked ? 2 : 8;
inline constexpr int search_threads = 512;  // of each
inline constexpr int search_pivots = 3;     // keys that one round tries

/// One set of values, spread over a cluster. Each thread block keeps its share in shared memory, as far as there is
/// room, and drops what the search has left behind. Sums travel as remote stores with barriers of their own: a barrier
/// of the whole cluster would write back and invalidate caches each time, some microseconds. Every sum is formed in a
/// fixed order.
class ClusterSearch {
  public:
    static constexpr int warps = search_threads / 32;
    static constexpr int most_held = 24 * 1024;  // values of a thread block in shared memory
    struct alignas(16) Message {
        Tally tally;
    };
    struct Storage {
        Tally of_warp[2][search_pivots][warps];  // in turns: a barrier lies between reading and the next writing
        Message of_block[2][search_pivots][search_blocks];
        Barrier full[2];
    };
    /// Bytes of dynamic shared memory for `count` values.
    static int held_bytes(std::int64_t count) {
        const std::int64_t share = (count + search_blocks - 1) / search_blocks;
        return static_cast<int>(share < most_held ? share : most_held) * static_cast<int>(sizeof(float));
    }

    /// \param storage in shared memory, at one place in all thread blocks
    /// \param held dynamic shared memory, held_bytes(count) at least
    __device__ ClusterSearch(Storage& storage, float* held, const float* values, int count)
        : storage_(storage), held_(held + threadIdx.x), values_(values), count_(count) {
        auto cluster = cooperative_groups::this_cluster();
        rank_ = static_cast<int>(cluster.block_rank());
        const int share = (count + search_blocks - 1) / search_blocks;
        begin_ = min(rank_ * share, count);
        end_ = min(begin_ + share, count);
        held_end_ = min(begin_ + most_held, end_);
        if (threadIdx.x == 0) {
            for (Barrier& barrier : storage_.full) barrier_init(&barrier, 1);
            barrier_init_fence();
        }
        cluster.sync();
    }
    /// A thread block has all that others send it before it ends; racecheck wants to see the cluster meet.
    __device__ ~ClusterSearch() {
        if constexpr (checked) cooperative_groups::this_cluster().sync();
    }
    ClusterSearch(const ClusterSearch&) = delete;
    ClusterSearch& operator=(const ClusterSearch&) = delete;
    [[nodiscard]] __device__ int begin() const { return begin_; }  // of this thread block's share
    [[nodiscard]] __device__ int end() const { return end_; }

    /// The values from `first` on: in descending order, ties lower index first, while what was taken weighs
    /// less than `required`; the one that reaches it is taken. Weights are the values (ByValue, not negative) or 1.
    /// Everything when they never reach it, or when one is NaN. `required` gets the sum of all weights. With Ties
    /// false, only `taken` of the result means something.
    template <bool ByValue, bool Ties, class Required>
    __device__ __forceinline__ Cut find(int first, const Required& required) {
        std::uint64_t low = ByValue ? 0x80000000u : 0, high = std::uint64_t{1} << 32;
        Tally all[1] = {{0, 0}};
        hold<ByValue>(first, all[0]);
        sum(all);
        const double wanted = required(all[0].weight);
        if (wanted <= 0) return {};
        if (!(all[0].weight >= wanted)) return {0, count_, all[0].count};
        Tally at_low = all[0], at_high{};
        while (high - low > 1 && at_low.count - at_high.count > 1) {  // one value left: the one that reaches
            const std::uint64_t step = max((high - low) / (search_pivots + 1), std::uint64_t{1}), base = low;
            Tally part[search_pivots] = {};
            count_between<ByValue>(low, high, step, part);
            sum(part);
            bool reached = false;
#pragma unroll
            for (int p = search_pivots - 1; p >= 0; --p) {  // from above, to the first that reaches
                const std::uint64_t pivot = base + (p + 1) * step;
                if (reached || pivot >= high) continue;
                part[p] += at_above_;
                reached = part[p].weight >= wanted;
                (reached ? low : high) = pivot;
                (reached ? at_low : at_high) = part[p];
            }
            at_above_ = at_high;
        }
        const int ties = at_low.count - at_high.count;
        const double one = ByValue ? value_of(static_cast<std::uint32_t>(low)) : 1;
        const int need = enough(wanted - at_high.weight, one, ties);
        Cut cut{static_cast<std::uint32_t>(low), count_, at_high.count + need};
        if (Ties && need < ties) cut.tie_end = tie_end(first, cut.key, need);
        return cut;
    }

    /// Sum of `count`, a number of each thread block, over those before this one; `total` over all.
    __device__ __forceinline__ int before(int count, int& total) {
        if (threadIdx.x < search_blocks) send(0, {0, count}, static_cast<int>(threadIdx.x));
        receive(1);
        int sum = 0;
        total = 0;
        for (int r = 0; r < search_blocks; ++r) {
            if (r == rank_) sum = total;
            total += storage_.of_block[round_ & 1][0][r].tally.count;
        }
        ++round_;
        return sum;
    }

  private:
    /// The value, not negative, that has this key.
    static __device__ __forceinline__ double value_of(std::uint32_t key) {
        return static_cast<double>(__uint_as_float(key & 0x7fffffffu));
    }
    /// The fewest of `most` equal weights that reach `rest`; at least one.
    static __device__ __forceinline__ int enough(double rest, double weight, int most) {
        int need = static_cast<int>(fmin(fmax(rest / weight, 1.0), static_cast<double>(most)));
        while (need > 1 && (need - 1) * weight >= rest) --need;
        while (need < most && need * weight < rest) ++need;
        return need;
    }
    static __device__ __forceinline__ void reduce(Tally& own) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            own.weight += __shfl_xor_sync(every_lane, own.weight, distance);
        }
        own.count = __reduce_add_sync(every_lane, own.count);
    }
    __device__ __forceinline__ void send(int i, const Tally& tally, int rank) {
        store_remote(&storage_.of_block[round_ & 1][i][rank_], &storage_.full[round_ & 1], rank,
                     static_cast<std::uint64_t>(__double_as_longlong(tally.weight)),
                     static_cast<std::uint64_t>(tally.count));
    }
    /// Until `count` tallies of every thread block are there. Two buffers are enough: who sends for the round after
    /// next has read what all sent for the next, and they had read this one before.
    __device__ __forceinline__ void receive(int count) {
        Barrier* full = &storage_.full[round_ & 1];
        if (threadIdx.x == 0) barrier_expect(full, count * search_blocks * static_cast<int>(sizeof(Message)));
        barrier_wait(full, round_ >> 1 & 1);
    }
    /// Sums over the cluster, in every thread.
    template <int Count>
    __device__ __forceinline__ void sum(Tally (&own)[Count]) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            reduce(own[i]);
            if (lane == 0) storage_.of_warp[round_ & 1][i][warp] = own[i];
        }
        __syncthreads();
        if (warp < Count) {
            Tally all = lane < warps ? storage_.of_warp[round_ & 1][warp][lane] : Tally{0, 0};
            reduce(all);
            if (lane < search_blocks) send(warp, all, lane);
        }
        receive(Count);
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            own[i] = storage_.of_block[round_ & 1][i][0].tally;
#pragma unroll
            for (int r = 1; r < search_blocks; ++r) own[i] += storage_.of_block[round_ & 1][i][r].tally;
        }
        ++round_;
    }
    /// The first of this thread's places from `first` on.
    __device__ __forceinline__ int own_from(int first) const {
        const int own = begin_ + static_cast<int>(threadIdx.x);
        return own + max(first - own + search_threads - 1, 0) / search_threads * search_threads;
    }
    /// Reads this thread's values from `first` on: those with room to shared memory, and all to the sum.
    template <bool ByValue>
    __device__ __forceinline__ void hold(int first, Tally& all) {
        int i = own_from(first);
#pragma unroll 4
        for (; i < held_end_; i += search_threads) {
            const float own = values_[i];
            held_[held_count_++ * search_threads] = own;
            all += {ByValue ? static_cast<double>(own) : 1.0, 1};
        }
        rest_ = i;
        for (; i < end_; i += search_threads) all += {ByValue ? static_cast<double>(values_[i]) : 1.0, 1};
    }
    /// Of the values with keys in [low, high): those from each pivot on. Drops the others.
    template <bool ByValue>
    __device__ __forceinline__ void count_between(std::uint64_t low, std::uint64_t high, std::uint64_t step,
                                                  Tally (&part)[search_pivots]) {
        const auto first = static_cast<std::uint32_t>(low), last = static_cast<std::uint32_t>(high - 1);
        const auto by = static_cast<std::uint32_t>(step);
        const auto visit = [&](float own, std::uint32_t key) {
            const double weight = ByValue ? static_cast<double>(own) : 1.0;
#pragma unroll
            for (int p = 0; p < search_pivots; ++p) {
                const bool inside = key - first >= (p + 1) * by;
                part[p] += {inside ? weight : 0.0, inside ? 1 : 0};
            }
        };
        int kept = 0;
        for (int j = 0; j < held_count_; ++j) {
            const float own = held_[j * search_threads];
            const std::uint32_t key = order_key(own);
            if (key < first || key > last) continue;
            held_[kept++ * search_threads] = own;
            visit(own, key);
        }
        held_count_ = kept;
        for (int i = rest_; i < end_; i += search_threads) {
            const std::uint32_t key = order_key(values_[i]);
            if (key >= first && key <= last) visit(values_[i], key);
        }
    }
    /// One past the place of the `need`-th value of this key.
    __device__ __forceinline__ int tie_end(int first, std::uint32_t key, int need) {
        int below = 0, end = count_;  // [0, below) holds fewer, [0, end) enough
        while (end - below > 1) {
            const int middle = below + (end - below) / 2;
            Tally part[1] = {};
            for (int i = own_from(first); i < min(end_, middle); i += search_threads) {
                part[0].count += order_key(values_[i]) == key ? 1 : 0;
            }
            sum(part);
            (part[0].count >= need ? end : below) = middle;
        }
        return end;
    }

    Storage& storage_;
    float* held_;  // this thread's first; the next ones search_threads further on
    const float* values_;
    Tally at_above_{};  // of the values above the search's end
    int count_, rank_ = 0, begin_ = 0, end_ = 0, held_end_ = 0, held_count_ = 0, rest_ = 0, round_ = 0;
};

/// Launches clusters that search at most `longest` values each.
template <class Args>
cudaError_t launch_search(void (*kernel)(Args), dim3 grid, std::int64_t longest, cudaStream_t stream,
                          const std::remove_const_t<Args>& args) {
    const int bytes = ClusterSearch::held_bytes(longest);
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    return launch_overlapping(kernel, grid, search_threads, bytes, stream, args);
}

}  // namespace sparseattn::cuda::hopper
