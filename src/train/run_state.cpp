#include "sparseattn/train/detail/run_state.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/core/version.hpp"
#include "sparseattn/sparsity/head_masks.hpp"

namespace sparseattn::detail {
namespace {

using nlohmann::json;

const std::string m_prefix = "adamw.m.";
const std::string v_prefix = "adamw.v.";
const std::string log_alpha_name = "gates.log_alpha";
const std::string lambda_name = "gates.lambda";

std::vector<std::int64_t> gate_shape(const ModelConfig& config) {
    return {config.num_hidden_layers, config.num_key_value_heads};
}

HeadGates initial_gates(const TrainOptions& options) {
    const ModelConfig& config = options.model;
    if (!options.masks.empty()) {
        return HeadGates::from_masks(
            read_head_masks(options.masks, config.num_hidden_layers, config.num_key_value_heads));
    }
    if (options.mode == TrainMode::weights_only) {
        std::optional<HeadGates> gates = load_gates(CheckpointReader(options.init_from), config);
        if (!gates) {
            throw CheckpointError(concat(options.init_from.string(), ": has no tensor ", log_alpha_name,
                                         "; mode weights_only needs fixed masks, set masks"));
        }
        return *std::move(gates);
    }
    return HeadGates::initial(config.num_hidden_layers, config.num_key_value_heads, options.sparsity, options.seed);
}

// Elements `range` of the flat buffer, to `values`.
void load_range(const CheckpointReader& reader, const std::string& prefix, const ParameterTable& table,
                const IndexRange& range, float* values) {
    for (const ParameterInfo& tensor : table.parameters()) {
        const std::int64_t begin = std::max(range.begin, tensor.offset);
        const std::int64_t end = std::min(range.end, tensor.offset + tensor.count);
        if (begin >= end) continue;
        reader.require_shape(prefix + tensor.name, tensor.shape);
        reader.read_as(prefix + tensor.name, begin - tensor.offset, end - begin, values + (begin - range.begin));
    }
}

// This rank's shares of the weights.
void load_shares(const CheckpointReader& reader, const ParameterTable& table, const FlatShards& shards,
                 const Array1<float, TrainMem>& parameters) {
    for (int b = 0; b < shards.buckets(); ++b) {
        const IndexRange share = shards.share(b);
        const auto device = Kokkos::subview(parameters, std::make_pair(share.begin, share.end));
        const auto host = Kokkos::create_mirror_view(device);
        load_range(reader, "", table, share, host.data());
        Kokkos::deep_copy(device, host);
    }
}

void load_moments(const CheckpointReader& reader, const std::string& prefix, const ParameterTable& table,
                  const FlatShards& shards, const Array1<float, TrainMem>& moments) {
    const auto host = Kokkos::create_mirror_view(moments);
    for (int b = 0; b < shards.buckets(); ++b) {
        load_range(reader, prefix, table, shards.share(b), host.data() + shards.packed(b).begin);
    }
    Kokkos::deep_copy(moments, host);
}

void load_host(const CheckpointReader& reader, const std::string& name, const std::vector<std::int64_t>& shape,
               bool moments, HostParameters& into) {
    const auto read = [&](const std::string& full_name, std::vector<double>& values) {
        reader.require_shape(full_name, shape);
        reader.read_as(full_name, 0, static_cast<std::int64_t>(values.size()), values.data());
    };
    read(name, into.values);
    if (!moments) return;
    read(m_prefix + name, into.m);
    read(v_prefix + name, into.v);
}

std::int64_t counter(const CheckpointReader& reader, const json& state, const char* key) {
    const auto found = state.find(key);
    if (found == state.end() || !found->is_number_integer() || found->get<std::int64_t>() < 0) {
        throw CheckpointError(
            concat(reader.directory().string(), ": state.", key, " is missing, must be a whole number of at least 0"));
    }
    return found->get<std::int64_t>();
}

void check_fixed(const CheckpointReader& reader, const json& must) {
    json was = reader.meta().state.value("fixed", json::object());
    // Checkpoints from before there was another branch.
    if (!was.contains("sparsity.sparse_branch")) was["sparsity.sparse_branch"] = "streaming";
    for (const auto& [key, value] : must.items()) {
        const auto found = was.find(key);
        if (found == was.end() || *found != value) {
            throw CheckpointError(concat(reader.directory().string(), ": ", key, " is ", value.dump(),
                                         " in this run, must be ", found == was.end() ? "absent" : found->dump(),
                                         " as in the checkpoint"));
        }
    }
}

}  // namespace

RunState initial_state(const TrainExec& exec, const TrainOptions& options, const ParameterTable& table,
                       const FlatShards& shards) {
    RunState state;
    const auto total = static_cast<std::size_t>(table.total());
    state.parameters =
        Array1<float, TrainMem>(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, "SparseAttn::parameters"), total);
    if (learns_weights(options.mode)) {
        state.m = Array1<float, TrainMem>("SparseAttn::adamw.m", shards.packed_size());
        state.v = Array1<float, TrainMem>("SparseAttn::adamw.v", shards.packed_size());
    }
    if (options.init_from.empty()) {
        Decoder<TrainExec, float>::initialise(exec, options.model, options.seed, state.parameters);
        fence(exec, "SparseAttn::initialise");
    } else {
        fence(exec, "SparseAttn::parameters");
        load_shares(CheckpointReader(options.init_from), table, shards, state.parameters);
    }
    if (has_gates(options.mode)) state.gates.emplace(options, initial_gates(options));
    return state;
}

