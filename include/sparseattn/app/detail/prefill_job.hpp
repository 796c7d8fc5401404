#pragma once
// The parts of sparseattn-prefill: its two kinds of input under one interface.

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "sparseattn/app/detail/layer_comparison.hpp"
#include "sparseattn/app/log.hpp"
#include "sparseattn/app/prefill_program.hpp"
#include "sparseattn/select/model_selector.hpp"

namespace sparseattn::detail {

using MemoryParts = std::vector<std::pair<std::string, std::int64_t>>;  // bytes by purpose

// Input that the methods are compared on. The constructors of the two kinds check everything that can be checked before
// the work starts.
class PrefillInput {
  public:
    virtual ~PrefillInput() = default;
    // Lines for the terminal, and the same for the JSON document.
    [[nodiscard]] virtual std::string text() const = 0;
    [[nodiscard]] virtual nlohmann::json about() const = 0;
    [[nodiscard]] virtual bool has_model() const = 0;
    [[nodiscard]] virtual MemoryParts memory() const = 0;
    // `done` gets each comparison as soon as it is there.
    virtual void run(Log& log, const std::function<void(const PrefillComparison&)>& done) = 0;
};

[[nodiscard]] std::unique_ptr<PrefillInput> open_prefill_checkpoint(const PrefillArguments& arguments,
                                                                    const std::vector<ModelSelector>& methods);
[[nodiscard]] std::unique_ptr<PrefillInput> open_prefill_file(const PrefillArguments& arguments,
                                                              std::vector<ModelSelector> methods);

// The selectors of one layer, one for each method.
[[nodiscard]] std::vector<LayerSelector> layer_selectors(const std::vector<ModelSelector>& methods, int layer,
                                                         int heads, bool share_groups);
// Empty figures of every method.
[[nodiscard]] std::vector<MethodFigures> named_figures(const std::vector<ModelSelector>& methods);
[[nodiscard]] ComparisonOptions comparison_options(const PrefillArguments& arguments);

}  // namespace sparseattn::detail
