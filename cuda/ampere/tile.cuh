#pragma once
/// \file
/// Tiles of token rows in shared memory and the two products that attention needs of them.

#include "cuda/ampere/mma.cuh"
#include "cuda/attention.hpp"

namespace sparseattn::cuda::ampere {

/// [rows][D] bf16. Pieces of 16 bytes change places inside their row so that the eight rows which one fragment load
/// touches lie in different banks.
template <int D>
struct TileMap {
    static constexpr int pieces = D / 8;
    static constexpr int row_bytes = 2 * D;
    static __host__ __device__ constexpr int turn(int row) { return pieces % 8 == 0 ? row & 7 : (row >> 1) & 3; }
    static __host__ __device__ constexpr int offset(int row, int piece) {
        return row * row_bytes + (piece ^ turn(row)) * 16;
    }
};

/// Where a lane's fragment loads begin: of the 16 x 16 part of a tile whose rows are 16 n + `row`. The part of columns
/// 16 k is `at(k)`; turn() repeats every 16 rows, so further rows are further by whole rows.
template <int D>
struct FragmentAddress {
    std::uint32_t row;    // of the row's first byte
    std::uint32_t piece;  // 16 * (piece ^ turn) at column 0

    __device__ __forceinline__ FragmentAddress(std::uint32_t tile, int row_number, int piece_number)
        : row(tile + row_number * TileMap<D>::row_bytes), piece((piece_number ^ TileMap<D>::turn(row_number)) * 16) {}
    __device__ __forceinline__ std::uint32_t at(int k) const { return row + (piece ^ (32 * k)); }
};

/// Fragments a of rows [first, first + 16): a[k] of columns 16 k.
template <int D>
__device__ __forceinline__ FragmentAddress<D> left_address(std::uint32_t tile, int first, int lane) {
    return {tile, first + lane % 16, lane / 16};
}

/// scores[N / 8][4] = (16 rows) (N rows of the tile `right`)^T, summed over D channels. `left(k)` gives fragment a of
/// columns 16 k; `Unroll` of them are in flight.
template <int D, int N, int Unroll, class Left>
__device__ __forceinline__ void multiply_rows(float (&scores)[N / 2], const Left& left, std::uint32_t right, int lane) {
    const FragmentAddress<D> address(right, lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) scores[i] = 0;
#pragma unroll Unroll
    for (int k = 0; k < D / 16; ++k) {
        std::uint32_t a[4];
        left(a, k);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            std::uint32_t b[4];
            load_matrices(b, address.at(k) + n * 16 * TileMap<D>::row_bytes);
            multiply_add(scores + 8 * n, a, b[0], b[1]);
            multiply_add(scores + 8 * n + 4, a, b[2], b[3]);
        }
    }
}

/// sums (16 rows of `Channels` channels) += weights (16 x N, packed as `pack`) (N rows of the tile `right`, from
/// channel `first`, a multiple of 16).
template <int D, int Channels, int N>
__device__ __forceinline__ void accumulate_rows(float (&sums)[Channels / 2], const std::uint32_t (&weights)[N / 4],
                                                std::uint32_t right, int first, int lane) {
    const FragmentAddress<D> address(right, lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
        const std::uint32_t a[4] = {weights[4 * k], weights[4 * k + 1], weights[4 * k + 2], weights[4 * k + 3]};
#pragma unroll
        for (int n = 0; n < Channels / 16; ++n) {
            std::uint32_t b[4];
            load_matrices_transposed(b, address.at(first / 16 + n) + k * 16 * TileMap<D>::row_bytes);
            multiply_add(sums + 8 * n, a, b[0], b[1]);
            multiply_add(sums + 8 * n + 4, a, b[2], b[3]);
        }
    }
}

/// Results of multiply_rows as the left side of accumulate_rows.
template <int Pairs>
__device__ __forceinline__ void pack(std::uint32_t (&packed)[Pairs], const float (&values)[2 * Pairs]) {
#pragma unroll
    for (int i = 0; i < Pairs; ++i) packed[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
}

/// Copies rows of one head to a tile: row r is token `token(r)` of the packed batch, zeros when that is negative.
/// `width` neighbouring threads share a row; the rows of a thread are a multiple of 8 (16 in tiles of fewer pieces)
/// apart, so that its pieces lie in the same place of all of them.
template <int D, int Rows, int Threads, class Token>
__device__ __forceinline__ void load_tile(std::uint32_t tile, const Heads& array, int head, const Token& token) {
    constexpr int pieces = TileMap<D>::pieces;
    constexpr int width = pieces % 16 == 0 ? 16 : pieces % 8 == 0 ? 8 : 4, step = Threads / width;
    static_assert(Rows % step == 0 && step % (width == 4 ? 16 : 8) == 0);
    const int piece = static_cast<int>(threadIdx.x) % width, first = static_cast<int>(threadIdx.x) / width;
    const auto* data =
        static_cast<const __nv_bfloat16*>(array.data) + head * array.head_stride + static_cast<std::int64_t>(piece * 8);
    tile += TileMap<D>::offset(first, piece);
#pragma unroll 2
    for (int row = 0; row < Rows; row += step) {
        const std::int64_t from = token(first + row);
        const auto* source = data + (from < 0 ? 0 : from) * array.token_stride;
#pragma unroll
        for (int j = 0; j < pieces / width; ++j) {
            copy_16(tile + row * TileMap<D>::row_bytes + j * width * 16, source + j * width * 8, from >= 0);
        }
    }
}

/// The sequence that a row or key block lies in.
struct SequenceSpan {
    int query_begin, queries, key_begin, keys;

    __device__ __forceinline__ SequenceSpan(const Batch& batch, int sequence) {
        query_begin = batch.query_offsets[sequence];
        queries = batch.query_offsets[sequence + 1] - query_begin;
        key_begin = batch.key_offsets[sequence];
        keys = batch.key_offsets[sequence + 1] - key_begin;
    }
};

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
