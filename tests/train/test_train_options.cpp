#include <gmock/gmock.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "sparseattn/core/error.hpp"
#include "sparseattn/train/train_options.hpp"

namespace sparseattn {
namespace {

using testing::StartsWith;

TrainOptions good() {
    TrainOptions options;
    options.model = {.vocab_size = 259,
                     .hidden_size = 32,
                     .num_hidden_layers = 1,
                     .num_attention_heads = 1,
                     .num_key_value_heads = 1,
                     .head_dim = 32,
                     .intermediate_size = 32};
    return options;
}

TEST(TrainOptions, NamesTheFieldOutOfRange) {
    EXPECT_NO_THROW(good().validate());
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const std::vector<std::pair<std::function<void(TrainOptions&)>, std::string>> cases = {
        {[](auto& o) { o.max_steps = 0; }, "max_steps is 0"},
        {[](auto& o) { o.batch_size = 0; }, "batch_size is 0"},
        {[](auto& o) { o.learning_rate = -1; }, "learning_rate is -1"},
        {[=](auto& o) { o.learning_rate = nan; }, "learning_rate is nan"},
        {[](auto& o) { o.warmup_ratio = 2; }, "warmup_ratio is 2"},
        {[](auto& o) { o.min_lr_ratio = -0.5; }, "min_lr_ratio is -0.5"},
        {[](auto& o) { o.weight_decay = -1; }, "weight_decay is -1"},
        {[](auto& o) { o.beta1 = 1; }, "beta1 is 1"},
        {[](auto& o) { o.beta2 = 1; }, "beta2 is 1"},
        {[](auto& o) { o.epsilon = 0; }, "epsilon is 0"},
        {[](auto& o) { o.clip_norm = -1; }, "clip_norm is -1"},
        {[](auto& o) { o.loss_block = 0; }, "loss_block is 0"},
        {[](auto& o) { o.max_skipped_steps = 0; }, "max_skipped_steps is 0"},
        {[](auto& o) { o.sequence_length = 1; }, "sequence_length is 1"},
        {[](auto& o) { o.block = 96; }, "block is 96, must be 64 or 128"},
        {[](auto& o) { o.keep_checkpoints = 1; }, "keep_checkpoints is 1, must be at least 2"},
        {[](auto& o) { o.checkpoint_interval = -1; }, "checkpoint_interval is -1"},
        {[](auto& o) { o.evaluation_interval = -1; }, "evaluation_interval is -1"},
        {[](auto& o) { o.evaluation_packs = -1; }, "evaluation_packs is -1"},
        {[](auto& o) { o.sparsity.local = 0; }, "local is 0"},
        {[](auto& o) { o.sparsity.sparse_branch = "xatention"; }, "sparse_branch is 'xatention': selector is"},
        {[](auto& o) { o.sparsity.sparse_branch = "full"; }, "sparse_branch is 'full': method is full"},
        {[](auto& o) { o.sparsity.sparse_branch = "xattention:block=128"; },
         "sparse_branch is 'xattention:block=128': block is 128, must be 64, attention.block"},
        {[](auto& o) { o.sparsity.sparse_branch = "xattention:stride=128"; },
         "sparse_branch is 'xattention:stride=128': xattention.stride is 128, must be a divisor of block, 64"},
        {[](auto& o) { o.sparsity.sparse_branch = "streaming:causal=false"; },
         "sparse_branch is 'streaming:causal=false': causal is false"},
        {[](auto& o) { o.mode = TrainMode::weights_only; }, "mode weights_only needs fixed masks"},
    };
    for (const auto& [change, start] : cases) {
        TrainOptions options = good();
        change(options);
        try {
            options.validate();
            ADD_FAILURE() << "accepted: " << start;
        } catch (const InvalidArgument& error) {
            EXPECT_THAT(error.what(), StartsWith(start));
        }
    }
}

TEST(TrainMode, NamesRoundTrip) {
    for (const TrainMode mode :
         {TrainMode::masks_and_weights, TrainMode::masks_only, TrainMode::weights_only, TrainMode::dense}) {
        EXPECT_EQ(parse_train_mode(to_string(mode)), mode);
    }
    EXPECT_THROW((void)parse_train_mode("weights"), InvalidArgument);
}

}  // namespace
}  // namespace sparseattn
