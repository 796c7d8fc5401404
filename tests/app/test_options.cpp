#include <gmock/gmock.h>

#include "sparseattn/app/options.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

std::string message_of(const std::vector<std::string>& overrides, int ranks = 1) {
    Deck deck = Deck::parse("[model]\nvocab_size = 259\n", "d.toml");
    try {
        deck.override_with(overrides);
        (void)train_options(deck, ranks);
    } catch (const DeckError& error) {
        return error.what();
    }
    return "no error";
}

TEST(Options, EveryKeyArrives) {
    Deck deck;
    deck.override_with({"run.dir=out", "run.seed=7", "run.checkpoint_interval=11", "run.keep_checkpoints=3",
                        "run.evaluation_interval=12", "run.evaluation_packs=13", "run.evaluate_dense=false",
                        "run.evaluate_sparse=true"});
    deck.override_with({"model.vocab_size=300", "model.hidden_size=96", "model.num_hidden_layers=5",
                        "model.num_attention_heads=6", "model.num_key_value_heads=3", "model.head_dim=32",
                        "model.intermediate_size=200", "model.rope_theta=5e5", "model.rms_norm_eps=1e-6",
                        "model.initializer_range=0.03", "model.tie_word_embeddings=false", "model.qk_norm=true"});
    deck.override_with({"data.sequence_length=512", "data.shuffle=false", "train.mode=weights_only",
                        "train.max_steps=77", "train.batch_size=9", "train.learning_rate=2e-3",
                        "train.warmup_ratio=0.2", "train.min_lr_ratio=0.3", "train.weight_decay=0.4", "train.beta1=0.5",
                        "train.beta2=0.6", "train.epsilon=1e-7", "train.clip_norm=2", "train.recompute=true",
                        "train.loss_block=99", "train.max_skipped_steps=8", "train.init_from=first"});
    deck.override_with({"sparsity.start_head_sparsity=0.1", "sparsity.end_head_sparsity=0.5",
                        "sparsity.sparsity_warmup_ratio=0.6", "sparsity.schedule=logarithmic",
                        "sparsity.mask_learning_rate=0.7", "sparsity.reg_learning_rate=0.8",
                        "sparsity.disable_linear_regularization_term=true", "sparsity.estimate=deterministic",
                        "sparsity.sink=5", "sparsity.sparse_branch=minference", "sparsity.local=6",
                        "sparsity.granularity=block", "sparsity.masks=m.tsv", "sparsity.gate_init_mean=3",
                        "sparsity.gate_init_std=0.2", "attention.block=128", "attention.implementation=generic"});
    deck.override_with({"parallel.seq_parallel_size=2", "parallel.bucket_bytes=1000"});
    const TrainOptions o = train_options(deck, 2);
    EXPECT_EQ(o.run_dir, "out");
    EXPECT_EQ(o.seed, 7U);
    EXPECT_EQ(o.checkpoint_interval, 11);
    EXPECT_EQ(o.keep_checkpoints, 3);
    EXPECT_EQ(o.evaluation_interval, 12);
    EXPECT_EQ(o.evaluation_packs, 13);
    EXPECT_FALSE(o.evaluate_dense);
    EXPECT_TRUE(o.evaluate_sparse);
    EXPECT_EQ(o.model, (ModelConfig{300, 96, 5, 6, 3, 32, 200, 5e5, 1e-6, 0.03, false, true}));
    EXPECT_EQ(o.sequence_length, 512);
    EXPECT_FALSE(o.shuffle);
    EXPECT_EQ(o.mode, TrainMode::weights_only);
    EXPECT_EQ(o.max_steps, 77);
    EXPECT_EQ(o.batch_size, 9);
    EXPECT_EQ(o.seq_parallel_size, 2);
    EXPECT_EQ(o.bucket_bytes, 1000);
    EXPECT_EQ(o.learning_rate, 2e-3);
    EXPECT_EQ(o.warmup_ratio, 0.2);
    EXPECT_EQ(o.min_lr_ratio, 0.3);
    EXPECT_EQ(o.weight_decay, 0.4);
    EXPECT_EQ(o.beta1, 0.5);
    EXPECT_EQ(o.beta2, 0.6);
    EXPECT_EQ(o.epsilon, 1e-7);
    EXPECT_EQ(o.clip_norm, 2);
    EXPECT_TRUE(o.recompute);
    EXPECT_EQ(o.loss_block, 99);
    EXPECT_EQ(o.max_skipped_steps, 8);
    EXPECT_EQ(o.init_from, "first");
    EXPECT_EQ(o.sparsity.start_head_sparsity, 0.1);
    EXPECT_EQ(o.sparsity.end_head_sparsity, 0.5);
    EXPECT_EQ(o.sparsity.sparsity_warmup_ratio, 0.6);
    EXPECT_EQ(o.sparsity.schedule, SparsitySchedule::logarithmic);
    EXPECT_EQ(o.sparsity.mask_learning_rate, 0.7);
    EXPECT_EQ(o.sparsity.reg_learning_rate, 0.8);
    EXPECT_TRUE(o.sparsity.disable_linear_regularization_term);
    EXPECT_EQ(o.sparsity.estimate, SparsityEstimate::deterministic);
    EXPECT_EQ(o.sparsity.sink, 5);
    EXPECT_EQ(o.sparsity.sparse_branch, "minference");
    EXPECT_EQ(o.sparsity.local, 6);
    EXPECT_EQ(o.sparsity.granularity, Granularity::block);
    EXPECT_EQ(o.masks, "m.tsv");
    EXPECT_EQ(o.sparsity.gate_init_mean, 3);
    EXPECT_EQ(o.sparsity.gate_init_std, 0.2);
    EXPECT_EQ(o.block, 128);
    EXPECT_EQ(o.implementation, Implementation::generic);
    EXPECT_EQ(o.deck, deck.merged());
}

