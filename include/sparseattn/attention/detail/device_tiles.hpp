#pragma once
// Products of a team on a device: every thread keeps a part of the result in registers, the factors pass through
// scratch memory in steps of a few channels or tokens, two steps in flight.
//
// A team owns 64 tokens of one side and goes through tiles of 64 tokens of the other, the visitors. Two products serve
// all passes: scores, own x visiting over the channels, and sums, own x channels over the visiting tokens.

#include "sparseattn/attention/detail/generic_pairs.hpp"

#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
#define SPARSEATTN_UNROLL _Pragma("unroll")
#define SPARSEATTN_KEEP_LOOP _Pragma("unroll 1")
#else
#define SPARSEATTN_UNROLL
#define SPARSEATTN_KEEP_LOOP
#endif

namespace sparseattn::detail::device {

struct alignas(16) Four {
    float x[4];
};
struct alignas(8) FourBf16 {
    bf16 x[4];
};

/// Part of a tile that a thread computes.
struct Place {
    int row, column;  // of groups of elements
};
/// 32 neighbouring threads share 8 groups of rows and 4 of columns, in an order that lets their 16-byte reads of either
/// factor be served without conflicts.
template <int row_groups>
KOKKOS_INLINE_FUNCTION Place place(int rank) {
    constexpr int stacked = row_groups / 8;
    const int lane = rank % 32, warp = rank / 32;
    return {(lane / 2) % 8 + 8 * (warp % stacked), lane % 2 + (lane / 16) * 2 + 4 * (warp / stacked)};
}

/// Sizes of a kernel for head dimension `d`, with steps of `depth` channels.
template <int d, int depth_>
struct Tile {
    static constexpr int head_dim = d, depth = depth_;
    static constexpr int side = 64;  // tokens
    static constexpr int threads = d <= 128 ? 128 : 256;
    // Scores: 4 own tokens x score_columns visitors, in groups of 4 neighbours.
    static constexpr int score_rows = 4;
    static constexpr int score_groups = threads / (side / score_rows);  // column groups
    static constexpr int score_columns = side / score_groups;
    static constexpr int score_parts = score_columns / 4;
    // Sums: 8 own tokens x sum_columns channels, in groups of sum_width neighbours.
    static constexpr int sum_rows = 8;
    static constexpr int sum_groups = threads / (side / sum_rows);
    static constexpr int sum_columns = d / sum_groups;
    static constexpr int sum_width = sum_columns % 4 == 0 ? 4 : 2;
    static constexpr int sum_parts = sum_columns / sum_width;
    // A step of sums has 16 visitors, or as many as fit into the memory of a step of scores.
    static constexpr int sum_depth = 16 * d <= (depth < 16 ? 1536 : 2048) ? 16 : 2 * side * depth / d;
    static constexpr int step_floats = 2 * side * depth > sum_depth* d ? 2 * side* depth : sum_depth* d;
    static constexpr int steps_floats = 2 * step_floats;
    static constexpr int panel_floats = side * side;
    static_assert(d % depth == 0 && d / depth % 2 == 0 && side / sum_depth % 2 == 0);
    static_assert(2 * side * depth / 4 % threads == 0 && sum_depth * d / 4 % threads == 0);
};

/// Own token, or visitor, of element m (n) of a thread's part.
template <class Tile>
KOKKOS_INLINE_FUNCTION int score_row(const Place& at, int m) {
    return Tile::score_rows * at.row + m;
}
template <class Tile>
KOKKOS_INLINE_FUNCTION int score_column(const Place& at, int n) {
    return 4 * (at.column + Tile::score_groups * (n / 4)) + n % 4;
}
template <class Tile>
KOKKOS_INLINE_FUNCTION int sum_row(const Place& at, int m) {
    return 4 * (at.row + 8 * (m / 4)) + m % 4;
}
template <class Tile>
KOKKOS_INLINE_FUNCTION int sum_column(const Place& at, int n) {
    return Tile::sum_width * (at.column + Tile::sum_groups * (n / Tile::sum_width)) + n % Tile::sum_width;
}

/// The vectors of one head.
template <class T>
struct HeadRows {
    const T* first;
    std::int64_t stride;
    bool aligned;  // four neighbours can be read at once

