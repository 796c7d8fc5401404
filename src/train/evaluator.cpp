#include "sparseattn/train/evaluator.hpp"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/sparsity/head_masks.hpp"
#include "sparseattn/train/detail/checkpointing.hpp"
#include "sparseattn/train/detail/mean_loss.hpp"
#include "sparseattn/train/detail/run_state.hpp"
#include "sparseattn/train/reports.hpp"
#include "sparseattn/train/train_options.hpp"
#include "sparseattn/train/trained_model.hpp"

namespace sparseattn {
namespace {

using detail::TrainExec;
using detail::TrainMem;
using nlohmann::json;

// A checkpoint's model, its weights and what it was trained with.
struct Trained {
    TrainedModel model;
    Array1<float, TrainMem> parameters;
    std::optional<HeadMap> deployed;
    int sequence_length = 0;
    int block = 0;
    std::string branch_text;
    SparseBranch sparse;
};

SparsityOptions branch_options(const CheckpointReader& reader, const EvaluationOptions& options) {
    SparsityOptions branch;  // the standard one for models trained without gates
    const json& state = reader.meta().state;
    if (state.contains("sparsity")) {
        const json& sparsity = state["sparsity"];
        branch.sparse_branch = sparsity.value("sparse_branch", branch.sparse_branch);
        branch.sink = state_entry(reader, sparsity, "sink").get<std::int32_t>();
        branch.local = state_entry(reader, sparsity, "local").get<std::int32_t>();
        branch.granularity =
            state_entry(reader, sparsity, "granularity") == "block" ? Granularity::block : Granularity::token;
    }
    if (!options.sparse_branch.empty()) branch.sparse_branch = options.sparse_branch;
    const bool window = options.sink || options.local || options.granularity;
    require(!window || branch.sparse_branch == "streaming", "sink, local or granularity", "given",
            concat("left out with the sparse branch '", branch.sparse_branch, "'"));
    branch.sink = options.sink.value_or(branch.sink);
    branch.local = options.local.value_or(branch.local);
    branch.granularity = options.granularity.value_or(branch.granularity);
    return branch;
}

int block_edge(const CheckpointReader& reader, const EvaluationOptions& options) {
    const json& state = reader.meta().state;
    const TrainOptions standard;
    return options.block.value_or(state.value("sparsity", json::object()).value("block", standard.block));
}

Trained load(const EvaluationOptions& options) {
    const CheckpointReader reader(options.checkpoint);
    Trained trained;
    trained.model = read_trained_model(reader);
    trained.sequence_length = options.sequence_length.value_or(trained.model.sequence_length);
    try {
        const SparsityOptions branch = branch_options(reader, options);
        trained.block = block_edge(reader, options);
        trained.branch_text = branch.sparse_branch;
        trained.sparse = make_sparse_branch(branch, trained.model.config, trained.block);
    } catch (const json::exception& error) {
        throw CheckpointError(concat(options.checkpoint.string(), ": the state is damaged: ", error.what()));
    }
    const ModelConfig& config = trained.model.config;
    trained.parameters = load_parameters(reader, config);
    std::optional<HeadGates> gates = detail::load_gates(reader, config);
    if (!options.masks.empty()) {
        gates =
            HeadGates::from_masks(read_head_masks(options.masks, config.num_hidden_layers, config.num_key_value_heads));
    }
    if (gates) trained.deployed = gates->deterministic().z;
    return trained;
}

}  // namespace

EvaluationResult evaluate_checkpoint(const EvaluationOptions& options, const TokenDataset& data,
                                     const Communicator& communicator) {
    const auto start = std::chrono::steady_clock::now();
    require(options.packs >= 0, "packs", options.packs, "at least 0");
    require(options.loss_block >= 1, "loss_block", options.loss_block, "at least 1");
    Trained trained;
    communicator.together([&] { trained = load(options); });
    const ModelConfig& config = trained.model.config;
    require(config.vocab_size >= data.vocab_size(), "the data's vocab_size", data.vocab_size(),
            concat("at most ", config.vocab_size, ", the model's"));

    const PackStream stream(options.train_split ? data.train() : data.validation(), trained.sequence_length,
                            trained.model.seed, true);
    const TrainExec exec;
    detail::PackSettings settings;
    settings.block = trained.block;
    settings.implementation = options.implementation;
    settings.sparse = trained.sparse;
    settings.memory = {false, options.loss_block};
    settings.precision = options.precision.value_or(trained.model.precision);
    const auto runner = detail::PackRunner::make(exec, config, settings, ProcessGrid(communicator));
    runner->use(trained.parameters);
    EvaluationResult result;
    result.step = trained.model.step;
    result.precision = settings.precision;
    result.sparse_branch = trained.branch_text;
    result.packs = stream.packs_per_epoch();
    if (options.packs > 0) result.packs = std::min(result.packs, options.packs);
    const auto measure = [&](const HeadMap* gates) {
        const auto mean = detail::mean_loss(*runner, stream, result.packs, gates);
        result.labels = mean.labels;
        return mean.loss;
    };
    if (options.dense) result.dense = measure(nullptr);
    const HeadMap closed(config.num_hidden_layers, config.num_key_value_heads, 0.0);
    if (options.sparse) result.sparse = measure(&closed);
    if (trained.deployed) {
        result.head_map = *trained.deployed;
        result.deployed_sparsity = head_sparsity(result.head_map);
        if (options.deployed) result.deployed = measure(&result.head_map);
    }
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return result;
}

json EvaluationResult::to_json() const {
    json map = json::array();
    for (int layer = 0; layer < head_map.layers; ++layer) {
        json row = json::array();
        for (int head = 0; head < head_map.heads; ++head) row.push_back(head_map(layer, head));
        map.push_back(std::move(row));
    }
    // JSON has no NaN: what was not measured is null (nlohmann writes a NaN so).
    return {{"step", step},
            {"precision", to_string(precision)},
            {"dense", dense},
            {"sparse", sparse},
            {"sparse_branch", sparse_branch},
            {"deployed", deployed},
            {"deployed_sparsity", deployed_sparsity},
            {"head_map", std::move(map)},
            {"labels", labels},
            {"packs", packs},
            {"seconds", seconds}};
}

}  // namespace sparseattn
