// TOML to deck values. The only file that sees toml++.
#include <toml++/toml.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

#include "sparseattn/app/deck.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

struct Problem {
    toml::source_position where;
    std::string text;
};

/// What a value is, for messages.
std::string describe(const toml::node& node) {
    if (const auto value = node.value_exact<bool>()) return to_toml(DeckValue(*value));
    if (const auto value = node.value_exact<std::int64_t>()) return to_toml(DeckValue(*value));
    if (const auto value = node.value_exact<double>()) return to_toml(DeckValue(*value));
    if (const auto value = node.value_exact<std::string>()) return to_toml(DeckValue(*value));
    if (node.is_array()) return "an array";
    return node.is_table() ? "a table" : "a date or time";
}

/// The node as a value of the key's type: an integer passes for a real number, nothing else changes type.
std::optional<DeckValue> typed(const toml::node& node, const DeckKey& key) {
    if (std::holds_alternative<bool>(key.standard)) {
        if (const auto value = node.value_exact<bool>()) return *value;
    } else if (std::holds_alternative<std::int64_t>(key.standard)) {
        if (const auto value = node.value_exact<std::int64_t>()) return *value;
    } else if (std::holds_alternative<double>(key.standard)) {
        if (const auto value = node.value_exact<double>()) return *value;
        if (const auto value = node.value_exact<std::int64_t>()) return static_cast<double>(*value);
    } else if (const auto value = node.value_exact<std::string>()) {
        return *value;
    }
    return std::nullopt;
}

/// The checked value, or "is ..., must be ...".
std::variant<DeckValue, Problem> convert(const toml::node& node, const DeckKey& key) {
    const std::optional<DeckValue> value = typed(node, key);
    if (value && key.allows(*value)) return *value;
    std::string text = key.full_name() + " is " + describe(node) + ", must be " + key.demand();
    if (const std::string* given = value ? std::get_if<std::string>(&*value) : nullptr) {
        std::vector<std::string> choices;
        for (const DeckValue& choice : key.choices) choices.push_back(std::get<std::string>(choice));
        const std::string near = nearest_name(*given, choices);
        if (!near.empty()) text += "; did you mean " + to_toml(DeckValue(near)) + '?';
    }
    return Problem{node.source().begin, text};
}

const DeckKey* find_key(std::string_view section, std::string_view name) {
    for (const DeckKey& key : deck_keys()) {
        if (key.section == section && key.name == name) return &key;
    }
    return nullptr;
}

/// The sections that have a key of this name, as "[a] or [b]"; "" for none.
std::string sections_of(std::string_view name) {
    std::string list;
    for (const DeckKey& key : deck_keys()) {
        if (key.name == name) list += (list.empty() ? "[" : " or [") + key.section + ']';
    }
    return list;
}

std::string unknown_key(const std::string& section, const std::string& name) {
    std::string text = section + '.' + name + " is no key of the deck";
    const std::string elsewhere = sections_of(name);
    if (!elsewhere.empty()) return text + "; " + name + " belongs in " + elsewhere;
    std::vector<std::string> siblings;
    std::vector<std::string> all;
    for (const DeckKey& key : deck_keys()) {
        all.push_back(key.name);
        if (key.section == section) siblings.push_back(key.name);
    }
    std::string near = nearest_name(name, siblings);
    if (!near.empty()) return text + "; did you mean " + section + '.' + near + '?';
    near = nearest_name(name, all);
    if (!near.empty()) return text + "; did you mean " + near + " in " + sections_of(near) + '?';
    return text + "; --print-reference lists all keys";
}

std::string unknown_section(const std::string& name) {
    std::vector<std::string> names;
    std::string list;
    for (const DeckSection& section : deck_sections()) {
        names.push_back(section.name);
        list += (list.empty() ? "[" : ", [") + section.name + ']';
    }
    const std::string near = nearest_name(name, names);
    return '[' + name + "] is no section of the deck" +
           (near.empty() ? ", must be one of " + list : "; did you mean [" + near + "]?");
}

bool known_section(std::string_view name) {
    const auto& sections = deck_sections();
    return std::any_of(sections.begin(), sections.end(), [&](const DeckSection& known) { return known.name == name; });
}

