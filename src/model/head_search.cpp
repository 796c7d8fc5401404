#include "sparseattn/model/head_search.hpp"

#include <algorithm>
#include <cmath>

#include "sparseattn/core/error.hpp"

namespace sparseattn {
namespace {

using Type = MInferencePattern::Type;

constexpr int size_steps = 8;         // halvings of the range of factors
constexpr double size_range = 64;     // factors 1/64 .. 64
constexpr int most_tokens = 1 << 30;  // as read_minference_table takes

bool has_sizes(Type type) {
    return type == Type::vertical_and_slash || type == Type::stream_llm || type == Type::tri_shape;
}

int scaled(int size, double factor) {
    return static_cast<int>(std::min<double>(std::round(size * factor), most_tokens));
}

MInferencePattern scaled(MInferencePattern pattern, double factor) {
    pattern.first = scaled(pattern.first, factor);
    pattern.second = scaled(pattern.second, factor);
    if (pattern.type != Type::vertical_and_slash) pattern.second = std::max(1, pattern.second);  // a window
    return pattern;
}

// The candidate as it competes in each head.
template <class Exec>
class Candidate {
  public:
    Candidate(LayerSamples<Exec>& samples, const MInferenceOptions& method, const MInferencePattern& pattern)
        : samples_(samples), method_(method), pattern_(pattern), factor_(samples.heads(), 1) {}

    [[nodiscard]] MInferenceOptions options() const {
        MInferenceOptions options = method_;
        for (const double factor : factor_) {
            options.heads.push_back(has_sizes(pattern_.type) ? scaled(pattern_, factor) : pattern_);
        }
        return options;
    }
    [[nodiscard]] std::vector<double> density() { return samples_.density(options()); }

    // Sets each head's factor to the largest within its budget, or to the smallest.
    void fit(const std::vector<double>& budget) {
        if (!has_sizes(pattern_.type)) return;
        const auto heads = static_cast<std::size_t>(samples_.heads());
        std::vector<double> low(heads, -std::log2(size_range)), high(heads, std::log2(size_range));
        for (int step = 0; step < size_steps; ++step) {
            for (std::size_t h = 0; h < heads; ++h) factor_[h] = std::exp2((low[h] + high[h]) / 2);
            const std::vector<double> kept = density();
            for (std::size_t h = 0; h < heads; ++h) {
                (kept[h] <= budget[h] ? low : high)[h] = std::log2(factor_[h]);
            }
        }
        for (std::size_t h = 0; h < heads; ++h) factor_[h] = std::exp2(low[h]);
    }

