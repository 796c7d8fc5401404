#pragma once
/// \file
/// Pictures of layouts: which keys each query keeps, as shades of grey.

#include <string>
#include <vector>

#include "sparseattn/layout/block_layout.hpp"

namespace sparseattn {

/// What one head keeps, queries down and keys across, on square cells of `cell` tokens over the whole packed batch.
struct DensityMap {
    int head = 0;
    int cell = 0;
    int rows = 0;     // ceil(queries / cell)
    int columns = 0;  // ceil(keys / cell)
    int queries = 0;
    int keys = 0;
    /// [rows, columns], row-major: pairs that take part / pairs of dense attention; -1 where dense attention has none.
    std::vector<float> share;
    double density = 0;  // the same for the whole head
    /// First token of each sequence but the first, for border lines.
    std::vector<std::int32_t> query_borders;
    std::vector<std::int32_t> key_borders;
};

/// The maps of `heads`, counted exactly on the host. The cell is the smallest block / 16 * 2^m tokens with which no
/// edge has more than `most_cells` (1 to 1024) cells. InvalidArgument for heads that the layout does not have.
template <class Exec>
std::vector<DensityMap> density_maps(const Exec& exec, const Sequences<typename Exec::memory_space>& sequences,
                                     const BlockLayout<typename Exec::memory_space>& layout,
                                     const std::vector<int>& heads, int most_cells = 512);

/// An SVG document of the maps in a grid, each under "head h, kept p %". The darker a cell the larger its share, in
/// sixteen steps; a cell that keeps anything is visible, one that keeps nothing is white, and grey is what dense
/// attention does not see either. Neighbours of one shade are one rectangle. Equal maps give equal text.
[[nodiscard]] std::string svg_picture(const std::string& title, const std::vector<DensityMap>& maps);

}  // namespace sparseattn
