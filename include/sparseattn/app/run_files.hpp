#pragma once
/// \file
/// What programs find in a run's folder and make of it.

#include <filesystem>
#include <string>
#include <vector>

#include "sparseattn/app/report.hpp"
#include "sparseattn/sparsity/head_map.hpp"
#include "sparseattn/train/reports.hpp"

namespace sparseattn {

/// The checkpoint meant by `where`: a checkpoint, a folder of checkpoints (its newest), or a run's folder (the newest
/// of its checkpoints/). `warnings` gets newer ones that were passed over. CheckpointError when there is none.
[[nodiscard]] std::filesystem::path locate_checkpoint(const std::filesystem::path& where,
                                                      std::vector<std::string>* warnings = nullptr);

/// The deployed gates of a checkpoint, [layers, key/value heads]; empty when it was trained without gates.
[[nodiscard]] HeadMap deployed_head_map(const std::filesystem::path& checkpoint);

/// Layers as rows of gates, for a terminal.
[[nodiscard]] std::string head_map_text(const HeadMap& map);

/// Curves of metrics.csv and evaluation.csv in `run_dir`: loss, head sparsity, learning rate, speed.
[[nodiscard]] std::vector<ReportChart> run_charts(const std::filesystem::path& run_dir);

/// The end of a run as a table: last losses, sparsity against its target, speed, where the checkpoint is.
[[nodiscard]] TextTable summary_table(const TrainResult& result);

}  // namespace sparseattn
