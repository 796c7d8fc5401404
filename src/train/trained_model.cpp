#include "sparseattn/train/trained_model.hpp"

#include "sparseattn/core/error.hpp"
#include "sparseattn/train/detail/run_state.hpp"

namespace sparseattn {

using nlohmann::json;

const json& state_entry(const CheckpointReader& reader, const json& object, const char* key) {
    const auto found = object.is_object() ? object.find(key) : object.end();
    if (!object.is_object() || found == object.end()) {
        throw CheckpointError(concat(reader.directory().string(), ": the state has no ", key));
    }
    return *found;
}

TrainedModel read_trained_model(const CheckpointReader& reader) {
    const json& state = reader.meta().state;
    TrainedModel model;
    try {
        model.config = ModelConfig::from_json(state_entry(reader, state, "model"));
        model.seed = state_entry(reader, state, "seed").get<std::uint64_t>();
        model.sequence_length = state_entry(reader, state, "sequence_length").get<int>();
        model.precision = parse_precision(state.value("precision", "fp32"));  // not in older checkpoints
    } catch (const json::exception& error) {
        throw CheckpointError(concat(reader.directory().string(), ": the state is damaged: ", error.what()));
    } catch (const InvalidArgument& error) {
        throw CheckpointError(concat(reader.directory().string(), ": the state is damaged: ", error.what()));
    }
    model.step = reader.meta().step;
    return model;
}

Array1<float, Kokkos::DefaultExecutionSpace::memory_space> load_parameters(const CheckpointReader& reader,
                                                                           const ModelConfig& config) {
    const ParameterTable table(config);
    const Array1<float, detail::TrainMem> parameters("SparseAttn::parameters", table.total());
    detail::load_weights(reader, table, parameters);
    return parameters;
}

}  // namespace sparseattn
