#pragma once
/// \file
/// The table of deck keys: the one place that declares them. Checks, defaults, inputs/reference.toml and the table of
/// docs/inputs.md all come from it.

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace sparseattn {

/// A key's value; the default's alternative is the key's type.
using DeckValue = std::variant<bool, std::int64_t, double, std::string>;

/// One key of the deck.
struct DeckKey {
    std::string section;
    std::string name;
    DeckValue standard;  // value where the deck has none
    std::string help;    // one sentence
    std::string unit;    // "" for none
    double least = -std::numeric_limits<double>::infinity();
    double most = std::numeric_limits<double>::infinity();
    bool above_least = false;             // `least` itself is not allowed
    bool below_most = false;              // `most` itself is not allowed
    std::vector<DeckValue> choices = {};  // the only values allowed; empty: by range

    /// "section.name".
    [[nodiscard]] std::string full_name() const { return section + '.' + name; }
    /// "integer", "real", "text" or "boolean".
    [[nodiscard]] std::string type() const;
    /// What a value must be: "an integer, at least 1", "one of "linear", "logarithmic"", ...
    [[nodiscard]] std::string demand() const;
    /// Whether `value`, of the key's type, lies in range or among the choices.
    [[nodiscard]] bool allows(const DeckValue& value) const;
};

/// A section with what its keys are about, in the order of the table.
struct DeckSection {
    std::string name;
    std::string help;
};

[[nodiscard]] const std::vector<DeckSection>& deck_sections();
/// All keys, sections together, in the order to print.
[[nodiscard]] const std::vector<DeckKey>& deck_keys();

/// The value as TOML; reals with the digits that read back to the same number.
[[nodiscard]] std::string to_toml(const DeckValue& value);

/// The candidate nearest to `name` by edit distance, or "" when none is near enough to be meant.
[[nodiscard]] std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace sparseattn
