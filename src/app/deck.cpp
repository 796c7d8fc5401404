#include "sparseattn/app/deck.hpp"

#include <algorithm>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

std::size_t index_of(std::string_view key) {
    const std::vector<DeckKey>& keys = deck_keys();
    const auto found =
        std::find_if(keys.begin(), keys.end(), [&](const DeckKey& known) { return known.full_name() == key; });
    require(found != keys.end(), "deck key", key, "one of the table");
    return static_cast<std::size_t>(found - keys.begin());
}

template <class T>
const T& as(const DeckValue& value, std::string_view key) {
    const T* typed = std::get_if<T>(&value);
    require(typed != nullptr, "deck key", key, "read with its own type");
    return *typed;
}

std::string escape_cell(const std::string& text) {
    std::string escaped;
    for (const char c : text) {
        if (c == '|') escaped += '\\';
        escaped += c;
    }
    return escaped;
}

}  // namespace

Deck::Deck() {
    for (const DeckKey& key : deck_keys()) entries_.push_back({key.standard, "default"});
}

void Deck::set(std::string_view key, const DeckValue& value, const std::string& origin) {
    const std::size_t index = index_of(key);
    const DeckKey& known = deck_keys()[index];
    if (value.index() != known.standard.index() || !known.allows(value)) {
        throw DeckError(concat(origin, ": ", key, " is ", to_toml(value), ", must be ", known.demand()));
    }
    entries_[index] = {value, origin};
}

const Deck::Entry& Deck::entry(std::string_view key) const {
    return entries_[index_of(key)];
}
bool Deck::flag(std::string_view key) const {
    return as<bool>(entry(key).value, key);
}
std::int64_t Deck::integer(std::string_view key) const {
    return as<std::int64_t>(entry(key).value, key);
}
double Deck::real(std::string_view key) const {
    return as<double>(entry(key).value, key);
}
const std::string& Deck::text(std::string_view key) const {
    return as<std::string>(entry(key).value, key);
}
int Deck::small(std::string_view key) const {
    return static_cast<int>(integer(key));
}
bool Deck::given(std::string_view key) const {
    return entry(key).origin != "default";
}
const std::string& Deck::origin(std::string_view key) const {
    return entry(key).origin;
}

void Deck::reject(std::string_view key, const std::string& must) const {
    const Entry& bad = entry(key);
    throw DeckError(concat(bad.origin, ": ", key, " is ", to_toml(bad.value), ", must be ", must));
}

std::string Deck::merged() const {
    std::string text;
    std::string section;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const DeckKey& key = deck_keys()[i];
        if (key.section != section) {
            text += concat(section.empty() ? "[" : "\n[", key.section, "]\n");
            section = key.section;
        }
        text += key.name + " = " + to_toml(entries_[i].value) + '\n';
    }
    return text;
}

std::string reference_deck() {
    std::string text =
        "# Every key of the deck with its default. A deck needs only the keys that differ.\n"
        "# Written by `sparseattn-train --print-reference` from the program's own table: change it there.\n";
    std::string section;
    for (const DeckKey& key : deck_keys()) {
        if (key.section != section) {
            section = key.section;
            const auto about = std::find_if(deck_sections().begin(), deck_sections().end(),
                                            [&](const DeckSection& known) { return known.name == section; });
            text += concat("\n[", section, "]\n# ", about->help, '\n');
        }
        text += concat("\n# ", key.help, "\n# ", key.demand(), key.unit.empty() ? "" : ", in ", key.unit, '\n');
        text += key.name + " = " + to_toml(key.standard) + '\n';
    }
    return text;
}

std::string reference_markdown() {
    std::string text;
    for (const DeckSection& section : deck_sections()) {
        text += concat(text.empty() ? "### [" : "\n### [", section.name, "]\n\n", section.help, "\n\n");
        text += "| key | default | unit | allowed | meaning |\n|---|---|---|---|---|\n";
        for (const DeckKey& key : deck_keys()) {
            if (key.section != section.name) continue;
            text += concat("| `", key.name, "` | `", to_toml(key.standard), "` | ", key.unit, " | ",
                           escape_cell(key.demand()), " | ", escape_cell(key.help), " |\n");
        }
    }
    return text;
}

}  // namespace sparseattn