[[noreturn]] void throw_problems(std::vector<Problem> problems, const std::string& source) {
    std::stable_sort(problems.begin(), problems.end(),
                     [](const Problem& a, const Problem& b) { return a.where < b.where; });
    std::string text;
    for (const Problem& problem : problems) {
        text += concat(text.empty() ? "" : "\n", source, ':', problem.where.line, ':', problem.where.column, ": ",
                       problem.text);
    }
    throw DeckError(text);
}

toml::table parse_toml(std::string_view text, const std::string& source) {
    try {
        return toml::parse(text, source);
    } catch (const toml::parse_error& error) {
        std::string reason(error.description());
        if (reason.find("redefine") != std::string::npos) reason += "; a key may appear only once";
        throw_problems({{error.source().begin, reason}}, source);
    }
}

}  // namespace

Deck Deck::parse(std::string_view text, const std::string& source) {
    Deck deck;
    std::vector<Problem> problems;
    const toml::table root = parse_toml(text, source);
    for (const auto& [section_key, section_node] : root) {
        const std::string section(section_key.str());
        const toml::table* table = section_node.as_table();
        if (!known_section(section)) {
            const std::string home = table == nullptr ? sections_of(section) : "";
            problems.push_back(
                {section_key.source().begin,
                 home.empty() ? unknown_section(section) : section + " stands outside a section, must be in " + home});
            continue;
        }
        if (table == nullptr) {
            problems.push_back({section_node.source().begin,
                                section + " is " + describe(section_node) + ", must be a section [" + section + ']'});
            continue;
        }
        for (const auto& [name, node] : *table) {
            const DeckKey* key = find_key(section, name.str());
            if (key == nullptr) {
                problems.push_back({name.source().begin, unknown_key(section, std::string(name.str()))});
                continue;
            }
            auto result = convert(node, *key);
            if (auto* problem = std::get_if<Problem>(&result)) {
                problems.push_back(std::move(*problem));
            } else {
                const toml::source_position where = node.source().begin;
                deck.set(key->full_name(), std::get<DeckValue>(result),
                         concat(source, ':', where.line, ':', where.column));
            }
        }
    }
    if (!problems.empty()) throw_problems(std::move(problems), source);
    return deck;
}

Deck Deck::load(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    std::ostringstream text;
    // A directory opens, but reading it fails; an empty file sets only the target's failbit.
    if (in && in.peek() != std::ifstream::traits_type::eof()) text << in.rdbuf();
    if (!in.is_open() || in.bad() || std::filesystem::is_directory(file)) {
        throw FileError(concat("deck ", file.string(), " cannot be read, must be a readable TOML file"));
    }
    return parse(text.str(), file.string());
}

void Deck::override_with(const std::string& assignment) {
    const std::string source = "command line";
    const std::size_t equals = assignment.find('=');
    const std::size_t dot = assignment.substr(0, equals).find('.');
    if (equals == std::string::npos || dot == std::string::npos || dot == 0) {
        throw DeckError(concat(source, ": ", assignment, " is no override, must be section.key=value"));
    }
    const std::string section = assignment.substr(0, dot);
    const std::string name = assignment.substr(dot + 1, equals - dot - 1);
    std::string value = assignment.substr(equals + 1);
    const DeckKey* key = find_key(section, name);
    if (key == nullptr) {
        throw DeckError(
            concat(source, ": ", known_section(section) ? unknown_key(section, name) : unknown_section(section)));
    }
    const bool quoted = !value.empty() && (value[0] == '"' || value[0] == '\'');
    const bool is_text = std::holds_alternative<std::string>(key->standard);
    if (is_text && !quoted) value = to_toml(DeckValue(value));
    toml::table parsed;
    try {
        parsed = toml::parse("value = " + value);
        if (parsed.size() != 1 || !parsed.contains("value")) throw DeckError("");
    } catch (const std::exception&) {
        throw DeckError(concat(source, ": ", key->full_name(), " is ", value.empty() ? "empty" : value, ", must be ",
                               key->demand()));
    }
    auto result = convert(*parsed.get("value"), *key);
    if (const auto* problem = std::get_if<Problem>(&result)) throw DeckError(source + ": " + problem->text);
    set(key->full_name(), std::get<DeckValue>(result), source);
}

void Deck::override_with(const std::vector<std::string>& assignments) {
    std::string problems;
    for (const std::string& assignment : assignments) {
        try {
            override_with(assignment);
        } catch (const DeckError& error) {
            problems += (problems.empty() ? "" : "\n") + std::string(error.what());
        }
    }
    if (!problems.empty()) throw DeckError(problems);
}

}  // namespace sparseattn
