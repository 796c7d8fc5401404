#pragma once
/// \file
/// Which rank runs where and works on what.

#include <string>
#include <vector>

#include "sparseattn/parallel/process_grid.hpp"

namespace sparseattn {

/// One rank's place.
struct RankPlace {
    std::string host;
    std::string cores;  // that the process may run on, e.g. "0-7,16"
    int threads = 1;    // of the host's execution space
    int device = -1;    // number on the host; -1: none
    int data_index = 0;
    int sequence_index = 0;

    /// This process's.
    [[nodiscard]] static RankPlace here(const ProcessGrid& grid);
    friend bool operator==(const RankPlace&, const RankPlace&) = default;
};

/// The grid in one line, then one line a rank; for more than `most` ranks one line for each run of ranks on one host.
/// `places` are those of all ranks of a data_parallel x seq_parallel grid.
[[nodiscard]] std::vector<std::string> rank_map(const std::vector<RankPlace>& places, int seq_parallel, int most = 16);

/// The map of this job, on rank 0; empty elsewhere. Collective.
[[nodiscard]] std::vector<std::string> rank_map(const ProcessGrid& grid);

}  // namespace sparseattn
