// Selectors as text: names, parsing, printing.
#include <charconv>
#include <sstream>

#include "sparseattn/core/error.hpp"
#include "sparseattn/select/detail/option_fields.hpp"

namespace sparseattn {
namespace {

template <class Enum>
using Names = std::vector<std::pair<Enum, std::string>>;
const Names<Granularity>& names_of(Granularity) {
    static const Names<Granularity> names = {{Granularity::token, "token"}, {Granularity::block, "block"}};
    return names;
}
const Names<XAttentionOptions::Mode>& names_of(XAttentionOptions::Mode) {
    static const Names<XAttentionOptions::Mode> names = {{XAttentionOptions::Mode::antidiagonal, "antidiagonal"},
                                                         {XAttentionOptions::Mode::slash, "slash"}};
    return names;
}

template <class Value>
bool parse_number(const std::string& text, Value& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// Reads `text` into `value`; returns what it must be when it is not that.
std::string parse(const std::string& text, int& value) {
    return parse_number(text, value) ? "" : "a whole number";
}
std::string parse(const std::string& text, double& value) {
    return parse_number(text, value) ? "" : "a number";
}
std::string parse(const std::string& text, bool& value) {
    value = text == "true";
    return value || text == "false" ? "" : "true or false";
}
template <class Value>
std::string parse(const std::string& text, std::optional<Value>& value) {
    value.reset();
    if (text == "none") return "";
    const std::string must = parse(text, value.emplace());
    return must.empty() ? "" : must + " or none";
}
template <class Enum>
requires std::is_enum_v<Enum> std::string parse(const std::string& text, Enum& value) {
    std::string known;
    for (const auto& [candidate, name] : names_of(value)) {
        if (name == text) {
            value = candidate;
            return "";
        }
        known += (known.empty() ? "" : " or ") + name;
    }
    return known;
}

std::string print(int value) {
    return std::to_string(value);
}
std::string print(bool value) {
    return value ? "true" : "false";
}
std::string print(double value) {  // the shortest text that reads back the same
    char text[32];
    const auto result = std::to_chars(text, text + sizeof text, value);
    return {text, result.ptr};
}
template <class Value>
std::string print(const std::optional<Value>& value) {
    return value ? print(*value) : "none";
}
template <class Enum>
requires std::is_enum_v<Enum> std::string print(Enum value) {
    for (const auto& [candidate, name] : names_of(value)) {
        if (candidate == value) return name;
    }
    return "";
}

template <std::size_t method = 0>
SelectorOptions make(const std::string& name) {
    if constexpr (method < std::variant_size_v<SelectorOptions>) {
        if (selector_names()[method] == name) return SelectorOptions(std::in_place_index<method>);
        return make<method + 1>(name);
    } else {
        std::string known;
        for (const std::string& candidate : selector_names()) known += (known.empty() ? "" : ", ") + candidate;
        throw InvalidArgument(concat("selector is '", name, "', must be one of ", known));
    }
}

template <class Options>
void set(const std::string& method, Options& options, const std::string& key, const std::string& text) {
    bool found = false;
    std::string known;
    detail::for_each_option(options, [&](const char* name, auto& member) {
        known += concat(known.empty() ? "" : ", ", name);
        if (key != name) return;
        found = true;
        const std::string must = parse(text, member);
        require(must.empty(), concat(method, ".", key), concat("'", text, "'"), must);
    });
    if (!found) throw InvalidArgument(concat(method, " has no option '", key, "', only ", known));
}

}  // namespace

std::vector<std::string> selector_names() {
    return {"full", "streaming", "xattention", "flexprefill", "minference"};
}

std::string selector_name(const SelectorOptions& options) {
    return selector_names()[options.index()];
}

SelectorOptions parse_selector(const std::string& text) {
    const std::size_t colon = text.find(':');
    const std::string name = text.substr(0, colon);
    SelectorOptions options = make(name);
    if (colon != std::string::npos) {
        std::istringstream parts(text.substr(colon + 1));
        for (std::string part; std::getline(parts, part, ',');) {
            const std::size_t equals = part.find('=');
            require(equals != std::string::npos, concat("option of ", name), concat("'", part, "'"), "key=value");
            std::visit([&](auto& method) { set(name, method, part.substr(0, equals), part.substr(equals + 1)); },
                       options);
        }
    }
    validate(options);
    return options;
}

std::string describe(const SelectorOptions& options) {
    std::string text = selector_name(options);
    char separator = ':';
    std::visit(
        [&](const auto& method) {
            detail::for_each_option(method, [&](const char* name, const auto& member) {
                text += concat(separator, name, "=", print(member));
                separator = ',';
            });
        },
        options);
    return text;
}

void validate(const SelectorOptions& options) {
    std::visit([](const auto& method) { method.validate(); }, options);
}

void FullOptions::validate() const {
    require(block == 64 || block == 128, "full.block", block, "64 or 128");
}

void StreamingOptions::validate() const {
    require(block == 64 || block == 128, "streaming.block", block, "64 or 128");
    require(sink >= 0, "streaming.sink", sink, "at least 0");
    require(local >= 1, "streaming.local", local, "at least 1");
    require(dense_tail >= 0, "streaming.dense_tail", dense_tail, "at least 0");
}

}  // namespace sparseattn
