#pragma once
/// \file
/// Loss of a checkpoint.

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "sparseattn/attention/attention.hpp"
#include "sparseattn/io/token_dataset.hpp"
#include "sparseattn/layout/builders.hpp"
#include "sparseattn/model/precision.hpp"
#include "sparseattn/parallel/communicator.hpp"
#include "sparseattn/sparsity/head_map.hpp"

namespace sparseattn {

struct EvaluationOptions {
    std::filesystem::path checkpoint;  // directory of one checkpoint
    std::filesystem::path masks;       // head masks instead of the checkpoint's gates; empty: the checkpoint's
    bool train_split = false;          // measure on the training split instead of the validation split
    std::int64_t packs = 0;            // 0: all
    bool dense = true;                 // every head dense
    bool sparse = true;                // every gate closed
    bool deployed = true;              // deterministic gates; not measured when there are none
    // Instead of the checkpoint's settings:
    std::optional<int> sequence_length;
    std::optional<std::int32_t> sink;
    std::optional<std::int32_t> local;
    std::optional<Granularity> granularity;
    std::string sparse_branch;  // as SparsityOptions has it; empty: the checkpoint's
    std::optional<int> block;
    std::optional<Precision> precision;
    Implementation implementation = Implementation::automatic;
    int loss_block = 1024;
};

/// Losses in nats per label, NaN where not measured.
struct EvaluationResult {
    std::int64_t step = 0;  // of the checkpoint
    Precision precision = Precision::fp32;
    double dense = std::numeric_limits<double>::quiet_NaN();
    double sparse = std::numeric_limits<double>::quiet_NaN();
    double deployed = std::numeric_limits<double>::quiet_NaN();
    double deployed_sparsity = std::numeric_limits<double>::quiet_NaN();
    HeadMap head_map;           // deployed gates; empty without gates
    std::string sparse_branch;  // of closed gates
    std::int64_t labels = 0;
    std::int64_t packs = 0;
    double seconds = 0;

    [[nodiscard]] nlohmann::json to_json() const;
};

/// `sink`, `local` and `granularity` are of the branch "streaming" (InvalidArgument with another).
/// Measures on all ranks of `communicator` together; collective, the same result on every rank.
EvaluationResult evaluate_checkpoint(const EvaluationOptions& options, const TokenDataset& data,
                                     const Communicator& communicator);

}  // namespace sparseattn
