#pragma once
/// \file
/// Tiles of token rows in shared memory and the two products that attention needs of them.

#include "cuda/ampere/mma.cuh"
#include "cuda/attention.hpp"
#include "cuda/shared.cuh"

namespace sparseattn::cuda::ampere {

/// [rows][D] bf16. Pieces of 16 bytes change places inside their group of 8 (or 4, where a row is no multiple of 8), so
/// that the eight rows which one fragment load touches lie in different banks. Tiles begin at multiples of 128 bytes.
template <int D>
struct TileMap {
    static constexpr int pieces = D / 8;
    static constexpr int row_bytes = 2 * D;
    static constexpr int group_bytes = pieces % 8 == 0 ? 128 : 64;
    static __host__ __device__ constexpr int turn(int row) { return pieces % 8 == 0 ? row & 7 : (row >> 1) & 3; }
    static __host__ __device__ constexpr int offset(int row, int piece) {
        return row * row_bytes + (piece ^ turn(row)) * 16;
    }
};

/// Where a lane's fragment loads begin: at(k) is in the 16 columns from 16 k. turn() repeats every 16 rows, so further
/// rows are further by whole rows.
template <int D>
struct FragmentAddress {
    std::uint32_t start;

    __device__ __forceinline__ FragmentAddress(std::uint32_t tile, int row, int piece)
        : start(tile + TileMap<D>::offset(row, piece)) {}
    __device__ __forceinline__ std::uint32_t at(int k) const {
        constexpr int group = TileMap<D>::group_bytes;
        return (start ^ (32 * k % group)) + 32 * k / group * group;
    }
};

/// Fragments a of rows [first, first + 16): a[k] of columns 16 k.
template <int D>
__device__ __forceinline__ FragmentAddress<D> left_address(std::uint32_t tile, int first, int lane) {
    return {tile, first + lane % 16, lane / 16};
}

/// All fragments a of `Tiles` times 16 rows.
template <int D, int Tiles>
__device__ __forceinline__ void load_fragments(std::uint32_t (&a)[Tiles][D / 16][4], const FragmentAddress<D>& rows) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
#pragma unroll
        for (int k = 0; k < D / 16; ++k) load_matrices(a[t][k], rows.at(k) + t * 16 * TileMap<D>::row_bytes);
    }
}

template <int Tiles, int Count>
__device__ __forceinline__ void clear(float (&sums)[Tiles][Count]) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
#pragma unroll
        for (int i = 0; i < Count; ++i) sums[t][i] = 0;
    }
}

/// scores (`Tiles` times 16 rows, N columns) = (the rows) (N rows of the tile `right`)^T, summed over D channels.
/// `left(a, t, k)` gives fragment a of rows 16 t and columns 16 k; `Unroll` k are in flight. What is loaded of `right`
/// serves all rows.
template <int D, int N, int Unroll, int Tiles, class Left>
__device__ __forceinline__ void multiply_rows(float (&scores)[Tiles][N / 2], const Left& left, std::uint32_t right,
                                              int lane) {
    const FragmentAddress<D> address(right, lane % 8 + lane / 16 * 8, lane / 8 % 2);
    clear(scores);
#pragma unroll Unroll
    for (int k = 0; k < D / 16; ++k) {
        std::uint32_t a[Tiles][4];
#pragma unroll
        for (int t = 0; t < Tiles; ++t) left(a[t], t, k);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            std::uint32_t b[4];
            load_matrices(b, address.at(k) + n * 16 * TileMap<D>::row_bytes);
#pragma unroll
            for (int t = 0; t < Tiles; ++t) {
                multiply_add(scores[t] + 8 * n, a[t], b[0], b[1]);
                multiply_add(scores[t] + 8 * n + 4, a[t], b[2], b[3]);
            }
        }
    }
}

/// sums (`Tiles` times 16 rows of `Channels` channels) += weights (of N columns, packed as `pack`) (N rows of the tile
/// `right`, from channel `first`, a multiple of 16).
template <int D, int Channels, int N, int Tiles>
__device__ __forceinline__ void accumulate_rows(float (&sums)[Tiles][Channels / 2],
                                                const std::uint32_t (&weights)[Tiles][N / 4], std::uint32_t right,
                                                int first, int lane) {
    const FragmentAddress<D> address(right, lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
#pragma unroll
        for (int n = 0; n < Channels / 16; ++n) {
            std::uint32_t b[4];
            load_matrices_transposed(b, address.at(first / 16 + n) + k * 16 * TileMap<D>::row_bytes);
#pragma unroll
            for (int t = 0; t < Tiles; ++t) {
                const std::uint32_t a[4] = {weights[t][4 * k], weights[t][4 * k + 1], weights[t][4 * k + 2],
                                            weights[t][4 * k + 3]};
                multiply_add(sums[t] + 8 * n, a, b[0], b[1]);
                multiply_add(sums[t] + 8 * n + 4, a, b[2], b[3]);
            }
        }
    }
}

