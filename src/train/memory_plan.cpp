#include "sparseattn/train/memory_plan.hpp"

#include <numeric>

#include "sparseattn/train/detail/pack_runner.hpp"

namespace sparseattn {
namespace {

// Lists and transposes of one layout that all heads share: every block at or below the diagonal, seen twice.
std::int64_t dense_layout_bytes(std::int64_t tokens, std::int64_t block) {
    const std::int64_t rows = (tokens + block - 1) / block;
    return 2 * (rows * (rows + 1) / 2 * 4 + (rows + 1) * 8);
}

}  // namespace

std::int64_t TrainMemoryPlan::total() const {
    return std::accumulate(parts.begin(), parts.end(), std::int64_t{0},
                           [](std::int64_t sum, const auto& part) { return sum + part.second; });
}

TrainMemoryPlan train_memory_plan(const TrainOptions& options, int ranks) {
    options.validate();
    const detail::TrainExec exec;
    const Decoder<detail::TrainExec, float> decoder(exec, options.model);
    const bool gated = has_gates(options.mode);
    const std::int64_t tokens = options.sequence_length;
    const std::int64_t weights = decoder.table().total() * static_cast<std::int64_t>(sizeof(float));
    const TrainingMemory memory{options.recompute, options.loss_block};
    const SparseBranch branch = make_sparse_branch(options.sparsity, options.model, options.block);
    const bool selects = gated && branch.selects();
    const SelectedAttention<detail::TrainExec, float> selected(detail::layer_selectors(branch), {}, true);
    const MemoryPlan model = selects ? decoder.memory_plan(tokens, selected, true, memory)
                                     : decoder.memory_plan(tokens, gated, true, memory);
    const std::int64_t gates = static_cast<std::int64_t>(options.model.num_hidden_layers) *
                               (options.model.num_key_value_heads * 6 * 8 + options.model.num_attention_heads * 2 * 4);
    const std::int64_t packs = (options.batch_size + ranks - 1) / ranks;  // kept in host memory for a step
    TrainMemoryPlan plan;
    plan.parts = {
        {"parameters", weights},
        {"gradients", weights},
        {"optimizer moments", learns_weights(options.mode) ? 2 * weights : 0},
        {"gates", gated ? gates : 0},
        {"activations", model.activations},
        {"workspace", model.workspace},
        {"attention", model.attention},
        {"batch and layouts", 3 * 4 * tokens + (gated && !selects ? 2 : 1) * dense_layout_bytes(tokens, options.block)},
        {"data", packs * 3 * 4 * tokens},
    };
    return plan;
}

}  // namespace sparseattn
