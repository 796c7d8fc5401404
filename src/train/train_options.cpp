#include "sparseattn/train/train_options.hpp"

#include <array>
#include <cmath>
#include <utility>

#include "sparseattn/core/error.hpp"
#include "sparseattn/sparsity/sparse_branch.hpp"

namespace sparseattn {
namespace {
constexpr std::array<std::pair<TrainMode, const char*>, 4> modes = {{
    {TrainMode::masks_and_weights, "masks_and_weights"},
    {TrainMode::masks_only, "masks_only"},
    {TrainMode::weights_only, "weights_only"},
    {TrainMode::dense, "dense"},
}};
}  // namespace

std::string to_string(TrainMode mode) {
    for (const auto& [value, name] : modes) {
        if (value == mode) return name;
    }
    throw InvalidArgument("mode is not one of the four training modes");
}

TrainMode parse_train_mode(const std::string& name) {
    for (const auto& [value, known] : modes) {
        if (name == known) return value;
    }
    throw InvalidArgument(concat("mode is '", name, "', must be masks_and_weights, masks_only, weights_only or dense"));
}

void TrainOptions::validate() const {
    const auto share = [](double x) { return x >= 0.0 && x <= 1.0; };  // false for NaN
    const auto nonnegative = [](double x) { return x >= 0.0 && std::isfinite(x); };
    model.validate();
    sparsity.validate();
    require(max_steps >= 1, "max_steps", max_steps, "at least 1");
    require(batch_size >= 1, "batch_size", batch_size, "at least 1");
    require(nonnegative(learning_rate), "learning_rate", learning_rate, "finite and at least 0");
    require(share(warmup_ratio), "warmup_ratio", warmup_ratio, "between 0 and 1");
    require(share(min_lr_ratio), "min_lr_ratio", min_lr_ratio, "between 0 and 1");
    require(nonnegative(weight_decay), "weight_decay", weight_decay, "finite and at least 0");
    require(beta1 >= 0.0 && beta1 < 1.0, "beta1", beta1, "at least 0 and below 1");
    require(beta2 >= 0.0 && beta2 < 1.0, "beta2", beta2, "at least 0 and below 1");
    require(epsilon > 0.0 && std::isfinite(epsilon), "epsilon", epsilon, "finite and above 0");
    require(nonnegative(clip_norm), "clip_norm", clip_norm, "finite and at least 0");
    require(loss_block >= 1, "loss_block", loss_block, "at least 1");
    require(max_skipped_steps >= 1, "max_skipped_steps", max_skipped_steps, "at least 1");
    require(sequence_length >= 2, "sequence_length", sequence_length, "at least 2");
    require(block == 64 || block == 128, "block", block, "64 or 128");
    if (has_gates(mode)) (void)make_sparse_branch(sparsity, model, block);
    require(checkpoint_interval >= 0, "checkpoint_interval", checkpoint_interval, "at least 0");
    require(keep_checkpoints >= 2, "keep_checkpoints", keep_checkpoints, "at least 2");
    require(evaluation_interval >= 0, "evaluation_interval", evaluation_interval, "at least 0");
    require(evaluation_packs >= 0, "evaluation_packs", evaluation_packs, "at least 0");
    require(seq_parallel_size >= 1, "seq_parallel_size", seq_parallel_size, "at least 1");
    require(seq_parallel_size <= sequence_length, "seq_parallel_size", seq_parallel_size,
            concat("at most sequence_length, ", sequence_length));
    require(bucket_bytes >= 1, "bucket_bytes", bucket_bytes, "at least 1");
    if (mode == TrainMode::weights_only && masks.empty() && init_from.empty()) {
        throw InvalidArgument(
            "mode weights_only needs fixed masks: set masks (a TSV file) or init_from (a checkpoint)");
    }
}

void TrainOptions::validate(int ranks) const {
    validate();
    require(ranks % seq_parallel_size == 0, "seq_parallel_size", seq_parallel_size,
            concat("a divisor of the number of ranks, ", ranks));
    const int groups = ranks / seq_parallel_size;
    require(batch_size >= groups, "batch_size", batch_size,
            concat("at least ", groups, ", the number of sequence groups (", ranks, " ranks, ", seq_parallel_size,
                   " in each): each works on whole packs"));
}

}  // namespace sparseattn
