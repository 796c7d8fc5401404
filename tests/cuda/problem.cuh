#pragma once
/// \file
/// Problems for the programs that check and time the CUDA kernels: random packed batches, and block lists built on the
/// host.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/attention.hpp"
#include "cuda/token_rule.cuh"

namespace sparseattn::cuda::testing {

#define SPARSEATTN_TEST_CUDA(call)                                                                          \
    do {                                                                                                    \
        const cudaError_t error_ = (call);                                                                  \
        if (error_ != cudaSuccess) {                                                                        \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
            std::exit(70);                                                                                  \
        }                                                                                                   \
    } while (false)

/// Device memory that frees itself.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(std::size_t count) : count_(count) {
        if (count > 0) SPARSEATTN_TEST_CUDA(cudaMalloc(&data_, count * sizeof(T)));
    }
    explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) {
        if (count_ > 0) {
            SPARSEATTN_TEST_CUDA(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
        }
    }
    Buffer(Buffer&& other) noexcept : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        return *this;
    }
    ~Buffer() {
        if (data_ != nullptr) SPARSEATTN_TEST_CUDA(cudaFree(data_));
    }
    T* data() const { return data_; }
    std::size_t size() const { return count_; }
    std::vector<T> host() const {
        std::vector<T> result(count_);
        if (count_ > 0) {
            SPARSEATTN_TEST_CUDA(cudaMemcpy(result.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
        }
        return result;
    }
    void fill(int byte) const {
        if (count_ > 0) SPARSEATTN_TEST_CUDA(cudaMemset(data_, byte, count_ * sizeof(T)));
    }

  private:
    T* data_ = nullptr;
    std::size_t count_ = 0;
};

/// Values uniform in [-1, 1) times `spread`, a function of (seed, index) only.
static __global__ void fill_random(__nv_bfloat16* data, std::int64_t count, std::uint32_t seed, float spread) {
    for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
         i += std::int64_t{gridDim.x} * blockDim.x) {
        std::uint64_t x =
            (static_cast<std::uint64_t>(seed) << 40) + static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        x ^= x >> 31;
        data[i] = __float2bfloat16(spread * (static_cast<float>(x >> 40) * 0x1p-23f - 1.0f));
    }
}

/// A packed batch and block lists on the host.
struct HostProblem {
    int head_dim = 128, block = 128, query_heads = 1, key_heads = 1;
    bool causal = true;
    Kernel kernel = Kernel::none;  // to take; none: the door's choice
    std::vector<std::int32_t> query_offsets{0}, key_offsets{0};
    int lists = 1;
    int shared_heads = 1;  // Layout::shared_heads
    std::vector<std::int32_t> head_list;
    std::vector<Window> windows;
    std::vector<std::int32_t> row_begin{0}, row_sequence, key_block_begin{0}, key_block_sequence;
    std::vector<std::int64_t> offsets{0}, single_offsets;
    std::vector<std::int32_t> columns, singles;
    int single_step = 1;  // make_lists: of so many keys in a row one may be a single key

    int queries() const { return query_offsets.back(); }
    int keys() const { return key_offsets.back(); }
    int rows() const { return row_begin.back(); }
    int key_blocks() const { return key_block_begin.back(); }
    TokenRule rule(int sequence, int head) const {
        return {query_offsets[sequence + 1] - query_offsets[sequence],
                key_offsets[sequence + 1] - key_offsets[sequence], causal, windows[head]};
    }
};

/// Adds a sequence and its blocks.
inline void add_sequence(HostProblem& p, int queries, int keys) {
    const int sequence = static_cast<int>(p.query_offsets.size()) - 1;
    p.query_offsets.push_back(p.query_offsets.back() + queries);
    p.key_offsets.push_back(p.key_offsets.back() + keys);
    const int rows = (queries + p.block - 1) / p.block, blocks = (keys + p.block - 1) / p.block;
    p.row_begin.push_back(p.row_begin.back() + rows);
    p.key_block_begin.push_back(p.key_block_begin.back() + blocks);
    p.row_sequence.insert(p.row_sequence.end(), rows, sequence);
    p.key_block_sequence.insert(p.key_block_sequence.end(), blocks, sequence);
}

