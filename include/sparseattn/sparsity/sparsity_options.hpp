#pragma once
/// \file
/// What learned head sparsity is asked to do.

#include <cstdint>
#include <string>

#include "sparseattn/layout/builders.hpp"

namespace sparseattn {

/// How the target sparsity moves from start to end during the warm-up.
enum class SparsitySchedule { linear, logarithmic };

/// Which gates the controller measures sparsity on: the step's samples or the deterministic gates.
enum class SparsityEstimate { sampled, deterministic };

/// Settings of the gates, of their target and of the sparse branch (deck section [sparsity]).
struct SparsityOptions {
    double start_head_sparsity = 0.0;
    double end_head_sparsity = 0.7;
    double sparsity_warmup_ratio = 0.8;  // share of max_steps until the target reaches its end
    SparsitySchedule schedule = SparsitySchedule::linear;
    double mask_learning_rate = 1.0;
    double reg_learning_rate = 1.0;
    bool disable_linear_regularization_term = false;
    SparsityEstimate estimate = SparsityEstimate::sampled;
    std::string sparse_branch = "streaming";  // of closed gates; see make_sparse_branch
    // Of the branch "streaming":
    std::int32_t sink = 64;    // tokens that every streaming head keeps at the start
    std::int32_t local = 256;  // tokens that it keeps behind the query, itself included
    Granularity granularity = Granularity::token;
    double gate_init_mean = 4.0;
    double gate_init_std = 0.01;

    /// Throws InvalidArgument naming the first field out of range.
    void validate() const;
};

}  // namespace sparseattn
