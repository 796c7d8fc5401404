#include "sparseattn/app/deck_keys.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

std::string toml_number(double value) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
    std::string text(digits, end);
    if (text.find_first_of(".einf") == std::string::npos) text += ".0";
    return text;
}

std::string toml_string(const std::string& value) {
    std::string text = "\"";
    for (const char c : value) {
        if (c == '"' || c == '\\') {
            text += '\\';
            text += c;
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04X", static_cast<unsigned>(static_cast<unsigned char>(c)));
            text += escape;
        } else {
            text += c;
        }
    }
    return text + '"';
}

std::string bound(const DeckKey& key, double value) {
    return key.standard.index() == 1 ? std::to_string(static_cast<std::int64_t>(value)) : toml_number(value);
}

/// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours cost 1 each.
std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> before(b.size() + 1);
    std::vector<std::size_t> last(b.size() + 1);
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(last.begin(), last.end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = std::min(row[j], before[j - 2] + 1);
        }
        before.swap(last);
        last.swap(row);
    }
    return last[b.size()];
}

}  // namespace

std::string to_toml(const DeckValue& value) {
    if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
    if (const auto* integer = std::get_if<std::int64_t>(&value)) return std::to_string(*integer);
    if (const auto* real = std::get_if<double>(&value)) return toml_number(*real);
    return toml_string(std::get<std::string>(value));
}

std::string DeckKey::type() const {
    static const char* const names[] = {"boolean", "integer", "real", "text"};
    return names[standard.index()];
}

std::string DeckKey::demand() const {
    if (!choices.empty()) {
        std::string list = choices.size() == 1 ? "" : "one of ";
        for (const DeckValue& choice : choices) list += (&choice == choices.data() ? "" : ", ") + to_toml(choice);
        return list;
    }
    static const char* const kinds[] = {"true or false", "an integer", "a real number", "text in quotes"};
    std::string text = kinds[standard.index()];
    std::string range;
    if (std::isfinite(least)) range = (above_least ? "above " : "at least ") + bound(*this, least);
    if (std::isfinite(most))
        range += (range.empty() ? "" : " and ") + std::string(below_most ? "below " : "at most ") + bound(*this, most);
    return range.empty() ? text : text + ", " + range;
}

bool DeckKey::allows(const DeckValue& value) const {
    if (!choices.empty()) return std::find(choices.begin(), choices.end(), value) != choices.end();
    double number = 0;
    if (const auto* integer = std::get_if<std::int64_t>(&value)) {
        number = static_cast<double>(*integer);
    } else if (const auto* real = std::get_if<double>(&value)) {
        number = *real;
    } else {
        return true;
    }
    return std::isfinite(number) && (above_least ? number > least : number >= least) &&
           (below_most ? number < most : number <= most);
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
    std::string best;
    std::size_t best_distance = std::max<std::size_t>(2, name.size() / 3) + 1;
    for (const std::string& candidate : candidates) {
        const std::size_t distance = edit_distance(name, candidate);
        if (distance < best_distance && distance < candidate.size()) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

}  // namespace sparseattn
