#pragma once
/// \file
/// From the deck to the options of the library.

#include <string>

#include "sparseattn/app/deck.hpp"
#include "sparseattn/io/token_dataset.hpp"
#include "sparseattn/model/config.hpp"
#include "sparseattn/train/train_options.hpp"

namespace sparseattn {

/// Section [model] as it stands. DeckError where keys do not fit together.
[[nodiscard]] ModelConfig model_config(const Deck& deck);

/// Everything a training run of `ranks` ranks needs; the merged deck becomes `TrainOptions::deck`. DeckError, with the
/// place in the deck, where keys do not fit together or not to the number of ranks.
[[nodiscard]] TrainOptions train_options(const Deck& deck, int ranks);

/// Fits the deck to the data set: sets model.vocab_size where the deck leaves it 0. DeckError when the deck has another
/// vocabulary, or packs longer than a split it needs.
void fit_data(Deck& deck, const TokenDataset& data);

/// The implementation of that name, as attention.implementation spells it; InvalidArgument otherwise.
[[nodiscard]] Implementation parse_implementation(const std::string& name);
/// "token" or "block"; InvalidArgument otherwise.
[[nodiscard]] Granularity parse_granularity(const std::string& name);

}  // namespace sparseattn
