// The table itself. Published names (PruLong and DeepSpeed's configurations) are kept for the sparsity keys.
#include "sparseattn/app/deck_keys.hpp"

namespace sparseattn {
namespace {

using Text = std::string;
constexpr double most_int = 2147483647.0;

DeckKey flag(Text section, Text name, bool standard, Text help) {
    return {std::move(section), std::move(name), standard, std::move(help), ""};
}

DeckKey text(Text section, Text name, Text standard, Text help) {
    return {std::move(section), std::move(name), std::move(standard), std::move(help), ""};
}

DeckKey integer(Text section, Text name, std::int64_t standard, Text unit, double least, double most, Text help) {
    return {std::move(section), std::move(name), standard, std::move(help), std::move(unit), least, most};
}

DeckKey real(Text section, Text name, double standard, Text unit, double least, double most, Text help) {
    return {std::move(section), std::move(name), standard, std::move(help), std::move(unit), least, most};
}

DeckKey above(DeckKey key) {
    key.above_least = true;
    return key;
}

DeckKey below(DeckKey key) {
    key.below_most = true;
    return key;
}

DeckKey one_of(DeckKey key, std::vector<DeckValue> choices) {
    key.choices = std::move(choices);
    return key;
}

DeckValue number(std::int64_t value) {
    return value;
}

void add_run(std::vector<DeckKey>& keys) {
    keys.insert(
        keys.end(),
        {
            text("run", "dir", "runs/train",
                 "Folder of the run: log, metrics, checkpoints and report; created when missing."),
            integer("run", "seed", 1, "", 0, 9e15, "Seed of every random number: weights, gates, order of the data."),
            integer("run", "log_interval", 10, "steps", 1, most_int, "Steps between two lines of the log."),
            integer("run", "checkpoint_interval", 500, "steps", 0, most_int,
                    "Steps between two checkpoints; 0: only at the end."),
            integer("run", "keep_checkpoints", 2, "", 2, most_int,
                    "Newest checkpoints that stay; older ones are removed."),
            integer("run", "evaluation_interval", 250, "steps", 0, most_int,
                    "Steps between two evaluations; 0: only at the end."),
            integer("run", "evaluation_packs", 16, "packs", 0, most_int,
                    "Validation packs per evaluation; 0: no evaluation."),
            flag("run", "evaluate_dense", true, "Evaluations also measure the same weights with every head dense."),
            flag("run", "evaluate_sparse", false, "Evaluations also measure the same weights with every gate closed."),
            real("run", "time_limit", 0, "s", 0, 1e9,
                 "Wall time after which the run writes a checkpoint and stops with exit code 75; 0: none."),
            real("run", "patience", 900, "s", 0, 1e9,
                 "How long ranks wait for one that does not come before the job ends; 0: for ever."),
        });
}

void add_model(std::vector<DeckKey>& keys) {
    keys.insert(
        keys.end(),
        {
            integer("model", "vocab_size", 0, "tokens", 0, most_int,
                    "Size of the vocabulary; 0: that of the token data set."),
            integer("model", "hidden_size", 256, "", 1, 1 << 20, "Width of the residual stream."),
            integer("model", "num_hidden_layers", 4, "", 1, 10000, "Decoder layers."),
            integer("model", "num_attention_heads", 4, "", 1, 10000,
                    "Query heads per layer, a multiple of num_key_value_heads."),
            integer("model", "num_key_value_heads", 2, "", 1, 10000, "Key/value heads per layer."),
            one_of(integer("model", "head_dim", 64, "", 0, 0, "Features per head."),
                   {number(32), number(64), number(96), number(128), number(256)}),
            integer("model", "intermediate_size", 768, "", 1, 1 << 22, "Width of the feed-forward layer."),
            above(real("model", "rope_theta", 10000.0, "", 0, 1e12, "Base of the rotary embedding's wavelengths.")),
            above(real("model", "rms_norm_eps", 1e-5, "", 0, 1, "Added to the mean square in RMSNorm.")),
            real("model", "initializer_range", 0.02, "", 0, 10, "Standard deviation of initial weights."),
            flag("model", "tie_word_embeddings", true, "The output projection shares the embedding's weights."),
            flag("model", "qk_norm", false,
                 "RMSNorm on each query and key head before the rotary embedding, as Qwen3 does."),
        });
}

void add_data(std::vector<DeckKey>& keys) {
    keys.insert(keys.end(), {
                                text("data", "path", "",
                                     "Token data set, an HDF5 file made by sparseattn-convert; needed for training."),
                                integer("data", "sequence_length", 2048, "tokens", 1, 1 << 30, "Tokens per pack."),
                                flag("data", "shuffle", true,
                                     "Take packs in a random order, another one each epoch; false: in file order."),
                            });
}

void add_train(std::vector<DeckKey>& keys) {
    keys.insert(
        keys.end(),
        {
            one_of(text("train", "mode", "masks_and_weights",
                        "What learns; weights_only keeps the masks of sparsity.masks or train.init_from, dense has no "
                        "gates."),
                   {Text("masks_and_weights"), Text("masks_only"), Text("weights_only"), Text("dense")}),
            one_of(
                text("train", "precision", "fp32",
                     "Storage of weights, activations and their gradients in the passes; the weights that learn, their "
                     "gradients, moments and checkpoints are fp32 in both."),
                {Text("fp32"), Text("bf16")}),
            integer("train", "max_steps", 1000, "steps", 1, 1e12, "Optimizer steps of the whole run."),
            integer("train", "batch_size", 8, "packs", 1, 1 << 20, "Packs per optimizer step over all ranks."),
            above(real("train", "learning_rate", 1e-3, "", 0, 100, "Peak learning rate of the weights.")),
            real("train", "warmup_ratio", 0.05, "", 0, 1,
                 "Share of max_steps in which learning rates rise linearly from 0."),
            real("train", "min_lr_ratio", 0.1, "", 0, 1,
                 "Learning rates end, after a cosine, at this share of their peak."),
            real("train", "weight_decay", 0.1, "", 0, 100,
                 "Decoupled weight decay of matrices; norms, gates and multipliers have none."),
            below(real("train", "beta1", 0.9, "", 0, 1, "AdamW: decay of the gradient's mean.")),
            below(real("train", "beta2", 0.95, "", 0, 1, "AdamW: decay of the gradient's mean square.")),
            above(real("train", "epsilon", 1e-8, "", 0, 1, "AdamW: added to the root of the mean square.")),
            real("train", "clip_norm", 1.0, "", 0, 1e12, "Largest norm of the weights' gradient; 0: no clipping."),
            flag("train", "recompute", false,
                 "Recompute each layer in the backward pass instead of keeping its activations."),
            integer("train", "loss_block", 1024, "tokens", 1, 1 << 24, "Tokens whose logits exist at the same time."),
            integer("train", "max_skipped_steps", 3, "steps", 1, most_int,
                    "Steps in a row with a loss or gradient that is not finite before the run gives up."),
            text("train", "init_from", "", "Checkpoint whose weights the run starts from; empty: random weights."),
        });
}

void add_sparsity(std::vector<DeckKey>& keys) {
    keys.insert(
        keys.end(),
        {
            real("sparsity", "start_head_sparsity", 0.0, "", 0, 1, "Target share of closed gates at the first step."),
            real("sparsity", "end_head_sparsity", 0.7, "", 0, 1,
                 "Target share of closed gates after the warm-up; below 1 on the logarithmic schedule."),
            real("sparsity", "sparsity_warmup_ratio", 0.8, "", 0, 1,
                 "Share of max_steps in which the target moves from start to end."),
            one_of(text("sparsity", "schedule", "linear", "How the target moves."),
                   {Text("linear"), Text("logarithmic")}),
            real("sparsity", "mask_learning_rate", 1.0, "", 0, 1000, "Peak learning rate of the gates."),
            real("sparsity", "reg_learning_rate", 1.0, "", 0, 1000, "Peak learning rate of the Lagrange multipliers."),
            flag("sparsity", "disable_linear_regularization_term", false,
                 "Penalty without the term linear in the distance from the target."),
            one_of(text("sparsity", "estimate", "sampled", "Gates whose sparsity is held to the target."),
                   {Text("sampled"), Text("deterministic")}),
            text("sparsity", "sparse_branch", "streaming",
                 "Attention of a closed gate: streaming, or what a selection method keeps of each layer's queries and "
                 "keys, with its options, e.g. xattention:stride=16,threshold=0.9."),
            integer("sparsity", "sink", 64, "tokens", 0, most_int,
                    "Streaming: first tokens of a sequence that heads always see."),
            integer("sparsity", "local", 256, "tokens", 1, most_int,
                    "Streaming: last tokens that heads see, the query's own included."),
            one_of(text("sparsity", "granularity", "token",
                        "Streaming: window edges at exact tokens, or rounded to blocks of attention.block."),
                   {Text("token"), Text("block")}),
            text("sparsity", "masks", "",
                 "Head masks, TSV: the fixed ones of weights_only, the initial gates of other modes; empty: none."),
            real("sparsity", "gate_init_mean", 4.0, "", -100, 100,
                 "Mean of the initial log-alpha; 4 opens almost every gate."),
            real("sparsity", "gate_init_std", 0.01, "", 0, 100, "Standard deviation of the initial log-alpha."),
        });
}

void add_rest(std::vector<DeckKey>& keys) {
    keys.insert(keys.end(),
                {
                    one_of(integer("attention", "block", 64, "tokens", 0, 0, "Edge of an attention block."),
                           {number(64), number(128)}),
                    one_of(text("attention", "implementation", "automatic",
                                "Attention kernel; automatic takes the fastest that fits."),
                           {Text("automatic"), Text("reference"), Text("generic"), Text("host"), Text("cuda")}),
                    integer("parallel", "seq_parallel_size", 1, "ranks", 1, most_int,
                            "Consecutive ranks that share each pack; must divide the number of ranks."),
                    integer("parallel", "bucket_bytes", 33554432, "bytes", 1, 1e12,
                            "Gradients and weights travel between ranks in buckets of this size or larger."),
                    one_of(text("parallel", "device_links", "auto",
                                "Messages go from device to device over NCCL where every rank has a device of its "
                                "own; off: by MPI."),
                           {Text("auto"), Text("off")}),
                    one_of(text("mpi", "gpu_aware", "auto",
                                "Without device links, device memory goes to MPI in the attention exchange where the "
                                "library takes it; off: through the host."),
                           {Text("auto"), Text("off")}),
                });
}

}  // namespace

const std::vector<DeckSection>& deck_sections() {
    static const std::vector<DeckSection> sections = {
        {"run", "The run: where it writes, how often, how long."},
        {"model", "Shape of the decoder, under Hugging Face's names."},
        {"data", "What it reads."},
        {"train", "Optimisation of the weights."},
        {"sparsity", "Head gates: which heads may stream, and how many."},
        {"attention", "The attention kernel."},
        {"parallel", "Distribution over ranks; ranks that do not share a sequence are data parallel."},
        {"mpi", "Message passing."},
    };
    return sections;
}

const std::vector<DeckKey>& deck_keys() {
    static const std::vector<DeckKey> keys = [] {
        std::vector<DeckKey> all;
        add_run(all);
        add_model(all);
        add_data(all);
        add_train(all);
        add_sparsity(all);
        add_rest(all);
        return all;
    }();
    return keys;
}

}  // namespace sparseattn
