#pragma once
// Everything that changes while a run goes on, and its form in a checkpoint.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "sparseattn/io/checkpoint.hpp"
#include "sparseattn/io/token_dataset.hpp"
#include "sparseattn/parallel/flat_shards.hpp"
#include "sparseattn/train/detail/gate_learner.hpp"
#include "sparseattn/train/detail/pack_runner.hpp"

namespace sparseattn::detail {

struct RunState {
    Array1<float, TrainMem> parameters;  // [table.total()]
    Array1<float, TrainMem> m, v;        // moments of this rank's shares [packed_size()]; empty if no weights learn
    std::optional<GateLearner> gates;    // none in mode dense
    std::int64_t step = 0;
    std::int64_t tokens = 0;
    std::int64_t weight_updates = 0;
    std::int64_t skipped_steps = 0;
    int skipped_in_row = 0;
};

// The state at step 0: weights from the seed or init_from (of that, this rank's shares only), gates from the seed, a
// mask file or init_from. `options` must outlive the state. Local.
[[nodiscard]] RunState initial_state(const TrainExec& exec, const TrainOptions& options, const ParameterTable& table,
                                     const FlatShards& shards);

// Settings under which a run may go on: a flat object of deck keys. What a checkpoint was written with must equal it.
[[nodiscard]] nlohmann::json fixed_settings(const TrainOptions& options, const TokenDataset& data);

// What the checkpoint of a state says beside its tensors.
[[nodiscard]] CheckpointMeta describe(const RunState& state, const TrainOptions& options, const TokenDataset& data,
                                      int ranks);

// The tensors that one rank writes: its shares of the flat buffers, and the gates on rank 0. No tensor is in two
// buckets of `shards`. The object keeps the memory that the parts point to.
class StateParts {
  public:
    StateParts(const RunState& state, const ParameterTable& table, const FlatShards& shards,
               const TrainOptions& options, int rank);
    [[nodiscard]] const std::vector<TensorPart>& parts() const { return parts_; }

  private:
    using HostFloats = Kokkos::View<const float*, Kokkos::LayoutRight, Kokkos::HostSpace>;
    void add_range(const std::string& prefix, const ParameterTable& table, const IndexRange& range,
                   const float* values);
    void add_host(const std::string& name, const std::vector<std::int64_t>& shape, const HostParameters& values,
                  bool moments);

    std::vector<TensorPart> parts_;
    std::vector<HostFloats> copies_;
};

// Reads a state back, of the weights this rank's shares. CheckpointError naming key, was and must when fixed settings
// differ.
void load_state(const CheckpointReader& reader, const TrainOptions& options, const TokenDataset& data,
                const ParameterTable& table, const FlatShards& shards, RunState& state);

// Reads all weights.
void load_weights(const CheckpointReader& reader, const ParameterTable& table,
                  const Array1<float, TrainMem>& parameters);

// The gates of a checkpoint; none when it was trained without.
[[nodiscard]] std::optional<HeadGates> load_gates(const CheckpointReader& reader, const ModelConfig& config);

}  // namespace sparseattn::detail
