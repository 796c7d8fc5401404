#pragma once
/// \file
/// The model in a checkpoint, ready to run.

#include <cstdint>
#include <filesystem>

#include "sparseattn/core/types.hpp"
#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/model/config.hpp"
#include "sparseattn/model/precision.hpp"

namespace sparseattn {

/// What a checkpoint says of its model, and of how it was trained.
struct TrainedModel {
    ModelConfig config;
    std::int64_t step = 0;
    std::uint64_t seed = 1;                 // of the run
    int sequence_length = 0;                // tokens it was trained on at once
    Precision precision = Precision::fp32;  // of the run's passes; the weights are fp32
};

/// Reads it. CheckpointError naming the entry that is missing or damaged.
[[nodiscard]] TrainedModel read_trained_model(const CheckpointReader& reader);

/// The weights, flat, in the order of ParameterTable. CheckpointError naming file and tensor when one is missing, of
/// another shape or damaged.
[[nodiscard]] Array1<float, Kokkos::DefaultExecutionSpace::memory_space> load_parameters(const CheckpointReader& reader,
                                                                                         const ModelConfig& config);

/// Entry `key` of the checkpoint's state or of a part of it; CheckpointError when it is not there.
[[nodiscard]] const nlohmann::json& state_entry(const CheckpointReader& reader, const nlohmann::json& object,
                                                const char* key);

}  // namespace sparseattn
