#include "sparseattn/train/memory_plan.hpp"

#include <numeric>

#include "sparseattn/train/detail/sharded_update.hpp"

namespace sparseattn {
namespace {

constexpr auto bytes_of_float = static_cast<std::int64_t>(sizeof(float));

// Lists and transposes of one layout that all heads share: every block at or below the diagonal, seen twice.
std::int64_t dense_layout_bytes(std::int64_t tokens, std::int64_t block) {
    const std::int64_t rows = (tokens + block - 1) / block;
    return 2 * (rows * (rows + 1) / 2 * 4 + (rows + 1) * 8);
}

// Of the decoder and its attention on the first rank of a sequence group, with gates that are neither 0 nor 1.
template <class T>
MemoryPlan model_plan(const detail::TrainExec& exec, const TrainOptions& options) {
    const Decoder<detail::TrainExec, T> decoder(exec, options.model);
    const int ranks = options.seq_parallel_size;
    const std::int64_t tokens = partition(options.sequence_length, 0, ranks).count();
    const bool gated = has_gates(options.mode);
    const TrainingMemory memory{options.recompute, options.loss_block};
    const detail::PackSettings settings = detail::pack_settings(options);
    if (ranks == 1 && gated && settings.sparse.selects()) {
        const SelectedAttention<detail::TrainExec, T> selected(detail::layer_selectors(settings.sparse), {}, true);
        return decoder.memory_plan(tokens, selected, true, memory);
    }
    if (ranks == 1) return decoder.memory_plan(tokens, gated, true, memory);
    const std::size_t heads =
        static_cast<std::size_t>(options.model.num_hidden_layers) * options.model.num_attention_heads;
    const auto attention = SequenceParallelAttention<detail::TrainExec, T>::bytes_of(
        exec, options.model, {tokens, true, options.recompute}, ranks,
        detail::spread_task(settings, std::vector<float>(gated ? heads : 0, 0.5F)), detail::spread_options(settings));
    return decoder.memory_plan(tokens, attention, true, memory);
}

}  // namespace

std::int64_t TrainMemoryPlan::total() const {
    return std::accumulate(parts.begin(), parts.end(), std::int64_t{0},
                           [](std::int64_t sum, const auto& part) { return sum + part.second; });
}

TrainMemoryPlan train_memory_plan(const TrainOptions& options, int ranks) {
    options.validate(ranks);
    const detail::TrainExec exec;
    const Decoder<detail::TrainExec, float> decoder(exec, options.model);
    const bool gated = has_gates(options.mode);
    const std::int64_t length = options.sequence_length;
    const std::int64_t tokens = partition(length, 0, options.seq_parallel_size).count();
    const std::int64_t weights = decoder.table().total() * bytes_of_float;
    const bool rounded = options.precision == Precision::bf16;
    const MemoryPlan model = rounded ? model_plan<bf16>(exec, options) : model_plan<float>(exec, options);
    const bool two_layouts = gated && !detail::pack_settings(options).sparse.selects();
    const std::int64_t gates = static_cast<std::int64_t>(options.model.num_hidden_layers) *
                               (options.model.num_key_value_heads * 6 * 8 + options.model.num_attention_heads * 2 * 4);
    const int groups = ranks / options.seq_parallel_size;
    const std::int64_t packs = (options.batch_size + groups - 1) / groups;  // kept in host memory for a step
    const FlatShards shards =
        detail::weight_shards(decoder.table(), decoder.gradient_cuts(), options.bucket_bytes, 0, ranks);
    const detail::ShardedUpdate::Bytes update = detail::ShardedUpdate::bytes(shards, options.messages);
    TrainMemoryPlan plan;
    plan.parts = {
        {"parameters", weights},
        {"parameters in bf16", rounded ? weights / 2 : 0},
        {"gradients", update.gradients},
        {"optimizer moments", learns_weights(options.mode) ? 2 * shards.packed_size() * bytes_of_float : 0},
        {"messages", update.messages},
        {"gates", gated ? gates : 0},
        {"activations", model.activations},
        {"workspace", model.workspace},
        {"attention", model.attention},
        {"batch and layouts", 3 * 4 * tokens + (two_layouts ? 2 : 1) * dense_layout_bytes(length, options.block)},
        {"data", packs * 3 * 4 * length},
    };
    return plan;
}

}  // namespace sparseattn
