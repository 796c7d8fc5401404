#pragma once
/// \file
/// What sparseattn-prefill finds out: figures, table, JSON.

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "sparseattn/app/text.hpp"

namespace sparseattn {

/// One method on the query, key and value of one layer; the same inputs for every method.
struct LayerFigures {
    int layer = 0;
    double kept_pairs = 0;             // (head, query, key) triples of the layout
    double all_pairs = 0;              // of dense attention
    double selection_seconds = 0;      // median over the repeats
    double attention_seconds = 0;      // likewise
    double error = 0;                  // |out - full| / |full| over all heads, Euclidean norms
    std::vector<double> head_density;  // kept / all pairs of each head
    std::vector<double> head_mass;     // mean share of attention mass kept, over the sampled queries
    std::vector<double> head_error;    // as error, of each head
    double smallest_mass = 1;          // of any sampled query and head

    [[nodiscard]] double density() const { return all_pairs > 0 ? kept_pairs / all_pairs : 0; }
    [[nodiscard]] double mass() const;
};

/// The method in every layer of the model at once; NaN where there is no model.
struct ModelFigures {
    double loss = std::numeric_limits<double>::quiet_NaN();  // nats per label
    double loss_change = std::numeric_limits<double>::quiet_NaN();
    double last_token_agreement = std::numeric_limits<double>::quiet_NaN();  // share of sequences
    double token_agreement = std::numeric_limits<double>::quiet_NaN();       // share of the sampled tokens
};

/// One method at one length.
struct MethodFigures {
    std::string method;    // as the command line names it
    std::string selector;  // with every option; tables aside
    std::vector<LayerFigures> layers;
    ModelFigures model;

    [[nodiscard]] double density() const;            // over the layers' pairs
    [[nodiscard]] double mass() const;               // mean over layers
    [[nodiscard]] double smallest_mass() const;      // of any layer
    [[nodiscard]] double mean_error() const;         // over layers
    [[nodiscard]] double largest_error() const;      // over layers
    [[nodiscard]] double selection_seconds() const;  // sum over layers
    [[nodiscard]] double attention_seconds() const;  // sum over layers
    [[nodiscard]] double seconds() const { return selection_seconds() + attention_seconds(); }
};

/// All methods on the same inputs. `methods[0]` is full attention: what errors, changes and speed-ups refer to.
struct PrefillComparison {
    std::string title;        // "8192 tokens", or of the file
    std::int64_t tokens = 0;  // queries of one sample
    std::int64_t keys = 0;
    int sequences = 0;  // of all samples
    int samples = 1;    // figures are means over them
    std::int64_t labels = 0;
    std::int64_t sampled_queries = 0;  // of all samples
    std::vector<MethodFigures> methods;

    /// Full attention's time over the method's, selection included.
    [[nodiscard]] double speed_up(const MethodFigures& method) const;
    /// One row per method; columns of the model only when there is one.
    [[nodiscard]] TextTable table() const;
    [[nodiscard]] nlohmann::json to_json() const;
};

/// Adds `other`, of the same methods and layers, to `sum` (which may be empty): figures of several samples.
void add_sample(std::vector<MethodFigures>& sum, const std::vector<MethodFigures>& other);
/// Divides what add_sample has summed.
void divide_by_samples(std::vector<MethodFigures>& sum, int samples);

/// What the columns of the table are, in lines for the terminal.
[[nodiscard]] std::string table_legend(bool model);

}  // namespace sparseattn