    /// Token r of a tile; behind the last token the last one, whose products nobody uses.
    KOKKOS_INLINE_FUNCTION const T* row(const TokenTile& tokens, int r) const {
        const int last = tokens.count - 1;
        return first + (tokens.origin + tokens.position(r < last ? r : last)) * stride;
    }
};
template <class View>
KOKKOS_INLINE_FUNCTION auto head_rows(const View& view, int head) {
    using T = typename View::non_const_value_type;
    HeadRows<T> rows{view.data() + head * static_cast<std::int64_t>(view.stride(1)),
                     static_cast<std::int64_t>(view.stride(0)), false};
    rows.aligned = reinterpret_cast<std::uintptr_t>(rows.first) % (4 * sizeof(T)) == 0 && rows.stride % 4 == 0;
    return rows;
}

/// Four elements from each of some places.
template <int units, class T>
KOKKOS_INLINE_FUNCTION void read_fours(const T* const (&from)[units], bool aligned, Four (&to)[units]) {
    if (aligned) {
        SPARSEATTN_UNROLL
        for (int u = 0; u < units; ++u) {
            if constexpr (std::is_same_v<T, float>) {
                to[u] = *reinterpret_cast<const Four*>(from[u]);
            } else {
                const FourBf16 halves = *reinterpret_cast<const FourBf16*>(from[u]);
                for (int i = 0; i < 4; ++i) to[u].x[i] = static_cast<float>(halves.x[i]);
            }
        }
    } else {
        SPARSEATTN_UNROLL
        for (int u = 0; u < units; ++u) {
            for (int i = 0; i < 4; ++i) to[u].x[i] = static_cast<float>(from[u][i]);
        }
    }
}
KOKKOS_INLINE_FUNCTION Four four_of(const float* scratch) {
    return *reinterpret_cast<const Four*>(scratch);
}

/// sum += the product of a step's channels.
template <class Tile>
KOKKOS_INLINE_FUNCTION void add_score_step(const float* data, const Place& at,
                                           float (&sum)[Tile::score_rows][Tile::score_columns]) {
    constexpr int depth = Tile::depth, side = Tile::side, exchange = 128 / depth;
    SPARSEATTN_UNROLL
    for (int c = 0; c < depth; ++c) {
        const int exchanged = exchange / 4 * (c / 4);
        const float* const line = data + c * side;
        const Four a = four_of(line + 4 * (at.row ^ exchanged));
        SPARSEATTN_UNROLL
        for (int part = 0; part < Tile::score_parts; ++part) {
            const Four b = four_of(line + depth * side + 4 * ((at.column ^ exchanged) + Tile::score_groups * part));
            SPARSEATTN_UNROLL
            for (int m = 0; m < 4; ++m) {
                SPARSEATTN_UNROLL
                for (int n = 0; n < 4; ++n) sum[m][4 * part + n] += a.x[m] * b.x[n];
            }
        }
    }
}

/// sum = own visiting^T, over all channels; rows and columns behind the last token hold any number. In a step, a factor
/// lies in scratch memory as [channel][token], where the groups of 4 tokens of channels 4 c .. 4 c + 3 are exchanged by
/// c, so that both the transposing stores and the reads touch every bank once.
template <class Tile, class Team, class T>
KOKKOS_INLINE_FUNCTION void scores(const Team& team, float* steps, const HeadRows<T>& own, const TokenTile& own_tokens,
                                   const HeadRows<T>& visiting, const TokenTile& visitors,
                                   float (&sum)[Tile::score_rows][Tile::score_columns]) {
    constexpr int depth = Tile::depth, side = Tile::side, quads = depth / 4, exchange = 32 / quads;
    constexpr int units = 2 * side * quads / Tile::threads;  // groups of 4 channels that a thread copies in a step
    const int rank = team.team_rank();
    const Place at = place<side / Tile::score_rows>(rank);
    const bool aligned = own.aligned && visiting.aligned;
    const T* source[units];
    Four next[units];
    SPARSEATTN_UNROLL
    for (int u = 0; u < units; ++u) {
        const int unit = rank + Tile::threads * u, r = unit / quads % side;
        source[u] = (unit < side * quads ? own.row(own_tokens, r) : visiting.row(visitors, r)) + 4 * (unit % quads);
    }
    SPARSEATTN_UNROLL
    for (int m = 0; m < Tile::score_rows; ++m) {
        SPARSEATTN_UNROLL
        for (int n = 0; n < Tile::score_columns; ++n) sum[m][n] = 0;
    }
    read_fours(source, aligned, next);
    SPARSEATTN_KEEP_LOOP
    for (int step = 0; step < Tile::head_dim / depth; ++step) {
        float* const data = steps + (step % 2) * Tile::step_floats;
        SPARSEATTN_UNROLL
        for (int u = 0; u < units; ++u) {
            const int unit = rank + Tile::threads * u, quad = unit % quads, r = unit / quads % side;
            float* const to = data + (unit / (side * quads) * depth + 4 * quad) * side + (r ^ (exchange * quad));
            SPARSEATTN_UNROLL
            for (int i = 0; i < 4; ++i) to[i * side] = next[u].x[i];
        }
        team.team_barrier();
        if (step + 1 < Tile::head_dim / depth) {
            SPARSEATTN_UNROLL
            for (int u = 0; u < units; ++u) source[u] += depth;
            read_fours(source, aligned, next);
        }
        add_score_step<Tile>(data, at, sum);
    }
}

/// Parts of a score tile to a panel [visitor][own token].
template <class Tile>
KOKKOS_INLINE_FUNCTION void put(float* panel, const Place& at,
                                const float (&tile)[Tile::score_rows][Tile::score_columns]) {
    SPARSEATTN_UNROLL
    for (int n = 0; n < Tile::score_columns; ++n) {
        Four column;
        SPARSEATTN_UNROLL
        for (int m = 0; m < 4; ++m) column.x[m] = tile[m][n];
        *reinterpret_cast<Four*>(panel + score_column<Tile>(at, n) * Tile::side + score_row<Tile>(at, 0)) = column;
    }
}
/// What `put` of the same thread left there.
template <class Tile>
KOKKOS_INLINE_FUNCTION void get(const float* panel, const Place& at,
                                float (&tile)[Tile::score_rows][Tile::score_columns]) {
    SPARSEATTN_UNROLL
    for (int n = 0; n < Tile::score_columns; ++n) {
        const Four column = four_of(panel + score_column<Tile>(at, n) * Tile::side + score_row<Tile>(at, 0));
        SPARSEATTN_UNROLL
        for (int m = 0; m < 4; ++m) tile[m][n] = column.x[m];
    }
}

/// sum += panel^T visiting, over all visitors of a tile. The panel is complete at the team's next barrier, which is in
/// here: `before` runs behind it.
template <class Tile, class Team, class T, class Before>
KOKKOS_INLINE_FUNCTION void add_sums(const Team& team, float* steps, const float* panel, const HeadRows<T>& visiting,
                                     const TokenTile& visitors, float (&sum)[Tile::sum_rows][Tile::sum_columns],
                                     const Before& before) {
    constexpr int d = Tile::head_dim, depth = Tile::sum_depth, width = Tile::sum_width;
    constexpr int units = depth * d / 4 / Tile::threads;
    const int rank = team.team_rank();
    const Place at = place<Tile::side / Tile::sum_rows>(rank);
    Four next[units];
    const auto fetch = [&](int step) {
        const T* source[units];
        SPARSEATTN_UNROLL
        for (int u = 0; u < units; ++u) {
            const int unit = rank + Tile::threads * u;
            source[u] = visiting.row(visitors, step * depth + unit / (d / 4)) + 4 * (unit % (d / 4));
        }
        read_fours(source, visiting.aligned, next);
    };
    fetch(0);
    SPARSEATTN_KEEP_LOOP
    for (int step = 0; step < Tile::side / depth; ++step) {
        float* const data = steps + (step % 2) * Tile::step_floats;
        SPARSEATTN_UNROLL
        for (int u = 0; u < units; ++u) *reinterpret_cast<Four*>(data + 4 * (rank + Tile::threads * u)) = next[u];
        team.team_barrier();
        if (step + 1 < Tile::side / depth) fetch(step + 1);
        if (step == 0) before();
        SPARSEATTN_UNROLL
        for (int k = 0; k < depth; ++k) {
            const float* const weights = panel + (step * depth + k) * Tile::side + 4 * at.row;
            const Four a[2] = {four_of(weights), four_of(weights + Tile::side / 2)};
            const float* const line = data + k * d + width * at.column;
            SPARSEATTN_UNROLL
            for (int part = 0; part < Tile::sum_parts; ++part) {
                struct alignas(4 * width) Few {
                    float x[width];
                };
                const Few b = *reinterpret_cast<const Few*>(line + part * width * Tile::sum_groups);
                SPARSEATTN_UNROLL
                for (int m = 0; m < Tile::sum_rows; ++m) {
                    SPARSEATTN_UNROLL
                    for (int n = 0; n < width; ++n) sum[m][part * width + n] += a[m / 4].x[m % 4] * b.x[n];
                }
            }
        }
    }
}

/// Clears a thread's part of the sums.
template <int rows, int columns>
KOKKOS_INLINE_FUNCTION void clear(float (&sum)[rows][columns]) {
    SPARSEATTN_UNROLL
    for (int m = 0; m < rows; ++m) {
        SPARSEATTN_UNROLL
        for (int n = 0; n < columns; ++n) sum[m][n] = 0;
    }
}

/// Splits a league rank: heads fastest, so that under a causal mask the longest rows of all heads come first.
template <class T, class Mem>
KOKKOS_INLINE_FUNCTION QueryWork longest_first(const GenericProblem<T, Mem>& problem, int rank) {
    const auto& grid = problem.branch[0].layout.grid;
    const int parts = grid.block / problem.shape.queries, part = rank / problem.heads;
    return query_part(problem, rank % problem.heads, grid.rows - 1 - part / parts, parts - 1 - part % parts);
}

/// The key tiles that a branch lists for the rows of a query block, one after the other: blocks first, then single
/// keys.
template <class Mem>
class KeyTiles {
  public:
    KOKKOS_INLINE_FUNCTION KeyTiles(const LayoutView<Mem>& view, int head, const TokenBlock& rows)
        : view_(view),
          columns_(view.columns(head, rows.sequence, rows.number)),
          singles_(view.keys(head, rows.sequence, rows.number)),
          origin_(view.key_offsets(rows.sequence)),
          length_(view.key_offsets(rows.sequence + 1) - origin_) {}
    /// The next tile of at most `most` keys; its count is 0 behind the last one.
    KOKKOS_INLINE_FUNCTION TokenTile next(int most) {
        while (at_ >= end_ && columns_.begin < columns_.end) {
            at_ = view_.layout.columns(columns_.begin++) * view_.layout.grid.block;
            end_ = at_ + view_.layout.grid.block < length_ ? at_ + view_.layout.grid.block : length_;
        }
        TokenTile tile{origin_, at_, 0, nullptr};
        if (at_ < end_) {
            tile.count = end_ - at_ < most ? end_ - at_ : most;
            at_ += most;
        } else if (singles_.begin < singles_.end) {
            tile.first = 0;
            tile.count = singles_.end - singles_.begin < most ? static_cast<int>(singles_.end - singles_.begin) : most;
            tile.list = &view_.layout.keys(singles_.begin);
            singles_.begin += most;
        }
        return tile;
    }

  private:
    const LayoutView<Mem>& view_;
    EntryRange columns_, singles_;
    std::int32_t origin_, length_, at_ = 0, end_ = 0;
};

}  // namespace sparseattn::detail::device
