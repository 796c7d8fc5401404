#pragma once
// Layout pictures of sparseattn-prefill: one SVG file per layer and method, a panel per head.

#include <filesystem>
#include <string>
#include <vector>

#include "sparseattn/app/detail/layer_comparison.hpp"
#include "sparseattn/app/prefill_program.hpp"

namespace sparseattn::detail {

class PrefillPictures {
  public:
    // `layers` are those that are compared, `heads` query heads that each of them has. DeckError when the arguments
    // name others.
    PrefillPictures(const PrefillArguments& arguments, const std::vector<int>& layers, int heads);

    // Writes DIR/WHAT_layer_0000_METHOD.svg if this layer is wanted; `what` may be empty.
    void write(const std::string& what, int layer, const std::string& method, const Sequences<PrefillMem>& sequences,
               const BlockLayout<PrefillMem>& layout) const;

  private:
    std::filesystem::path folder_;  // empty: no pictures
    std::vector<int> layers_;
    std::vector<int> heads_;
};

}  // namespace sparseattn::detail