/// Fills the lists: each block that the causal rule allows is kept with probability `density`; with `diagonal` the last
/// allowed one always; each key outside the kept blocks becomes a single key with probability `single_density` (of
/// `single_step` keys in a row only one: with a step, keys are vertical lines).
/// `empty_rows`: that share of the rows keeps nothing.
inline void make_lists(HostProblem& p, double density, bool diagonal, double single_density, double empty_rows,
                       std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto chance = [&](double share) { return share >= 1 || random() * 0x1p-32 < share; };
    p.offsets.assign(1, 0);
    p.columns.clear();
    p.singles.clear();
    p.single_offsets.clear();
    if (single_density > 0) p.single_offsets.push_back(0);
    for (int list = 0; list < p.lists; ++list) {
        for (int row = 0; row < p.rows(); ++row) {
            const int sequence = p.row_sequence[row];
            const int queries = p.query_offsets[sequence + 1] - p.query_offsets[sequence];
            const int keys = p.key_offsets[sequence + 1] - p.key_offsets[sequence];
            const int first = (row - p.row_begin[sequence]) * p.block;
            const int last = std::min(first + p.block, queries) - 1;
            const int end = p.causal ? std::max(0, last + keys - queries + 1) : keys;  // keys that the row may see
            const int blocks = (end + p.block - 1) / p.block;
            const bool empty = chance(empty_rows);
            for (int block = 0; block < blocks && !empty; ++block) {
                if (chance(density) || (diagonal && block == blocks - 1)) {
                    p.columns.push_back(block);
                } else if (single_density > 0) {
                    for (int key = block * p.block; key < std::min((block + 1) * p.block, end); ++key) {
                        if (key % p.single_step == p.single_step / 2 && chance(single_density))
                            p.singles.push_back(key);
                    }
                }
            }
            p.offsets.push_back(static_cast<std::int64_t>(p.columns.size()));
            if (single_density > 0) p.single_offsets.push_back(static_cast<std::int64_t>(p.singles.size()));
        }
    }
}

/// Tokens of NaN behind the last one of query, key and value: no result may come from them.
inline constexpr int not_numbers = 130;

/// A problem's arrays on the device. Query, key and value share one buffer [tokens, Hq + 2 Hkv, d] when `fused` (needs
/// equal token counts); out has `gap` unused elements after each token, to see stray writes.
struct DeviceProblem {
    Buffer<__nv_bfloat16> query, key, value, out;
    Buffer<float> lse;
    Buffer<std::int32_t> query_offsets, key_offsets, row_begin, row_sequence, key_block_begin, key_block_sequence;
    Buffer<std::int32_t> head_list, columns, singles;
    Buffer<std::int64_t> offsets, single_offsets;
    Buffer<Window> windows;
    Buffer<unsigned char> workspace;
    ForwardParams params;

