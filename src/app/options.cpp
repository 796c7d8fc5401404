#include "sparseattn/app/options.hpp"

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

/// Runs a check of the library, whose messages begin with a field's name ("batch_size is 0, must be ..."), and says
/// where the deck has the key of that name.
template <class Check>
void check_with_place(const Deck& deck, const Check& check) {
    try {
        check();
    } catch (const InvalidArgument& error) {
        const std::string message = error.what();
        const std::string field = message.substr(0, message.find(' '));
        for (const DeckKey& key : deck_keys()) {
            if (key.name == field)
                throw DeckError(concat(deck.origin(key.full_name()), ": ", key.section, '.', message));
        }
        throw DeckError("deck: " + message);
    }
}

SparsityOptions sparsity_options(const Deck& deck) {
    SparsityOptions options;
    options.start_head_sparsity = deck.real("sparsity.start_head_sparsity");
    options.end_head_sparsity = deck.real("sparsity.end_head_sparsity");
    options.sparsity_warmup_ratio = deck.real("sparsity.sparsity_warmup_ratio");
    const bool linear = deck.text("sparsity.schedule") == "linear";
    options.schedule = linear ? SparsitySchedule::linear : SparsitySchedule::logarithmic;
    options.mask_learning_rate = deck.real("sparsity.mask_learning_rate");
    options.reg_learning_rate = deck.real("sparsity.reg_learning_rate");
    options.disable_linear_regularization_term = deck.flag("sparsity.disable_linear_regularization_term");
    const bool sampled = deck.text("sparsity.estimate") == "sampled";
    options.estimate = sampled ? SparsityEstimate::sampled : SparsityEstimate::deterministic;
    options.sparse_branch = deck.text("sparsity.sparse_branch");
    options.sink = deck.small("sparsity.sink");
    options.local = deck.small("sparsity.local");
    options.granularity = parse_granularity(deck.text("sparsity.granularity"));
    options.gate_init_mean = deck.real("sparsity.gate_init_mean");
    options.gate_init_std = deck.real("sparsity.gate_init_std");
    return options;
}

void take_train_section(const Deck& deck, TrainOptions& options) {
    options.mode = parse_train_mode(deck.text("train.mode"));
    options.precision = parse_precision(deck.text("train.precision"));
    options.max_steps = deck.integer("train.max_steps");
    options.batch_size = deck.small("train.batch_size");
    options.learning_rate = deck.real("train.learning_rate");
    options.warmup_ratio = deck.real("train.warmup_ratio");
    options.min_lr_ratio = deck.real("train.min_lr_ratio");
    options.weight_decay = deck.real("train.weight_decay");
    options.beta1 = deck.real("train.beta1");
    options.beta2 = deck.real("train.beta2");
    options.epsilon = deck.real("train.epsilon");
    options.clip_norm = deck.real("train.clip_norm");
    options.recompute = deck.flag("train.recompute");
    options.loss_block = deck.small("train.loss_block");
    options.max_skipped_steps = deck.small("train.max_skipped_steps");
    options.init_from = deck.text("train.init_from");
}

void take_run_section(const Deck& deck, TrainOptions& options) {
    options.seed = static_cast<std::uint64_t>(deck.integer("run.seed"));
    options.run_dir = deck.text("run.dir");
    options.checkpoint_interval = deck.integer("run.checkpoint_interval");
    options.keep_checkpoints = deck.small("run.keep_checkpoints");
    options.evaluation_interval = deck.integer("run.evaluation_interval");
    options.evaluation_packs = deck.integer("run.evaluation_packs");
    options.evaluate_dense = deck.flag("run.evaluate_dense");
    options.evaluate_sparse = deck.flag("run.evaluate_sparse");
}

}  // namespace

Implementation parse_implementation(const std::string& name) {
    if (name == "automatic") return Implementation::automatic;
    if (name == "reference") return Implementation::reference;
    if (name == "generic") return Implementation::generic;
    if (name == "host") return Implementation::host;
    if (name == "cuda") return Implementation::cuda;
    throw InvalidArgument(concat("implementation is ", name, ", must be automatic, reference, generic, host or cuda"));
}

Granularity parse_granularity(const std::string& name) {
    if (name == "token") return Granularity::token;
    if (name == "block") return Granularity::block;
    throw InvalidArgument(concat("granularity is ", name, ", must be token or block"));
}

ModelConfig model_config(const Deck& deck) {
    ModelConfig config;
    config.vocab_size = deck.small("model.vocab_size");
    config.hidden_size = deck.small("model.hidden_size");
    config.num_hidden_layers = deck.small("model.num_hidden_layers");
    config.num_attention_heads = deck.small("model.num_attention_heads");
    config.num_key_value_heads = deck.small("model.num_key_value_heads");
    config.head_dim = deck.small("model.head_dim");
    config.intermediate_size = deck.small("model.intermediate_size");
    config.rope_theta = deck.real("model.rope_theta");
    config.rms_norm_eps = deck.real("model.rms_norm_eps");
    config.initializer_range = deck.real("model.initializer_range");
    config.tie_word_embeddings = deck.flag("model.tie_word_embeddings");
    config.qk_norm = deck.flag("model.qk_norm");
    check_with_place(deck, [&] { config.validate(); });
    return config;
}

TrainOptions train_options(const Deck& deck, int ranks) {
    if (deck.text("run.dir").empty()) deck.reject("run.dir", "the name of a folder");
    TrainOptions options;
    options.model = model_config(deck);
    take_train_section(deck, options);
    options.sequence_length = deck.small("data.sequence_length");
    options.shuffle = deck.flag("data.shuffle");
    options.sparsity = sparsity_options(deck);
    options.masks = deck.text("sparsity.masks");
    options.block = deck.small("attention.block");
    options.implementation = parse_implementation(deck.text("attention.implementation"));
    options.seq_parallel_size = deck.small("parallel.seq_parallel_size");
    options.bucket_bytes = deck.integer("parallel.bucket_bytes");
    take_run_section(deck, options);
    options.deck = deck.merged();
    if (options.mode == TrainMode::weights_only && options.masks.empty() && options.init_from.empty()) {
        deck.reject("train.mode", "another mode unless sparsity.masks or train.init_from gives the fixed masks");
    }
    check_with_place(deck, [&] { options.validate(ranks); });
    return options;
}

void fit_data(Deck& deck, const TokenDataset& data) {
    const std::string vocabulary = "model.vocab_size";
    const std::string file = data.train().file().string();
    if (deck.integer(vocabulary) == 0) {
        deck.set(vocabulary, std::int64_t{data.vocab_size()}, file);
    } else if (deck.integer(vocabulary) != data.vocab_size()) {
        deck.reject(vocabulary, concat(data.vocab_size(), ", as in data set ", file, ", or 0"));
    }
    for (const TokenSplit* split : {&data.train(), &data.validation()}) {
        const bool needed = split == &data.train() || deck.integer("run.evaluation_packs") > 0;
        // The last token of a pack needs the token behind it as its label.
        if (needed && deck.integer("data.sequence_length") >= split->tokens()) {
            deck.reject("data.sequence_length",
                        concat("at most ", split->tokens() - 1, ", one less than the tokens in the ", split->name(),
                               " split of ", file));
        }
    }
}

}  // namespace sparseattn