/// Results of multiply_rows as the left side of accumulate_rows.
template <int Pairs>
__device__ __forceinline__ void pack(std::uint32_t (&packed)[Pairs], const float (&values)[2 * Pairs]) {
#pragma unroll
    for (int i = 0; i < Pairs; ++i) packed[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
}

/// How a thread block copies rows of one head to a tile: `width` neighbouring threads share a row; the rows of a thread
/// are a multiple of 8 (16 in tiles whose groups have 4 pieces) apart, so that its pieces lie in the same place of all
/// of them.
template <int D, int Threads>
struct TileCopy {
    static constexpr int pieces = TileMap<D>::pieces;
    static constexpr int width = pieces % 16 == 0 && Threads >= 128 ? 16 : pieces % 8 == 0 ? 8 : 4;
    static constexpr int rows = Threads / width;  // at once
    static_assert(rows % (width == 4 ? 16 : 8) == 0);
    const __nv_bfloat16* data;
    std::int64_t stride;
    std::uint32_t to;
    int first;  // row of the thread

    __device__ __forceinline__ TileCopy(std::uint32_t tile, const Heads& array, int head)
        : data(static_cast<const __nv_bfloat16*>(array.data) + head * array.head_stride +
               static_cast<int>(threadIdx.x) % width * 8),
          stride(array.token_stride),
          to(tile + TileMap<D>::offset(static_cast<int>(threadIdx.x) / width, static_cast<int>(threadIdx.x) % width)),
          first(static_cast<int>(threadIdx.x) / width) {}
    __device__ __forceinline__ void copy_row(int row, const __nv_bfloat16* source, bool valid) const {
#pragma unroll
        for (int j = 0; j < pieces / width; ++j) {
            copy_16(to + row * TileMap<D>::row_bytes + j * width * 16, source + j * width * 8, valid);
        }
    }
};

/// Copies the `count` tokens from `token` (in the packed batch) to the first rows of a tile of `Rows`; the others
/// become zeros.
template <int D, int Rows, int Threads>
__device__ __forceinline__ void load_tile(std::uint32_t tile, const Heads& array, int head, std::int64_t token,
                                          int count) {
    using Copy = TileCopy<D, Threads>;
    static_assert(Rows % Copy::rows == 0);
    const Copy copy(tile, array, head);
    const __nv_bfloat16* source = copy.data + (token + copy.first) * copy.stride;
#pragma unroll 2
    for (int row = 0; row < Rows; row += Copy::rows) {
        const bool valid = copy.first + row < count;
        copy.copy_row(row, valid ? source : copy.data, valid);
        source += Copy::rows * copy.stride;
    }
}
/// The same for tokens that do not follow each other: `token` + places[row].
template <int D, int Rows, int Threads>
__device__ __forceinline__ void gather_tile(std::uint32_t tile, const Heads& array, int head, std::int64_t token,
                                            const std::int32_t* places, int count) {
    using Copy = TileCopy<D, Threads>;
    const Copy copy(tile, array, head);
#pragma unroll 1
    for (int row = 0; row < Rows; row += Copy::rows) {
        const bool valid = copy.first + row < count;
        const std::int64_t from = valid ? token + __ldg(places + copy.first + row) : 0;
        copy.copy_row(row, copy.data + from * copy.stride, valid);
    }
}

/// Writes a warp's sums times `factor` as bf16: its rows are [first, first + 16) of the block's tile, row 0 is token
/// `token`, and rows from `valid` on are not written.
template <int Channels>
__device__ __forceinline__ void store_sums(const float (&sums)[Channels / 2], const float (&factor)[2],
                                           const Heads& array, int head, std::int64_t token, int first, int valid,
                                           int channel, int lane) {
    const int row = first + lane / 4;
    auto* to = static_cast<__nv_bfloat16*>(array.data) + head * array.head_stride + (token + row) * array.token_stride +
               channel + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (row + 8 * half >= valid) continue;
#pragma unroll
        for (int n = 0; n < Channels / 8; ++n) {
            *reinterpret_cast<std::uint32_t*>(to + 8 * half * array.token_stride + 8 * n) =
                pack_bf16(sums[4 * n + 2 * half] * factor[half], sums[4 * n + 2 * half + 1] * factor[half]);
        }
    }
}

}  // namespace sparseattn::cuda::ampere
