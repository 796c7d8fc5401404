#pragma once
/// \file
/// The deck: a TOML file that says what a program does.

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "sparseattn/app/deck_keys.hpp"

namespace sparseattn {

/// A complete, checked set of deck values. Every value remembers where it came from, so that a later check can still
/// name file, line and column.
///
/// Errors are DeckErrors, one line for each thing wrong (all of one file together): "file:line:column: section.key is
/// was, must be must", or the unknown name and the nearest known one.
class Deck {
  public:
    /// Every key at its default.
    Deck();
    /// Reads TOML text; `source` is the name that messages show.
    [[nodiscard]] static Deck parse(std::string_view text, const std::string& source);
    /// Reads a TOML file. FileError when it cannot be read.
    [[nodiscard]] static Deck load(const std::filesystem::path& file);

    /// Applies "section.key=value" from the command line. Text may stand without quotes.
    void override_with(const std::string& assignment);
    /// Applies several, reporting all that is wrong together.
    void override_with(const std::vector<std::string>& assignments);
    /// Sets a key by program; checked like a deck's value. `origin` says where the value comes from.
    void set(std::string_view key, const DeckValue& value, const std::string& origin);

    /// Value of "section.key". InvalidArgument when there is no such key or it has another type.
    [[nodiscard]] bool flag(std::string_view key) const;
    [[nodiscard]] std::int64_t integer(std::string_view key) const;
    [[nodiscard]] double real(std::string_view key) const;
    [[nodiscard]] const std::string& text(std::string_view key) const;
    /// An integer key as int (the table's ranges of such keys fit).
    [[nodiscard]] int small(std::string_view key) const;

    /// True when the deck or an override set the key.
    [[nodiscard]] bool given(std::string_view key) const;
    /// "deck.toml:3:8", "command line", or "default".
    [[nodiscard]] const std::string& origin(std::string_view key) const;
    /// Throws the DeckError "origin: section.key is value, must be `must`".
    [[noreturn]] void reject(std::string_view key, const std::string& must) const;

    /// All keys with their values as TOML; parses back to the same deck.
    [[nodiscard]] std::string merged() const;

  private:
    struct Entry {
        DeckValue value;
        std::string origin;
    };
    [[nodiscard]] const Entry& entry(std::string_view key) const;

    std::vector<Entry> entries_;  // one per key of the table, in its order
};

/// inputs/reference.toml: every key with its default, commented.
[[nodiscard]] std::string reference_deck();
/// The key tables of docs/inputs.md, one per section, as Markdown.
[[nodiscard]] std::string reference_markdown();

}  // namespace sparseattn
