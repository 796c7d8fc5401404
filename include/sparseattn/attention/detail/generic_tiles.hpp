#pragma once
// Tiles in team scratch memory and what the generic kernels do with them on a CPU: load, multiply, exponentiate
// (device_tiles.hpp: on a device).
//
// Every score tile is held transposed, [keys][queries]: queries run along the contiguous index, so that row maxima,
// sums and masks are the same operation on neighbouring lanes of a vector, and no tile is ever reduced across lanes.

#include "sparseattn/core/types.hpp"

namespace sparseattn::detail {

template <class Exec>
inline constexpr bool on_cpu = std::is_same_v<typename Exec::memory_space, Kokkos::HostSpace>;

/// A work item computes `rows` x `lanes` elements of a product in registers; a team is one thread.
struct Machine {
    static constexpr int rows = 8, lanes = 16;
};

/// Queries and keys of a tile. Multiples of Machine::rows and lanes that divide a block.
struct TileShape {
    int queries, keys;
};

/// Row-major matrix in scratch memory.
struct Panel {
    float* data;
    int stride;  // between rows
};

/// Some tokens of one sequence: contiguous positions, or those of a list.
struct TokenTile {
    std::int32_t origin;  // packed index of the sequence's first token
    std::int32_t first;   // position of the first token (contiguous)
    std::int32_t count;
    const std::int32_t* list;  // positions, or null

    KOKKOS_INLINE_FUNCTION std::int32_t position(int r) const { return list != nullptr ? list[r] : first + r; }
};

/// e^x to 1e-7. On a CPU plain arithmetic, so that compilers vectorise it, and exactly 0 below -87; a device has its
/// own.
KOKKOS_INLINE_FUNCTION float tile_exp(float x) {
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__) || defined(__SYCL_DEVICE_ONLY__)
    return math::exp(x);
#else
    constexpr float shift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    const float high = x > 88.0F ? 88.0F : x;
    const float clamped = high < -87.0F ? -87.0F : high;
    const float shifted = clamped * 1.44269504F + shift;
    const float n = shifted - shift;
    const float r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;  // ln 2 in two parts
    float sum = 1.0F / 5040;
    sum = sum * r + 1.0F / 720;
    sum = sum * r + 1.0F / 120;
    sum = sum * r + 1.0F / 24;
    sum = sum * r + 1.0F / 6;
    sum = sum * r + 0.5F;
    sum = sum * r + 1.0F;
    sum = sum * r + 1.0F;
    std::uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127U) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0F ? 0.0F : sum * power;
#endif
}

/// Loads `factor` times the vectors of one head into rows of `panel`; rows past the tile's tokens are 0.
template <class Team, class View>
KOKKOS_INLINE_FUNCTION void load_rows(const Team& team, const Panel& panel, int rows, const View& view, int head,
                                      const TokenTile& tokens, float factor) {
    const int width = static_cast<int>(view.extent(2));
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, rows), [&](int r) {
        float* row = panel.data + r * panel.stride;
        if (r < tokens.count) {
            const auto* source = &view(tokens.origin + tokens.position(r), head, 0);
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, width),
                                 [&](int c) { row[c] = factor * static_cast<float>(source[c]); });
        } else {
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, width), [&](int c) { row[c] = 0; });
        }
    });
}

/// The same into columns: panel is [head_dim][tokens].
template <class Team, class View>
KOKKOS_INLINE_FUNCTION void load_columns(const Team& team, const Panel& panel, int columns, const View& view, int head,
                                         const TokenTile& tokens, float factor) {
    const int width = static_cast<int>(view.extent(2));
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, columns), [&](int r) {
        float* column = panel.data + r;
        if (r < tokens.count) {
            const auto* source = &view(tokens.origin + tokens.position(r), head, 0);
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, width),
                                 [&](int c) { column[c * panel.stride] = factor * static_cast<float>(source[c]); });
        } else {
            Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, width), [&](int c) { column[c * panel.stride] = 0; });
        }
    });
}

/// Sets `rows` x `columns` elements to 0.
template <class Team>
KOKKOS_INLINE_FUNCTION void clear(const Team& team, const Panel& panel, int rows, int columns) {
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, rows), [&](int r) {
        Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, columns),
                             [&](int c) { panel.data[r * panel.stride + c] = 0; });
    });
}

/// Left operand of a product: element (row, step).
struct Left {
    const float* data;
    int row_stride, step_stride;
};
KOKKOS_INLINE_FUNCTION Left as_is(const Panel& panel) {
    return {panel.data, panel.stride, 1};
}
KOKKOS_INLINE_FUNCTION Left transposed(const Panel& panel) {
    return {panel.data, 1, panel.stride};
}

struct ProductSize {
    int rows, columns, depth;
};

/// result = left right, or result = diag(factor) result + left right when `add` (no factor: 1).
template <class Team>
KOKKOS_INLINE_FUNCTION void multiply(const Team& team, const ProductSize& size, const Left& left, const Panel& right,
                                     const Panel& result, bool add, const float* factor = nullptr) {
    constexpr int rows = Machine::rows, lanes = Machine::lanes;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, size.rows / rows), [&](int row_group) {
        Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, size.columns / lanes), [&](int column_group) {
            const float* a = left.data + row_group * rows * left.row_stride;
            const float* b = right.data + column_group * lanes;
            float sum[rows][lanes] = {};
            for (int k = 0; k < size.depth; ++k) {
                const float* line = b + k * right.stride;
                for (int m = 0; m < rows; ++m) {
                    const float scalar = a[m * left.row_stride + k * left.step_stride];
                    for (int n = 0; n < lanes; ++n) sum[m][n] += scalar * line[n];
                }
            }
            for (int m = 0; m < rows; ++m) {
                const int row = row_group * rows + m;
                float* c = result.data + row * result.stride + column_group * lanes;
                const float keep = !add ? 0.0F : factor != nullptr ? factor[row] : 1.0F;
                for (int n = 0; n < lanes; ++n) c[n] = add ? keep * c[n] + sum[m][n] : sum[m][n];
            }
        });
    });
}

/// Policy of `teams` teams with `floats` of scratch each.
template <class Exec>
using TilePolicy = Kokkos::TeamPolicy<Exec, Kokkos::Schedule<Kokkos::Dynamic>, Kokkos::LaunchBounds<1>>;
template <class Exec>
TilePolicy<Exec> tile_policy(const Exec& exec, std::int64_t teams, std::size_t floats) {
    TilePolicy<Exec> policy(exec, static_cast<int>(teams), 1, 1);
    policy.set_scratch_size(0, Kokkos::PerTeam(static_cast<int>(floats * sizeof(float) + 64)));
    return policy;
}

/// Start of a team's scratch memory.
template <class Exec, class Team>
KOKKOS_INLINE_FUNCTION float* scratch(const Team& team, std::size_t floats) {
    using View = Kokkos::View<float*, typename Exec::scratch_memory_space, Unmanaged>;
    return View(team.team_scratch(0), floats).data();
}

}  // namespace sparseattn::detail