json fixed_settings(const TrainOptions& options, const TokenDataset& data) {
    json fixed;
    const json model = options.model.to_json();
    for (const auto& [key, value] : model.items()) fixed["model." + key] = value;
    fixed["run.seed"] = options.seed;
    fixed["data.sequence_length"] = options.sequence_length;
    fixed["data.shuffle"] = options.shuffle;
    fixed["data.train_tokens"] = data.train().tokens();
    fixed["data.vocab_size"] = data.vocab_size();
    fixed["train.mode"] = to_string(options.mode);
    fixed["train.batch_size"] = options.batch_size;
    if (has_gates(options.mode)) fixed["sparsity.sparse_branch"] = options.sparsity.sparse_branch;
    return fixed;
}

CheckpointMeta describe(const RunState& state, const TrainOptions& options, const TokenDataset& data, int ranks) {
    CheckpointMeta meta;
    meta.step = state.step;
    meta.deck = options.deck;
    meta.state = {
        {"fixed", fixed_settings(options, data)},
        {"model", options.model.to_json()},
        {"mode", to_string(options.mode)},
        {"precision", to_string(options.precision)},
        {"step", state.step},
        {"max_steps", options.max_steps},
        {"tokens", state.tokens},
        {"data_position", state.step * options.batch_size},  // next pack of the stream
        {"sequence_length", options.sequence_length},
        {"seed", options.seed},
        {"weight_updates", state.weight_updates},
        {"skipped_steps", state.skipped_steps},
        {"skipped_in_row", state.skipped_in_row},
        {"ranks", ranks},
        {"environment", build_report()},
    };
    if (!state.gates) return meta;
    const SparsityOptions& sparsity = options.sparsity;
    meta.state["gate_updates"] = state.gates->updates;
    meta.state["sparsity"] = {
        {"sparse_branch", sparsity.sparse_branch},
        {"sink", sparsity.sink},
        {"local", sparsity.local},
        {"granularity", sparsity.granularity == Granularity::block ? "block" : "token"},
        {"block", options.block},
        {"end_head_sparsity", sparsity.end_head_sparsity},
        {"target", learns_masks(options.mode) ? json(state.gates->target(state.step)) : json()},
        {"deployed", head_sparsity(state.gates->deployed())},
        {"lambda1", state.gates->lambdas.values[0]},
        {"lambda2", state.gates->lambdas.values[1]},
    };
    return meta;
}

