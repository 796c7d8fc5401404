#pragma once
/// \file
/// What a training run is asked to do. A plain struct: where the values come from is the caller's business.

#include <cstdint>
#include <filesystem>
#include <string>

#include "sparseattn/attention/attention.hpp"
#include "sparseattn/model/config.hpp"
#include "sparseattn/model/precision.hpp"
#include "sparseattn/parallel/message_path.hpp"
#include "sparseattn/sparsity/sparsity_options.hpp"

namespace sparseattn {

/// What learns. masks_and_weights: weights, gates and multipliers. masks_only: gates and multipliers, weights frozen.
/// weights_only: weights, with the gates fixed at given masks and not sampled. dense: weights of the plain model.
enum class TrainMode { masks_and_weights, masks_only, weights_only, dense };

/// "masks_and_weights", "masks_only", "weights_only", "dense".
[[nodiscard]] std::string to_string(TrainMode mode);
/// The mode of that name; throws InvalidArgument listing the names.
[[nodiscard]] TrainMode parse_train_mode(const std::string& name);
[[nodiscard]] constexpr bool learns_weights(TrainMode mode) {
    return mode != TrainMode::masks_only;
}
[[nodiscard]] constexpr bool learns_masks(TrainMode mode) {
    return mode == TrainMode::masks_and_weights || mode == TrainMode::masks_only;
}
[[nodiscard]] constexpr bool has_gates(TrainMode mode) {
    return mode != TrainMode::dense;
}

/// Settings of a training run. A pack is one micro-batch of `sequence_length` tokens; pack slot b of step s is number
/// s * batch_size + b of the data stream, and sequence group g of G works on the slots g, g + G, ...
struct TrainOptions {
    ModelConfig model;

    // deck section [train]
    TrainMode mode = TrainMode::masks_and_weights;
    std::int64_t max_steps = 1000;
    int batch_size = 8;  // packs per optimizer step over all ranks
    double learning_rate = 1e-3;
    double warmup_ratio = 0.05;
    double min_lr_ratio = 0.1;
    double weight_decay = 0.1;
    double beta1 = 0.9;
    double beta2 = 0.95;
    double epsilon = 1e-8;
    double clip_norm = 1.0;                 // of the weights' gradient; 0: no clipping
    Precision precision = Precision::fp32;  // of the passes
    bool recompute = false;                 // recompute layers in the backward pass
    int loss_block = 1024;                  // tokens whose logits exist at once
    int max_skipped_steps = 3;              // consecutive non-finite steps that end the run with NumericalError
    std::filesystem::path init_from;        // checkpoint whose weights (weights_only: and masks) the run starts from

    // deck section [data]
    int sequence_length = 2048;
    bool shuffle = true;

    // deck sections [sparsity] and [attention]
    SparsityOptions sparsity;
    std::filesystem::path masks;  // TSV: the fixed masks of weights_only, the initial gates of the other modes
    int block = 64;
    Implementation implementation = Implementation::automatic;

    // deck section [parallel]
    int seq_parallel_size = 1;                           // ranks that share a pack; divides the number of ranks
    std::int64_t bucket_bytes = std::int64_t{32} << 20;  // of gradients and weights that travel together, at least

    MessagePath messages = MessagePath::staged;  // of data in device memory: what choose_message_path() says

    // deck section [run]
    std::uint64_t seed = 1;
    std::filesystem::path run_dir;         // checkpoints/, metrics.csv and evaluation.csv; empty: write nothing
    std::int64_t checkpoint_interval = 0;  // steps; 0: at the end only
    int keep_checkpoints = 2;              // at least 2
    std::int64_t evaluation_interval = 0;  // steps; 0: at the end only
    std::int64_t evaluation_packs = 16;    // validation packs per evaluation; 0: none, no evaluation
    bool evaluate_dense = true;            // evaluations also measure the same weights with every head dense ...
    bool evaluate_sparse = false;          // ... and with every gate closed

    std::string deck;  // the merged deck, stored in every checkpoint as it is

    /// Throws InvalidArgument naming the first field out of range; FileError for a table of the sparse branch.
    void validate() const;
    /// Also checks what must fit to the number of ranks.
    void validate(int ranks) const;
};

}  // namespace sparseattn