TEST(Options, KeysThatDoNotFitTogetherNameTheirPlace) {
    EXPECT_EQ(message_of({}), "no error");
    EXPECT_THAT(message_of({"model.num_key_value_heads=3"}),
                testing::StartsWith("default: model.num_attention_heads is 4, must be"));
    EXPECT_THAT(message_of({"sparsity.schedule=logarithmic", "sparsity.end_head_sparsity=1"}),
                testing::StartsWith("command line: sparsity.end_head_sparsity is 1, must be"));
    EXPECT_EQ(
        message_of({"train.batch_size=3"}, 4),
        "command line: train.batch_size is 3, must be at least 4, the number of sequence groups (4 ranks, 1 in each): "
        "each works on whole packs");
    EXPECT_EQ(message_of({"train.batch_size=3", "parallel.seq_parallel_size=2"}, 4), "no error");
    EXPECT_EQ(message_of({"parallel.seq_parallel_size=3"}, 4),
              "command line: parallel.seq_parallel_size is 3, must be a divisor of the number of ranks, 4");
    EXPECT_EQ(message_of({"run.dir="}), "command line: run.dir is \"\", must be the name of a folder");
    EXPECT_THAT(message_of({"train.mode=weights_only"}),
                testing::StartsWith("command line: train.mode is \"weights_only\", must be another mode"));
    EXPECT_EQ(message_of({"train.mode=weights_only", "sparsity.masks=m.tsv"}), "no error");
    EXPECT_EQ(message_of({"sparsity.sparse_branch=xattention:stride=16,threshold=0.8"}), "no error");
    EXPECT_THAT(
        message_of({"sparsity.sparse_branch=xatention"}),
        testing::StartsWith("command line: sparsity.sparse_branch is 'xatention': selector is 'xatention', must "
                            "be one of full, streaming, xattention"));
}

}  // namespace
}  // namespace sparseattn
