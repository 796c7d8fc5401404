#pragma once
/// \file
/// From the deck to the options of the library.

#include <filesystem>
#include <string>

#include "sparseattn/app/deck.hpp"
#include "sparseattn/model/config.hpp"
#include "sparseattn/train/train_options.hpp"

namespace sparseattn {

/// Section [model] as it stands. DeckError where keys do not fit together.
[[nodiscard]] ModelConfig model_config(const Deck& deck);

/// Everything a training run of `ranks` ranks needs; the merged deck becomes `TrainOptions::deck`. DeckError, with the
/// place in the deck, where keys do not fit together or not to the number of ranks.
[[nodiscard]] TrainOptions train_options(const Deck& deck, int ranks);

/// Sets model.vocab_size where the deck leaves it 0; DeckError when it is not `vocab_size`, that of data set `file`.
void fit_vocabulary(Deck& deck, int vocab_size, const std::filesystem::path& file);

/// The implementation of that name, as attention.implementation spells it; InvalidArgument otherwise.
[[nodiscard]] Implementation parse_implementation(const std::string& name);
/// "token" or "block"; InvalidArgument otherwise.
[[nodiscard]] Granularity parse_granularity(const std::string& name);

}  // namespace sparseattn