  private:
    LayerSamples<Exec>& samples_;
    MInferenceOptions method_;
    MInferencePattern pattern_;
    std::vector<double> factor_;
};

int winner(const std::vector<MInferenceTrial>& trials) {
    int best = -1, cheapest = 0;
    for (int t = 0; t < static_cast<int>(trials.size()); ++t) {
        if (trials[t].density < trials[cheapest].density) cheapest = t;
        if (trials[t].within && (best < 0 || trials[t].pattern.score < trials[best].pattern.score)) best = t;
    }
    return best < 0 ? cheapest : best;
}

}  // namespace

std::vector<MInferencePattern> minference_candidates() {
    return {{Type::stream_llm, 100, 800},          {Type::vertical_and_slash, 30, 800},
            {Type::vertical_and_slash, 100, 750},  {Type::vertical_and_slash, 500, 700},
            {Type::vertical_and_slash, 3500, 100}, {Type::block_sparse, 100, 1}};
}

void MInferenceSearch::validate() const {
    method.validate();
    require(method.size_ratio == 1, "minference.size_ratio", method.size_ratio, "1 in a search");
    require(!method.adaptive_budget, "minference.adaptive_budget", method.adaptive_budget.value_or(0),
            "none in a search");
    require(!candidates.empty(), "number of candidates", 0, "at least 1");
    for (const MInferencePattern& candidate : candidates) {
        require(candidate.first >= 0 && candidate.first <= most_tokens, "first size of a candidate", candidate.first,
                concat("in [0, ", most_tokens, "]"));
        const bool window = candidate.type == Type::stream_llm || candidate.type == Type::tri_shape;
        require(candidate.second >= (window ? 1 : 0) && candidate.second <= most_tokens, "second size of a candidate",
                candidate.second, concat("in [", window ? 1 : 0, ", ", most_tokens, "]"));
    }
    const double share = density.value_or(1);
    require(share > 0 && share <= 1, "density", share, "above 0, at most 1");
    require(!(density && as_given), "as_given", "set", "off where a density is given");
}

template <class Exec>
std::vector<MInferenceChoice> search_minference(LayerSamples<Exec>& samples, const MInferenceSearch& search,
                                                LayerQuality& quality) {
    search.validate();
    const int heads = samples.heads();
    std::vector<MInferenceChoice> choices(heads);
    std::vector<double> budget(heads, search.density.value_or(1));
    std::vector<LayerQuality> qualities;
    for (std::size_t c = 0; c < search.candidates.size(); ++c) {
        Candidate<Exec> candidate(samples, search.method, search.candidates[c]);
        if (!search.as_given) {
            if (c == 0 && !search.density) {
                budget = candidate.density();
            } else {
                candidate.fit(budget);
            }
        }
        const MInferenceOptions options = candidate.options();
        qualities.push_back(samples.quality(options));
        for (int h = 0; h < heads; ++h) {
            MInferenceTrial trial{options.heads[h], qualities.back().density[h], true};
            trial.pattern.score = qualities.back().difference.relative(h);
            trial.within = search.as_given || trial.density <= budget[h];
            choices[h].trials.push_back(trial);
        }
    }
    quality = {};
    for (MInferenceChoice& choice : choices) {
        choice.trial = winner(choice.trials);
        const std::size_t h = quality.density.size();
        const LayerQuality& best = qualities[choice.trial];
        quality.density.push_back(best.density[h]);
        quality.difference.error.push_back(best.difference.error[h]);
        quality.difference.size.push_back(best.difference.size[h]);
    }
    return choices;
}

void ThresholdSearch::validate() const {
    method.validate();
    require(max_error.has_value() != density.has_value(), "max_error and density",
            max_error ? "both given" : "both missing", "one of them");
    const double wish = max_error ? *max_error : *density;
    require(wish > 0 && wish <= 1, max_error ? "max_error" : "density", wish, "above 0, at most 1");
    require(steps >= 1 && steps <= 20, "steps", steps, "in [1, 20]");
}

template <class Exec>
ThresholdChoice search_thresholds(LayerSamples<Exec>& samples, const ThresholdSearch& search) {
    search.validate();
    const auto heads = static_cast<std::size_t>(samples.heads());
    XAttentionOptions method = search.method;
    method.thresholds.assign(heads, 1);
    const auto meets = [&] {
        std::vector<bool> met(heads);
        if (search.density) {
            const std::vector<double> density = samples.density(method);
            for (std::size_t h = 0; h < heads; ++h) met[h] = density[h] <= *search.density;
        } else {
            const OutputDifference difference = samples.quality(method).difference;
            for (std::size_t h = 0; h < heads; ++h)
                met[h] = difference.relative(static_cast<int>(h)) <= *search.max_error;
        }
        return met;
    };
    // In units of 2^-steps: the threshold is between `low`, too small or not known, and `high`. For max_error `high`
    // meets the wish; for density `low` does, once it is above 0.
    const long most = 1L << search.steps;
    std::vector<long> low(heads, 0), high(heads, most);
    if (search.density && *search.density >= 1) low = high;
    for (int step = 0; step < search.steps; ++step) {
        for (std::size_t h = 0; h < heads; ++h) {
            method.thresholds[h] =
                static_cast<double>(std::max(1L, (low[h] + high[h]) / 2)) / static_cast<double>(most);
        }
        const std::vector<bool> met = meets();
        for (std::size_t h = 0; h < heads; ++h) {
            if (high[h] - low[h] > 1) (met[h] == search.density.has_value() ? low : high)[h] = (low[h] + high[h]) / 2;
        }
    }
    ThresholdChoice choice;
    for (std::size_t h = 0; h < heads; ++h) {
        const long found = search.density ? std::max(1L, low[h]) : high[h];
        method.thresholds[h] = static_cast<double>(found) / static_cast<double>(most);
    }
    choice.thresholds = method.thresholds;
    choice.quality = samples.quality(method);
    for (std::size_t h = 0; h < heads; ++h) {
        choice.met.push_back(search.density
                                 ? choice.quality.density[h] <= *search.density
                                 : choice.quality.difference.relative(static_cast<int>(h)) <= *search.max_error);
    }
    return choice;
}

#define SPARSEATTN_INSTANTIATE(EXEC)                                                                       \
    template std::vector<MInferenceChoice> search_minference(LayerSamples<EXEC>&, const MInferenceSearch&, \
                                                             LayerQuality&);                               \
    template ThresholdChoice search_thresholds(LayerSamples<EXEC>&, const ThresholdSearch&);
SPARSEATTN_INSTANTIATE(Kokkos::DefaultExecutionSpace)

}  // namespace sparseattn
