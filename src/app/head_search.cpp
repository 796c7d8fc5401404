// The searches of sparseattn-search-heads, from options to tables.
#include <algorithm>
#include <map>

#include "sparseattn/app/detail/search_job.hpp"
#include "sparseattn/app/text.hpp"
#include "sparseattn/core/error.hpp"

namespace sparseattn::detail {
namespace {

using nlohmann::json;

[[noreturn]] void reject(const std::string& reason) {
    throw DeckError("command line: " + reason);
}

SelectorOptions read_method(const std::string& text) {
    if (text.empty()) reject("--method is required, must be minference or xattention");
    try {
        const SelectorOptions method = parse_selector(text);
        if (std::holds_alternative<MInferenceOptions>(method) || std::holds_alternative<XAttentionOptions>(method)) {
            return method;
        }
    } catch (const InvalidArgument& error) {
        reject(concat("--method ", text, ": ", error.what()));
    }
    reject(concat("--method is ", text, ", must be minference or xattention"));
}

MInferenceSearch minference_search(const MInferenceOptions& method, const SearchArguments& arguments) {
    MInferenceSearch search;
    search.method = method;
    search.density = arguments.density;
    search.as_given = arguments.as_given;
    if (!arguments.candidates.empty()) search.candidates.clear();
    for (const std::string& text : arguments.candidates) {
        try {
            search.candidates.push_back(parse_minference_pattern(text));
        } catch (const InvalidArgument& error) {
            reject(concat("--candidate ", text, ": ", error.what()));
        }
    }
    return search;
}

json pattern_json(const MInferencePattern& pattern) {
    return {{"pattern", name(pattern.type)}, {"first_size", pattern.first}, {"second_size", pattern.second}};
}

json head_json(int head, const MInferenceChoice& choice) {
    const MInferenceTrial& best = choice.trials[choice.trial];
    json entry = pattern_json(best.pattern);
    entry.update({{"head", head}, {"error", best.pattern.score}, {"density", best.density}, {"met", best.within}});
    for (const MInferenceTrial& trial : choice.trials) {
        json tried = pattern_json(trial.pattern);
        tried.update({{"error", trial.pattern.score}, {"density", trial.density}, {"within_budget", trial.within}});
        entry["candidates"].push_back(tried);
    }
    return entry;
}

MInferencePattern pattern_of(const json& head) {
    MInferencePattern pattern =
        parse_minference_pattern(concat(head.at("pattern").get<std::string>(), ":", head.at("first_size").get<int>(),
                                        ",", head.at("second_size").get<int>()));
    pattern.score = head.at("error").get<double>();
    return pattern;
}

}  // namespace

HeadSearch::HeadSearch(const SearchArguments& arguments) {
    const SelectorOptions method = read_method(arguments.method);
    const auto refuse = [&](bool given, const char* option, const char* other) {
        if (given) reject(concat(option, " is given, must come with --method ", other));
    };
    try {
        if (const auto* minference = std::get_if<MInferenceOptions>(&method)) {
            refuse(arguments.max_error.has_value(), "--max-error", "xattention");
            refuse(arguments.steps.has_value(), "--steps", "xattention");
            minference_ = minference_search(*minference, arguments);
            minference_->validate();
            return;
        }
        refuse(!arguments.candidates.empty(), "--candidate", "minference");
        refuse(arguments.as_given, "--as-given", "minference");
        if (arguments.max_error.has_value() == arguments.density.has_value()) {
            reject("xattention needs either --max-error or --density");
        }
        thresholds_.emplace();
        thresholds_->method = std::get<XAttentionOptions>(method);
        thresholds_->max_error = arguments.max_error;
        thresholds_->density = arguments.density;
        thresholds_->steps = arguments.steps.value_or(thresholds_->steps);
        thresholds_->validate();
    } catch (const InvalidArgument& error) {
        reject(error.what());
    }
}

SelectorOptions HeadSearch::method() const {
    if (minference_) return minference_->method;
    return thresholds_->method;
}

void HeadSearch::set_causal(bool causal) {
    if (thresholds_) thresholds_->method.causal = causal;
}

json HeadSearch::options() const {
    json options = {{"method", describe(method())}};
    const auto optional = [](const std::optional<double>& value) { return value ? json(*value) : json(); };
    if (minference_) {
        options["density"] = optional(minference_->density);
        options["as_given"] = minference_->as_given;
        for (const MInferencePattern& candidate : minference_->candidates) {
            options["candidates"].push_back(pattern_json(candidate));
        }
    } else {
        options["max_error"] = optional(thresholds_->max_error);
        options["density"] = optional(thresholds_->density);
        options["steps"] = thresholds_->steps;
    }
    return options;
}

json HeadSearch::search(int layer, SearchSamples& samples) const {
    json heads = json::array();
    LayerQuality quality;
    if (minference_) {
        const std::vector<MInferenceChoice> choices = search_minference(samples, *minference_, quality);
        for (int h = 0; h < samples.heads(); ++h) heads.push_back(head_json(h, choices[h]));
    } else {
        const ThresholdChoice choice = search_thresholds(samples, *thresholds_);
        quality = choice.quality;
        for (int h = 0; h < samples.heads(); ++h) {
            heads.push_back({{"head", h},
                             {"threshold", choice.thresholds[h]},
                             {"error", quality.difference.relative(h)},
                             {"density", quality.density[h]},
                             {"met", static_cast<bool>(choice.met[h])}});
        }
    }
    return {{"layer", layer},
            {"relative_error", quality.difference.relative()},
            {"density", quality.mean_density()},
            {"heads", heads}};
}

void HeadSearch::write_table(const std::filesystem::path& file, const json& layers, int model_layers) const {
    const auto rows = static_cast<std::size_t>(model_layers);
    if (minference_) {
        MInferenceTable table;
        table.layers.resize(rows);
        for (const json& layer : layers) {
            for (const json& head : layer.at("heads")) {
                table.layers.at(layer.at("layer")).emplace(head.at("head").get<int>(), pattern_of(head));
            }
        }
        write_minference_table(file.string(), table);
        return;
    }
    const std::size_t heads = layers.at(0).at("heads").size();
    XAttentionThresholds table;
    table.layers.assign(rows, std::vector<double>(heads, thresholds_->method.threshold));
    for (const json& layer : layers) {
        for (const json& head : layer.at("heads")) {
            table.layers.at(layer.at("layer")).at(head.at("head")) = head.at("threshold").get<double>();
        }
    }
    write_xattention_thresholds(file.string(), table);
}

std::string HeadSearch::summary(const json& layer) const {
    std::string words;
    int unmet = 0;
    if (minference_) {
        std::map<std::string, int> counts;
        for (const json& head : layer.at("heads")) ++counts[head.at("pattern").get<std::string>()];
        for (const auto& [pattern, count] : counts) words += concat(words.empty() ? "" : ", ", count, " ", pattern);
    } else {
        double low = 1, high = 0;
        for (const json& head : layer.at("heads")) {
            low = std::min(low, head.at("threshold").get<double>());
            high = std::max(high, head.at("threshold").get<double>());
        }
        words = concat("thresholds ", format_number(low), " to ", format_number(high));
    }
    for (const json& head : layer.at("heads")) unmet += head.at("met").get<bool>() ? 0 : 1;
    return unmet == 0 ? words : concat(words, "; ", unmet, unmet == 1 ? " head" : " heads", " above the budget");
}

}  // namespace sparseattn::detail