    DeviceProblem(const HostProblem& p, bool fused, int gap, std::uint32_t seed, float spread = 1.7f)
        : lse(static_cast<std::size_t>(p.queries()) * p.query_heads + 16),
          query_offsets(p.query_offsets),
          key_offsets(p.key_offsets),
          row_begin(p.row_begin),
          row_sequence(p.row_sequence),
          key_block_begin(p.key_block_begin),
          key_block_sequence(p.key_block_sequence),
          head_list(p.head_list),
          columns(p.columns),
          singles(p.singles),
          offsets(p.offsets),
          single_offsets(p.single_offsets),
          windows(p.windows) {
        const std::int64_t d = p.head_dim;
        const std::int64_t fused_stride = (p.query_heads + 2 * p.key_heads) * d;
        const auto heads = [&](Buffer<__nv_bfloat16>& buffer, std::int64_t tokens, std::int64_t stride,
                               std::uint32_t mix) {
            buffer = Buffer<__nv_bfloat16>(static_cast<std::size_t>((tokens + not_numbers) * stride));
            buffer.fill(0xff);
            if (tokens > 0) {
                fill_random<<<1024, 256>>>(buffer.data(), tokens * stride, seed * 3 + mix, spread);
                SPARSEATTN_TEST_CUDA(cudaGetLastError());
            }
            return Heads{buffer.data(), stride, d};
        };
        params.kernel = p.kernel;
        params.query_heads = p.query_heads;
        params.key_heads = p.key_heads;
        params.head_dim = p.head_dim;
        params.scale = 1.0f / std::sqrt(static_cast<float>(d));
        if (fused) {
            params.query = heads(query, p.queries(), fused_stride, 0);
            params.key = {query.data() + p.query_heads * d, fused_stride, d};
            params.value = {query.data() + (p.query_heads + p.key_heads) * d, fused_stride, d};
        } else {
            params.query = heads(query, p.queries(), p.query_heads * d, 0);
            params.key = heads(key, p.keys(), p.key_heads * d, 1);
            params.value = heads(value, p.keys(), p.key_heads * d, 2);
        }
        const std::int64_t out_stride = p.query_heads * d + gap;
        out = Buffer<__nv_bfloat16>(static_cast<std::size_t>((p.queries() + 1) * out_stride));
        params.out = {out.data(), out_stride, d};
        params.lse = {lse.data(), p.query_heads, 1};
        params.batch = {static_cast<int>(p.query_offsets.size()) - 1, p.queries(), p.keys(), query_offsets.data(),
                        key_offsets.data()};
        Layout& layout = params.layout;
        layout.block = p.block;
        layout.causal = p.causal;
        layout.rows = p.rows();
        layout.key_blocks = p.key_blocks();
        layout.lists = p.lists;
        layout.shared_heads = p.shared_heads;
        layout.row_begin = row_begin.data();
        layout.row_sequence = row_sequence.data();
        layout.key_block_begin = key_block_begin.data();
        layout.key_block_sequence = key_block_sequence.data();
        layout.head_list = head_list.data();
        layout.windows = windows.data();
        layout.offsets = offsets.data();
        layout.columns = columns.data();
        layout.key_offsets = p.single_offsets.empty() ? nullptr : single_offsets.data();
        layout.keys = singles.data();
        workspace = Buffer<unsigned char>(forward_workspace(params));
        params.workspace = workspace.data();
        params.workspace_bytes = workspace.size();
        SPARSEATTN_TEST_CUDA(cudaDeviceSynchronize());
    }
};

/// Makes the tokens of a sequence NaN, all heads of them.
inline void spoil(const Heads& array, const std::vector<std::int32_t>& offsets, int sequence) {
    const std::int64_t begin = offsets[sequence] * array.token_stride, end = offsets[sequence + 1] * array.token_stride;
    SPARSEATTN_TEST_CUDA(cudaMemset(static_cast<__nv_bfloat16*>(array.data) + begin, 0xff, 2 * (end - begin)));
}

/// The kernels to check: those that the device serves, or of them the one named behind `--kernel` (taken out of the
/// arguments).
inline std::vector<Kernel> kernels_to_check(int& argc, char** argv) {
    int devices = 0, major = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return {};
    SPARSEATTN_TEST_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    std::string wanted;
    for (int i = 1; i + 1 < argc; ++i) {
        if (std::string(argv[i]) != "--kernel") continue;
        wanted = argv[i + 1];
        std::copy(argv + i + 2, argv + argc, argv + i);
        argc -= 2;
    }
    std::vector<Kernel> result;
    if (major == 9 && wanted != "ampere") result.push_back(Kernel::hopper);
    if (major >= 8 && wanted != "hopper") result.push_back(Kernel::ampere);
    return result;
}
inline const char* name(Kernel kernel) {
    return kernel == Kernel::hopper ? "hopper" : kernel == Kernel::ampere ? "ampere" : "door's choice";
}

}  // namespace sparseattn::cuda::testing
