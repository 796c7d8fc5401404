#include "sparseattn/app/prefill_report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

using nlohmann::json;

template <class Value>
double sum_of(const std::vector<LayerFigures>& layers, const Value& value) {
    double sum = 0;
    for (const LayerFigures& layer : layers) sum += value(layer);
    return sum;
}

double mean(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

template <class Combine>
void combine(LayerFigures& to, const Combine& change) {
    using Figure = double LayerFigures::*;
    for (const Figure member : {&LayerFigures::kept_pairs, &LayerFigures::all_pairs, &LayerFigures::selection_seconds,
                                &LayerFigures::attention_seconds, &LayerFigures::error}) {
        change(to.*member, [=](const LayerFigures& from) { return from.*member; });
    }
    using HeadFigures = std::vector<double> LayerFigures::*;
    for (const HeadFigures member :
         {&LayerFigures::head_density, &LayerFigures::head_mass, &LayerFigures::head_error}) {
        for (std::size_t h = 0; h < (to.*member).size(); ++h) {
            change((to.*member)[h], [=](const LayerFigures& from) { return (from.*member)[h]; });
        }
    }
}

const std::vector<double ModelFigures::*> model_members = {&ModelFigures::loss, &ModelFigures::loss_change,
                                                           &ModelFigures::last_token_agreement,
                                                           &ModelFigures::token_agreement};

std::string fixed(double value, int decimals) {
    if (std::isnan(value)) return "-";
    char text[48];
    std::snprintf(text, sizeof text, "%.*f", decimals, value);
    return text;
}

std::string milliseconds(double seconds) {
    return fixed(1e3 * seconds, seconds < 0.1 ? 2 : 0);
}

json layer_json(const LayerFigures& layer) {
    return {{"layer", layer.layer},
            {"density", layer.density()},
            {"kept_pairs", layer.kept_pairs},
            {"all_pairs", layer.all_pairs},
            {"mass", layer.mass()},
            {"smallest_mass", layer.smallest_mass},
            {"error", layer.error},
            {"selection_seconds", layer.selection_seconds},
            {"attention_seconds", layer.attention_seconds},
            {"head_density", layer.head_density},
            {"head_mass", layer.head_mass},
            {"head_error", layer.head_error}};
}

}  // namespace

double LayerFigures::mass() const {
    return mean(head_mass);
}

double MethodFigures::density() const {
    const double all = sum_of(layers, [](const LayerFigures& layer) { return layer.all_pairs; });
    return all > 0 ? sum_of(layers, [](const LayerFigures& layer) { return layer.kept_pairs; }) / all : 0;
}
double MethodFigures::mass() const {
    return sum_of(layers, [](const LayerFigures& layer) { return layer.mass(); }) / static_cast<double>(layers.size());
}
double MethodFigures::smallest_mass() const {
    double smallest = 1;
    for (const LayerFigures& layer : layers) smallest = std::min(smallest, layer.smallest_mass);
    return smallest;
}
double MethodFigures::mean_error() const {
    return sum_of(layers, [](const LayerFigures& layer) { return layer.error; }) / static_cast<double>(layers.size());
}
double MethodFigures::largest_error() const {
    double largest = 0;
    for (const LayerFigures& layer : layers) largest = std::max(largest, layer.error);
    return largest;
}
double MethodFigures::selection_seconds() const {
    return sum_of(layers, [](const LayerFigures& layer) { return layer.selection_seconds; });
}
double MethodFigures::attention_seconds() const {
    return sum_of(layers, [](const LayerFigures& layer) { return layer.attention_seconds; });
}

double PrefillComparison::speed_up(const MethodFigures& method) const {
    return methods.front().seconds() / method.seconds();
}