StateParts::StateParts(const RunState& state, const ParameterTable& table, const FlatShards& shards,
                       const TrainOptions& options, int rank) {
    const auto keep = [&](const auto& view) {
        copies_.push_back(Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace(), view));
        return copies_.back().data();
    };
    for (int b = 0; b < shards.buckets(); ++b) {
        const IndexRange share = shards.share(b);
        if (share.count() == 0) continue;
        add_range("", table, share, keep(Kokkos::subview(state.parameters, std::make_pair(share.begin, share.end))));
    }
    if (learns_weights(options.mode)) {
        const float* m = keep(state.m);
        const float* v = keep(state.v);
        for (int b = 0; b < shards.buckets(); ++b) {
            add_range(m_prefix, table, shards.share(b), m + shards.packed(b).begin);
            add_range(v_prefix, table, shards.share(b), v + shards.packed(b).begin);
        }
    }
    if (!state.gates || rank != 0) return;
    add_host(log_alpha_name, gate_shape(options.model), state.gates->log_alpha, learns_masks(options.mode));
    if (learns_masks(options.mode)) add_host(lambda_name, {2}, state.gates->lambdas, true);
}

void StateParts::add_range(const std::string& prefix, const ParameterTable& table, const IndexRange& range,
                           const float* values) {
    for (const ParameterInfo& tensor : table.parameters()) {
        const std::int64_t begin = std::max(range.begin, tensor.offset);
        const std::int64_t end = std::min(range.end, tensor.offset + tensor.count);
        if (begin >= end) continue;
        parts_.push_back({{prefix + tensor.name, DType::float32, tensor.shape},
                          begin - tensor.offset,
                          end - begin,
                          values + (begin - range.begin)});
    }
}

void StateParts::add_host(const std::string& name, const std::vector<std::int64_t>& shape, const HostParameters& values,
                          bool moments) {
    const auto add = [&](const std::string& full_name, const std::vector<double>& data) {
        parts_.push_back({{full_name, DType::float64, shape}, 0, static_cast<std::int64_t>(data.size()), data.data()});
    };
    add(name, values.values);
    if (!moments) return;
    add(m_prefix + name, values.m);
    add(v_prefix + name, values.v);
}

void load_weights(const CheckpointReader& reader, const ParameterTable& table,
                  const Array1<float, TrainMem>& parameters) {
    load_shares(reader, table, FlatShards({0, table.total()}, 0, 1), parameters);
}

std::optional<HeadGates> load_gates(const CheckpointReader& reader, const ModelConfig& config) {
    if (!reader.contains(log_alpha_name)) return std::nullopt;
    HeadMap map(config.num_hidden_layers, config.num_key_value_heads);
    reader.require_shape(log_alpha_name, gate_shape(config));
    reader.read_as(log_alpha_name, 0, static_cast<std::int64_t>(map.values.size()), map.values.data());
    return HeadGates(std::move(map));
}

void load_state(const CheckpointReader& reader, const TrainOptions& options, const TokenDataset& data,
                const ParameterTable& table, const FlatShards& shards, RunState& state) {
    check_fixed(reader, fixed_settings(options, data));
    const json& counters = reader.meta().state;
    state.step = reader.meta().step;
    state.tokens = counter(reader, counters, "tokens");
    state.weight_updates = counter(reader, counters, "weight_updates");
    state.skipped_steps = counter(reader, counters, "skipped_steps");
    state.skipped_in_row = static_cast<int>(counter(reader, counters, "skipped_in_row"));
    load_shares(reader, table, shards, state.parameters);
    if (learns_weights(options.mode)) {
        load_moments(reader, m_prefix, table, shards, state.m);
        load_moments(reader, v_prefix, table, shards, state.v);
    }
    if (!state.gates) return;
    const bool learns = learns_masks(options.mode);
    state.gates->updates = counter(reader, counters, "gate_updates");
    load_host(reader, log_alpha_name, gate_shape(options.model), learns, state.gates->log_alpha);
    if (learns) load_host(reader, lambda_name, {2}, true, state.gates->lambdas);
}

}  // namespace sparseattn::detail
