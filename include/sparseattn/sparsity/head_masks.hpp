#pragma once
/// \file
/// Head masks on disk: TSV, one row a layer, one column a key/value head, values in [0, 1] (1: full attention, 0:
/// streaming). The window sizes they were learned with stand beside, in a JSON file of the same stem.

#include <cstdint>
#include <filesystem>

#include "sparseattn/sparsity/head_map.hpp"

namespace sparseattn {

/// Sizes of the streaming window, in tokens.
struct WindowSizes {
    std::int32_t sink = 0;
    std::int32_t local = 0;
    friend bool operator==(const WindowSizes&, const WindowSizes&) = default;
};

/// Writes masks (digits that read back to the same double) and, to the same path with extension .json, the window.
/// Errors: FileError naming the file; InvalidArgument for a value outside [0, 1].
void write_head_masks(const std::filesystem::path& path, const HeadMap& masks, const WindowSizes& window);

/// Reads masks of a model with `layers` layers of `heads` key/value heads.
/// Errors: FileError naming file, line and column, what was there and what it must be.
[[nodiscard]] HeadMap read_head_masks(const std::filesystem::path& path, int layers, int heads);

/// The file that holds the window of masks `path`; empty for an empty path.
[[nodiscard]] std::filesystem::path window_sizes_path(std::filesystem::path path);

/// Reads the window beside masks `path`. Errors: FileError.
[[nodiscard]] WindowSizes read_window_sizes(const std::filesystem::path& path);

/// 0/1 masks that keep the int(N (1 - sparsity)) largest of the N gates over all layers; of equal gates the one of the
/// lower (layer, head) is kept. `sparsity` in [0, 1].
[[nodiscard]] HeadMap round_to_sparsity(const HeadMap& gates, double sparsity);

}  // namespace sparseattn