TextTable PrefillComparison::table() const {
    const bool model = !std::isnan(methods.front().model.loss);
    std::vector<std::string> header = {"method", "density", "mass kept", "error", "worst layer"};
    if (model) header.insert(header.end(), {"loss", "last token", "tokens"});
    header.insert(header.end(), {"selection ms", "attention ms", "speed-up"});
    TextTable table(header);
    for (const MethodFigures& method : methods) {
        std::vector<std::string> row = {method.method, fixed(method.density(), 4), fixed(method.mass(), 4),
                                        format_number(method.mean_error()), format_number(method.largest_error())};
        if (model) {
            // The first row has the loss itself, the others what they add to it.
            const bool first = &method == &methods.front();
            const double change = method.model.loss_change;
            row.push_back(first ? fixed(method.model.loss, 4) : concat(change < 0 ? "" : "+", fixed(change, 4)));
            row.push_back(fixed(method.model.last_token_agreement, 2));
            row.push_back(fixed(method.model.token_agreement, 3));
        }
        row.insert(row.end(), {milliseconds(method.selection_seconds()), milliseconds(method.attention_seconds()),
                               fixed(speed_up(method), 2)});
        table.add_row(row);
    }
    return table;
}

json PrefillComparison::to_json() const {
    json list = json::array();
    for (const MethodFigures& method : methods) {
        json layers = json::array();
        for (const LayerFigures& layer : method.layers) layers.push_back(layer_json(layer));
        list.push_back({{"method", method.method},
                        {"selector", method.selector},
                        {"density", method.density()},
                        {"mass", method.mass()},
                        {"smallest_mass", method.smallest_mass()},
                        {"error_mean", method.mean_error()},
                        {"error_max", method.largest_error()},
                        {"selection_seconds", method.selection_seconds()},
                        {"attention_seconds", method.attention_seconds()},
                        {"speed_up", speed_up(method)},
                        // JSON has no NaN: what was not measured is null (nlohmann writes a NaN so).
                        {"loss", method.model.loss},
                        {"loss_change", method.model.loss_change},
                        {"last_token_agreement", method.model.last_token_agreement},
                        {"token_agreement", method.model.token_agreement},
                        {"layers", std::move(layers)}});
    }
    return {{"title", title},
            {"tokens", tokens},
            {"keys", keys},
            {"sequences", sequences},
            {"samples", samples},
            {"labels", labels},
            {"sampled_queries", sampled_queries},
            {"methods", std::move(list)}};
}

void add_sample(std::vector<MethodFigures>& sum, const std::vector<MethodFigures>& other) {
    if (sum.empty()) {
        sum = other;
        return;
    }
    require(sum.size() == other.size(), "methods of the sample", other.size(), concat(sum.size(), ", as before"));
    for (std::size_t m = 0; m < sum.size(); ++m) {
        for (const auto member : model_members) sum[m].model.*member += other[m].model.*member;
        for (std::size_t l = 0; l < sum[m].layers.size(); ++l) {
            LayerFigures& to = sum[m].layers[l];
            const LayerFigures& from = other[m].layers.at(l);
            combine(to, [&](double& value, const auto& of) { value += of(from); });
            to.smallest_mass = std::min(to.smallest_mass, from.smallest_mass);
        }
    }
}

void divide_by_samples(std::vector<MethodFigures>& sum, int samples) {
    for (MethodFigures& method : sum) {
        for (const auto member : model_members) method.model.*member /= samples;
        for (LayerFigures& layer : method.layers) {
            combine(layer, [&](double& value, const auto&) { value /= samples; });
        }
    }
}

std::string table_legend(bool model) {
    std::string text =
        "Every method on the same query, key and value, those of full attention: density (pairs kept of all), mass\n"
        "kept (attention mass of sampled queries, mean), error (|out - full| / |full| of a layer, mean over layers) "
        "and\n"
        "worst layer, time of selection and attention over all layers, speed-up (of both together, over full).\n";
    if (model) {
        text +=
            "The method in every layer of the model: loss (first row nats per token, then the change), last token "
            "(share\n"
            "of sequences whose most likely next token stays), tokens (the same of the sampled tokens).\n";
    }
    return text;
}

}  // namespace sparseattn
